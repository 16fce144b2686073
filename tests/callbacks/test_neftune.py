"""NEFTune: how large its noise is, where it is, where it is not, and that it comes again."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from tests.callbacks.neftune_learner import LENGTHS, WIDTH, Learner, Seen, make_data
from tests.e2e.command_line import QUICKSTART
from tests.support.ranks import launch
from tests.support.training import make_trainer
from ts2_lightning.callbacks import Checkpoints, NEFTune
from ts2_lightning.callbacks.neftune import noise_like, row_seed
from ts2_lightning.cli import main
from ts2_lightning.types import UserError

STEPS = 2  # an epoch: 10 rows in steps of 5


def fit(
    tmp_path: Path,
    *callbacks: Callback,
    micro: int = 3,
    packing: str = "none",
    learner: Learner | None = None,
    **settings,
) -> Learner:
    learner = learner or Learner()
    ckpt = settings.pop("ckpt_path", None)
    trainer = make_trainer(tmp_path, callbacks=list(callbacks), **settings)
    trainer.fit(learner, make_data(tmp_path, micro, packing), ckpt_path=ckpt)
    return learner


def noises(seen: list[Seen], mode: str = "train") -> dict[tuple[int, int], Tensor]:
    """(optimizer step, row) -> [T, d] noise on the row's own tokens. Padding must have none."""
    found = {}
    for entry in seen:
        if entry.mode == mode and entry.row >= 0:
            assert len(entry.output) == LENGTHS[entry.row]
            assert not entry.padding.any(), "noise on padding"
            assert (entry.step, entry.row) not in found
            found[entry.step, entry.row] = entry.output
    return found


def same(left: dict[tuple[int, int], Tensor], right: dict[tuple[int, int], Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("alpha", [5.0, 0.3])
@pytest.mark.parametrize(("length", "width"), [(1000, 64), (7, 4096)])
def test_uniform_between_its_bounds(alpha: float, length: int, width: int) -> None:
    noise = noise_like(torch.zeros(1, length, width), [(0, length)], [3], alpha).flatten().double()
    bound = alpha / math.sqrt(length * width)
    assert noise.abs().max() <= bound * (1 + 1e-6)
    # Kolmogorov's distance to the uniform distribution; 1.95 / sqrt(n) is exceeded once in a thousand.
    ordered = (noise.sort().values / bound + 1) / 2
    ranks = torch.arange(1, len(noise) + 1, dtype=torch.float64) / len(noise)
    assert (ordered - ranks).abs().max() < 1.95 / math.sqrt(len(noise))
    assert noise.norm().item() == pytest.approx(alpha / math.sqrt(3), rel=0.01)


def test_each_row_has_the_magnitude_of_its_own_length() -> None:
    lengths = [200, 50, 1]
    noise = noise_like(torch.zeros(3, 200, 64), [(0, 200), (200, 250), (400, 401)], [0, 1, 2], alpha=5.0)
    for row, length in zip(noise, lengths, strict=True):
        bound = 5.0 / math.sqrt(length * 64)
        assert 0.9 * bound < row[:length].abs().max() <= bound * (1 + 1e-6)
        assert not row[length:].any()


def test_packed_rows_have_their_own_noise_wherever_they_lie() -> None:
    """In other places and sequences, between other rows; what no row takes has none."""
    one = noise_like(torch.zeros(2, 9, 8), [(0, 5), (5, 8), (9, 17)], [0, 1, 2], alpha=5.0).view(-1, 8)
    two = noise_like(torch.zeros(1, 16, 8), [(3, 11), (0, 3), (11, 16)], [2, 1, 0], alpha=5.0).view(-1, 8)
    assert torch.equal(torch.cat([one[0:8], one[9:17]]), torch.cat([two[11:16], two[0:3], two[3:11]]))
    assert not one[[8, 17]].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_drawn_in_float32_whatever_the_dtype(dtype: torch.dtype) -> None:
    spans = [(0, 9), (9, 13)]
    expected = noise_like(torch.zeros(2, 9, 8), spans, [5, 6], alpha=5.0)
    noise = noise_like(torch.zeros(2, 9, 8, dtype=dtype), spans, [5, 6], alpha=5.0)
    assert noise.dtype == dtype
    assert torch.equal(noise, expected.to(dtype))


def test_seeds_of_rows_and_steps_differ() -> None:
    seeds = {row_seed(seed, step, row) for seed in range(5) for step in range(40) for row in range(-1, 40)}
    assert len(seeds) == 5 * 40 * 41
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert len({seed % 2**32 for seed in seeds}) > 0.999 * len(seeds), "a CPU's generator takes the low 32 bits"


def test_every_row_of_every_step_has_its_own_noise(tmp_path: Path) -> None:
    found = noises(fit(tmp_path, NEFTune(alpha=5.0), max_epochs=2).seen)
    assert sorted(row for _, row in found) == sorted([*range(10), *range(10)])
    assert {step for step, _ in found} == set(range(2 * STEPS))
    for (_, row), noise in found.items():
        bound = 5.0 / math.sqrt(LENGTHS[row] * WIDTH)
        assert 0.8 * bound < noise.abs().max() <= bound * (1 + 1e-6)
    firsts = {round(noise[0, 0].item() * math.sqrt(len(noise)), 6) for noise in found.values()}
    assert len(firsts) == len(found), "no two alike"


@pytest.mark.parametrize("packing", ["none", "packed", "padding_free"])
@pytest.mark.parametrize("micro", [1, 2, 5])
def test_the_same_for_any_split_of_a_step(micro: int, packing: str, tmp_path: Path) -> None:
    """Other micro-batches, other padding, other places in the batch, other neighbours."""
    split = fit(tmp_path, NEFTune(), micro=micro, packing=packing)
    assert same(noises(split.seen), noises(fit(tmp_path, NEFTune()).seen))


def test_another_seed_gives_other_noise(tmp_path: Path) -> None:
    first, second = (noises(fit(tmp_path, NEFTune(seed=seed)).seen) for seed in (0, 1))
    assert first.keys() == second.keys()
    assert not any(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("micro", [3, 2])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_run_sees_the_same_noise(stop: int, micro: int, tmp_path: Path) -> None:
    """Killed after any step, and also resumed with other micro-batches."""
    unbroken = fit(tmp_path, NEFTune(), max_epochs=2)
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"))
    first = fit(tmp_path, NEFTune(), checkpoints, max_steps=stop, max_epochs=-1, enable_checkpointing=True)
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"))
    second = fit(
        tmp_path, NEFTune(), checkpoints, micro=micro, max_epochs=2, enable_checkpointing=True,
        ckpt_path=tmp_path / "checkpoints" / "last.ckpt",
    )  # fmt: skip
    assert same(noises(first.seen) | noises(second.seen), noises(unbroken.seen))
    assert {step for step, _ in noises(second.seen)} == set(range(stop, 2 * STEPS))


class HooksOutsideOfTraining(Callback):
    """Notes how many hooks the embeddings have where there must be none."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def _note(self, place: str, module: Any) -> None:
        self.counts[place] = max(self.counts.get(place, 0), len(module.embeddings._forward_hooks))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note("sanity check" if trainer.sanity_checking else "validation", pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._note("checkpoint", pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note("end", pl_module)


def test_off_outside_of_training(tmp_path: Path) -> None:
    """Sanity check, validation after a step and at an epoch's end, checkpoints, test, predict."""
    watch, neftune = HooksOutsideOfTraining(), NEFTune()
    settings = {"num_sanity_val_steps": 2, "val_check_interval": 1, "max_epochs": 2, "enable_checkpointing": True}
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"), every_n_steps=1)
    trainer = make_trainer(tmp_path, callbacks=[watch, neftune, checkpoints], **settings)
    learner, data = Learner(), make_data(tmp_path)
    trainer.fit(learner, data)
    assert watch.counts == {"sanity check": 0, "validation": 0, "checkpoint": 0, "end": 0}
    trainer.validate(learner, data, verbose=False)
    trainer.test(learner, data, verbose=False)
    trainer.predict(learner, data)
    modes = {entry.mode for entry in learner.seen}
    assert modes == {"train", "validate", "test", "predict"}
    assert {entry.step for entry in learner.seen if entry.mode == "validate"} == {0, 1, 2, 3, 4}
    for entry in learner.seen:
        assert entry.output.any() == (entry.mode == "train")


class SamplesWithin(Callback):
    """Asks the model for something in evaluation mode, in the middle of a training batch."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []

    def on_before_backward(self, trainer: Trainer, pl_module: Any, loss: Tensor) -> None:
        pl_module.eval()
        with torch.no_grad():
            self.outputs.append(pl_module.embeddings(torch.tensor([[1, 2, 3]])))
        pl_module.train()


def test_off_in_evaluation_mode_within_a_batch(tmp_path: Path) -> None:
    samples = SamplesWithin()
    learner = fit(tmp_path, NEFTune(), samples)
    assert len(samples.outputs) == len(learner.draws)
    assert not torch.stack(samples.outputs).any()


class Fails(Callback):
    """Raises somewhere in the second batch."""

    def __init__(self, where: str, error: type[BaseException]) -> None:
        def fail(trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 1:
                raise error("on purpose")

        setattr(self, where, fail)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, UserError])
@pytest.mark.parametrize("where", ["on_train_batch_start", "on_before_backward", "on_train_batch_end"])
def test_removed_after_an_exception(where: str, error: type[BaseException], tmp_path: Path) -> None:
    learner = Learner()
    for order in (0, 1):
        callbacks = [NEFTune()]
        callbacks.insert(order, Fails(where, error))
        with pytest.raises((error, SystemExit)):
            fit(tmp_path, *callbacks, learner=learner)
        assert not learner.embeddings._forward_hooks


class Skips(Callback):
    """Skips the rest of the epoch, by which the end of its batch never comes."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.on_train_batch_start = lambda *args: -1


def test_removed_after_a_skipped_batch(tmp_path: Path) -> None:
    learner = fit(tmp_path, NEFTune(), Skips())
    assert learner.draws == []
    assert not learner.embeddings._forward_hooks
    assert not any(entry.output.any() for entry in learner.seen)


def test_weights_and_state_are_as_without(tmp_path: Path) -> None:
    """At learning rate 0 nothing moves, and no name comes or goes: in the module, in checkpoints, on the disk."""
    before = {name: value.clone() for name, value in Learner().state_dict().items()}
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"), every_n_steps=1)
    learner = fit(tmp_path, NEFTune(), checkpoints, learner=Learner(learning_rate=0), enable_checkpointing=True)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert "NEFTune" not in saved["callbacks"]
    for state in (learner.state_dict(), saved["state_dict"]):
        assert state.keys() == before.keys()
        assert all(torch.equal(state[name], before[name]) for name in before)
    learner.language_model.save_pretrained(tmp_path / "model")
    loaded = type(learner.language_model).from_pretrained(tmp_path / "model")
    assert loaded.state_dict().keys() == learner.language_model.state_dict().keys()


def test_global_random_numbers_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    with_noise = fit(tmp_path, NEFTune())
    torch.manual_seed(1)
    without = fit(tmp_path)
    assert with_noise.draws == without.draws
    assert len(set(with_noise.draws)) == len(with_noise.draws) > 1


def test_gradients_are_those_at_the_noisy_embeddings(tmp_path: Path) -> None:
    """Of all weights, the embeddings' own included: against the model given embeddings plus noise."""

    class KeepsGradients(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self.batch = batch

        def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
            self.gradients = {name: p.grad.clone() for name, p in pl_module.language_model.named_parameters()}

    keeps = KeepsGradients()
    learner = Learner(learning_rate=0, zeroed=False)
    fit(tmp_path, NEFTune(), keeps, learner=learner, micro=5, max_steps=1)
    batch, model = keeps.batch, learner.language_model
    model.zero_grad()
    seeds = [row_seed(0, 0, row) for row in batch["row_index"].tolist()]
    embedded = model.model.embed_tokens.weight[batch["input_ids"]]
    noisy = embedded + noise_like(embedded, batch["row_spans"].tolist(), seeds, 5.0)
    logits = model(inputs_embeds=noisy, attention_mask=batch["attention_mask"]).logits
    picked = logits.flatten(0, 1)[batch["supervised"]]
    (torch.nn.functional.cross_entropy(picked, batch["labels"], reduction="sum") / batch["divisor"]).backward()
    assert keeps.gradients["model.embed_tokens.weight"].any()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(keeps.gradients[name], parameter.grad, rtol=1e-5, atol=1e-7)


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    learner = fit(tmp_path, NEFTune(), learner=Learner().bfloat16())
    expected = noises(fit(tmp_path, NEFTune()).seen)
    found = noises(learner.seen)
    assert {noise.dtype for noise in found.values()} == {torch.bfloat16}
    assert same(found, {key: noise.bfloat16() for key, noise in expected.items()})


def test_two_ranks(tmp_path: Path) -> None:
    """Under DDP each rank draws other noise, and together they draw that of a single process."""
    launch("tests.callbacks.neftune_learner", tmp_path)
    ranks = [[Seen(*entry) for entry in torch.load(tmp_path / f"rank{number}.pt")] for number in (0, 1)]
    first, second = (noises(rank) for rank in ranks)
    assert first
    assert second
    assert not first.keys() & second.keys()
    assert same(first | second, noises(fit(tmp_path, NEFTune()).seen))
    for mine in first.values():
        for other in second.values():
            same_length = min(len(mine), len(other))
            assert not torch.equal(mine[:same_length].sign(), other[:same_length].sign())


def test_by_name_on_the_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--trainer.callbacks+=NEFTune", "--trainer.callbacks.alpha=10", "--print_config"]
    assert main(["fit", "-c", str(QUICKSTART), *options]) == 0
    [callback] = yaml.safe_load(capfd.readouterr().out)["trainer"]["callbacks"]
    assert callback == {"class_path": "ts2_lightning.callbacks.NEFTune", "init_args": {"alpha": 10.0, "seed": 0}}
