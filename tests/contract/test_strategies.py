"""One optimizer step has one loss, one gradient norm and one update, whatever strategy and split it is made with.

A step of sixteen rows, and one of three that not all micro-batches get a row of, are compared with a plain loop over
the same rows (`plain_steps.py`).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.contract import steps
from tests.contract.plain_steps import BFLOAT16, ROUNDING, check_within, differences, plain_steps
from tests.contract.steps import (
    ADAPTED_CASE,
    ADAPTER,
    ANCHORED_ADAPTER_CASE,
    BATCH_SIZE,
    CASES,
    CHECKPOINTS,
    NOISE,
    NOISY_CASE,
    PARTIAL,
    POISONED_CASE,
    POISONED_ROW,
    STRATEGIES,
    VECTORS,
    Case,
)
from tests.reference import divergence
from tests.support.errors import refused
from tests.support.ranks import launch
from ts2_lightning.callbacks import NEFTune
from ts2_lightning.checkpoint_files.reading import read_checkpoint, weights_of
from ts2_lightning.engines import ChunkedEngine
from ts2_lightning.export.export import ExportSettings, export_checkpoint
from ts2_lightning.losses import CrossEntropyLoss, ReferenceAnchored
from ts2_lightning.modules import AdapterConfig, LanguageModelConfig, SFTModule
from ts2_lightning.modules.adapters import merged_weights
from ts2_lightning.modules.language_model import load_language_model
from ts2_lightning.modules.sharding import make_network
from ts2_lightning.types import Batch

Ranks = list[dict[str, Any]]

WITH_ADAPTERS = [name for name in STRATEGIES if name != "fsdp2_tp2"]


def on_two_ranks(strategies: Sequence[str]) -> list[Any]:
    """Each in CI but for ZeRO-1, which is DeepSpeed's optimizer of ZeRO-2 without gradients in parts."""
    return [pytest.param(name, marks=pytest.mark.long if name == "zero1" else pytest.mark.slow) for name in strategies]


@pytest.fixture(scope="module")
def two_ranks(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ranks]:
    """What both ranks of a strategy found, under the name of each case; one launch per strategy."""

    @lru_cache
    def ranks_of(strategy: str) -> Ranks:
        out = tmp_path_factory.mktemp(strategy)
        launch("tests.contract.steps", strategy, world, out)
        return [{"out": str(out), **torch.load(out / f"rank{number}.pt")} for number in (0, 1)]

    return ranks_of


@lru_cache
def weights_before(world: Path, model: str) -> dict[str, Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(world / model).named_parameters())


@lru_cache
def plain(case: Case, world: Path, rows: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
    return plain_steps(case, world, rows)


def check(case: Case, found: dict[str, Any], world: Path) -> None:
    assert [len(rows) for rows in found["rows"]] == [BATCH_SIZE, PARTIAL]
    wanted = plain(case, world, tuple(tuple(sorted(rows)) for rows in found["rows"]))
    assert all(numbers["train/gradient_norm"] > steps.CLIP for numbers in wanted["logged"].values())
    check_within(
        differences(found, wanted, weights_before(world, case.model)),
        BFLOAT16 if case.precision == "bf16-mixed" else ROUNDING,
        str(case),
    )


def together(ranks: Ranks, case: str) -> dict[str, Any]:
    """Rank 0's numbers, and the rows of all ranks, each once."""
    rows = [rank[case]["rows"] for rank in ranks]
    if rows[0] != rows[1]:  # they are not tensor-parallel
        rows[0] = [a + b for a, b in zip(*rows, strict=True)]
    assert all(len(set(step)) == len(step) for step in rows[0])
    return {**ranks[0][case], "rows": rows[0]}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("micro_batch_size", "accumulation"), [(BATCH_SIZE, 1), (4, 4)])
def test_one_device(case: Case, micro_batch_size: int, accumulation: int, world: Path) -> None:
    found = steps.run(case, world, micro_batch_size)
    assert found["accumulation"] == accumulation
    check(case, found, world)


@pytest.mark.parametrize("strategy", on_two_ranks(STRATEGIES))
def test_two_ranks(strategy: str, two_ranks: Callable[[str], Ranks], world: Path) -> None:
    ranks = two_ranks(strategy)
    for case in steps.cases_of(strategy):
        found = together(ranks, str(case))
        assert found["accumulation"] == (4 if strategy == "fsdp2_tp2" else 2)
        check(case, found, world)
        check_same_on_all(ranks, str(case))


def check_same_on_all(ranks: Ranks, case: str) -> None:
    first, second = (rank[case] for rank in ranks)
    for mine, theirs in zip(first["weights"], second["weights"], strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    for step, numbers in first["logged"].items():
        own = second["logged"][step]
        assert own["train/gradient_norm"] == pytest.approx(numbers["train/gradient_norm"], rel=1e-6)
        assert own["train/objective"] == pytest.approx(numbers["train/objective"], rel=1e-12)


@pytest.mark.parametrize("strategy", on_two_ranks(["fsdp2", "zero1", "zero2", "zero3"]))
def test_mixed_precision_is_that_of_ddp(strategy: str, two_ranks: Callable[[str], Ranks], world: Path) -> None:
    """Equally split, strategies with whole layers round to bfloat16 in the same places, and sum in float32.

    In the first step: after it, weights that differ in their last digit may round differently. ZeRO-3 adds nodes to the
    graph, and is compared with DDP on a graph that has them too.
    """
    ddp = [{**rank, **rank[steps.WRAPPED]} if strategy == "zero3" else rank for rank in two_ranks("ddp")]
    for case in steps.cases_of(strategy):
        if case.precision == "bf16-mixed":
            found, wanted = together(two_ranks(strategy), str(case)), together(ddp, str(case))
            check_within(differences(found, wanted, weights_before(world, case.model), 1), ROUNDING, str(case))


@pytest.mark.parametrize("strategy", on_two_ranks(STRATEGIES))
def test_a_loss_that_is_not_finite(strategy: str, two_ranks: Callable[[str], Ranks], world: Path) -> None:
    """It stops all ranks before the update, or costs the step and nothing else."""
    ranks, before = two_ranks(strategy), weights_before(world, POISONED_CASE.model)
    rows = together(ranks, str(POISONED_CASE))["rows"]
    guilty = next(number for number in (0, 1) if POISONED_ROW in ranks[number][str(POISONED_CASE)]["rows"][0])
    for rank in ranks:
        message = rank["stop"]["error"]
        assert message.startswith("step 1: the loss is not finite among rows ")
        assert str(POISONED_ROW) in message.split("among rows ")[1].split(f" on rank {guilty};")[0].split(", ")
        assert rank["stop"]["weights"] == []
    skipped = together(ranks, "skip")
    assert skipped["error"] == ""
    assert all(torch.equal(tensor, before[name]) for name, tensor in skipped["weights"][0].items())
    assert [numbers["train/skipped_steps"] for numbers in skipped["logged"].values()] == [1, 1]
    wanted = plain(POISONED_CASE, world, (tuple(sorted(rows[1])),))
    second = {"rows": skipped["rows"][1:], "weights": skipped["weights"][1:], "logged": {1: skipped["logged"][2]}}
    check_within(differences(second, wanted, before, steps=1), ROUNDING, "the step after the skipped one")


@pytest.mark.parametrize("strategy", on_two_ranks(STRATEGIES))
def test_noise_on_the_embeddings(strategy: str, two_ranks: Callable[[str], Ranks], world: Path) -> None:
    """NEFTune's hook is called where weights are sharded too, and its noise is that of each row."""
    found, before = together(two_ranks(strategy), "neftune"), weights_before(world, NOISY_CASE.model)
    wanted = steps.run(NOISY_CASE, world, BATCH_SIZE, callbacks=[NEFTune(NOISE)])
    check_within(differences(found, wanted, before), ROUNDING, "noisy")
    plainly = plain(NOISY_CASE, world, tuple(tuple(sorted(rows)) for rows in found["rows"]))
    assert differences(found, plainly, before).objective > 1e-3


@pytest.mark.parametrize("strategy", on_two_ranks(WITH_ADAPTERS))
def test_an_adapter_on_layers_and_head(strategy: str, two_ranks: Callable[[str], Ranks], world: Path) -> None:
    """Frozen weights beside trained ones, and a head that is a module of several."""
    found = together(two_ranks(strategy), "adapter")
    wanted = steps.run(ADAPTED_CASE, world, BATCH_SIZE, adapter=ADAPTER)
    before = wanted["before"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in found["before"].items())
    check_within(differences(found, wanted, before), ROUNDING, "adapted")
    changed = {name for name, tensor in found["weights"][-1].items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if "lora_" in name}


def adapter_run(name: str, two_ranks: Callable[[str], Ranks], world: Path, scratch: Path) -> tuple[Ranks, Path]:
    """What each rank found, and where the checkpoints are."""
    if name == "one device":
        return [steps.adapted(world, scratch, lambda: "auto", 1)], scratch / CHECKPOINTS
    strategy, _, to_a_file = name.partition(" ")
    ranks = two_ranks(strategy)
    out = Path(ranks[0]["out"])
    return (
        ([rank[to_a_file] for rank in ranks], out / to_a_file / CHECKPOINTS)
        if to_a_file
        else (ranks, out / CHECKPOINTS)
    )


@pytest.mark.parametrize("name", ["one device", *on_two_ranks([*WITH_ADAPTERS, "fsdp2 to a file"])])
def test_checkpoints_of_an_adapter(name: str, two_ranks: Callable[[str], Ranks], world: Path, tmp_path: Path) -> None:
    """They hold what is trained; the base comes from its files, to resume, to validate and to export."""
    ranks, checkpoints = adapter_run(name, two_ranks, world, tmp_path)
    for rank in ranks:
        assert "the checkpoint is not of this model: " in rank["adapter refused"]
        assert "network.language_model.lm_head.lora_A.default.weight" in rank["adapter refused"]
    first, second = (read_checkpoint(checkpoints / f"step-00000{number}.ckpt") for number in (1, 2))
    assert (first.step, second.step) == (1, 2)
    for rank in ranks:
        whole, resumed, validated = (rank[f"adapter{what}"] for what in ("", " resumed", " validated"))
        after = [{n: w for n, w in weights.items() if "lora_" in n} for weights in whole["weights"]]
        for checkpoint, wanted in zip((first, second), after, strict=True):
            found = weights_of(checkpoint, list(wanted), checkpoints)
            assert found.keys() == wanted.keys()
            assert all(torch.equal(found[name].read(), weight) for name, weight in wanted.items())
            assert all("lora_" in name for name in checkpoint.weights)
        assert any(not torch.equal(after[0][name], weight) for name, weight in after[1].items())
        assert resumed["rows"] == whole["rows"][1:]
        assert all(torch.equal(weight, whole["weights"][1][name]) for name, weight in resumed["weights"][0].items())
        assert list(resumed["logged"]) == [2]
        for name in ("train/objective", "train/gradient_norm", "val/cross_entropy"):
            assert resumed["logged"][2][name] == whole["logged"][2][name], name
        assert validated["validated"]["val/cross_entropy"] == whole["validated"]["val/cross_entropy"]

    lm = LanguageModelConfig(str(world / ADAPTED_CASE.model), adapter=ADAPTER)
    out = export_checkpoint(checkpoints / "step-000002.ckpt", lm, tmp_path / "export", ExportSettings(lm.path))
    trained = load_language_model(lm)
    trained.load_state_dict(ranks[0]["adapter"]["weights"][1], strict=False)
    exported = AutoModelForCausalLM.from_pretrained(out).state_dict()
    wanted = {weight.name: weight.value for weight in merged_weights(trained)}
    assert all(torch.equal(exported[name], weight) for name, weight in wanted.items())


@pytest.mark.parametrize("strategy", ["one device", *on_two_ranks(WITH_ADAPTERS)])
def test_training_anchored_to_its_start_goes_on(
    strategy: str, two_ranks: Callable[[str], Ranks], world: Path, tmp_path: Path
) -> None:
    """The reference is made again from its files, and is in no checkpoint; an adapter's is the model without it."""
    if strategy == "one device":
        ranks, out = [steps.anchored(world, tmp_path, lambda: "auto", 1)], tmp_path
    else:
        ranks = [rank[steps.ANCHORED] for rank in two_ranks(strategy)]
        out = Path(two_ranks(strategy)[0]["out"])
    for kind in ("whole", "adapter", "other"):
        for rank in ranks:
            first, second = (rank[kind]["logged"][step] for step in (1, 2))
            assert (first["train/objective/reference_divergence"] == 0) is (kind != "other")
            assert second["train/objective/reference_divergence"] > 0.01
            resumed = rank[f"{kind} resumed"]
            assert resumed["logged"][2]["train/objective"] == second["train/objective"]
            after = rank[kind]["weights"][1]
            assert all(torch.equal(weight, after[name]) for name, weight in resumed["weights"][0].items())
        names = read_checkpoint(out / steps.ANCHORED / kind / "step-000002.ckpt").weights
        assert names
        assert not any("reference" in name for name in names)
    if strategy != "one device":
        for kind, reference in (("adapter", None), ("other", steps.OTHER_MODEL)):
            rows = [rank[kind]["rows"] for rank in ranks]
            found = {**ranks[0][kind], "rows": [a + b for a, b in zip(*rows, strict=True)]}
            wanted = steps.run(ANCHORED_ADAPTER_CASE, world, BATCH_SIZE, adapter=ADAPTER, reference=reference)
            check_within(differences(found, wanted, wanted["before"]), ROUNDING, f"anchored, {kind}")


@pytest.mark.parametrize("head", [False, True])
def test_the_reference_of_an_adapter_is_the_model_without_it(head: bool, world: Path) -> None:
    """Its rows are those of the base, whatever the adapter has learnt, and it takes no parameter."""
    lm = LanguageModelConfig(str(world / "tied"), adapter=AdapterConfig(r=2, head=head))
    loss = ReferenceAnchored(CrossEntropyLoss(), 1.0)
    network = make_network(lm, loss, ChunkedEngine(5))
    parameters = sum(p.numel() for p in make_network(lm, CrossEntropyLoss(), ChunkedEngine(5)).parameters())
    assert sum(p.numel() for p in network.parameters()) == parameters
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    ids = torch.arange(12).view(2, 6) + 5
    places = torch.tensor([1, 2, 8, 10])
    batch: Batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "supervised": places}
    batch["labels"] = ids.flatten()[places + 1]
    found = network(batch, ()).tokens["objective/reference_divergence"]
    base = AutoModelForCausalLM.from_pretrained(world / "tied")
    with torch.no_grad():
        rows = [model(input_ids=ids).logits.flatten(0, 1)[places] for model in (base, network.language_model)]
    torch.testing.assert_close(found, divergence(*rows))
    assert found.min() > 1e-3
    assert network.language_model.training
    output = network(batch, ())
    output.total.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for n, p in network.named_parameters() if "lora_A" in n)


def test_a_start_that_is_in_no_file_is_refused(world: Path) -> None:
    lm = LanguageModelConfig(str(world / "tied"), init="random")
    with refused(r"^model.loss: .* model.lm.init is random"):
        make_network(lm, ReferenceAnchored(), ChunkedEngine())
    make_network(lm, ReferenceAnchored(), ChunkedEngine(), reference=str(world / "untied"))


@pytest.mark.parametrize("adapter", [None, ADAPTER], ids=["whole", "adapter"])
def test_another_reference_says_what_that_model_says(adapter: AdapterConfig | None, world: Path) -> None:
    """Frozen, beside the trained model, also where that has an adapter."""
    lm = LanguageModelConfig(str(world / "tied"), adapter=adapter)
    loss = ReferenceAnchored(CrossEntropyLoss(), 1.0)
    network = make_network(lm, loss, ChunkedEngine(5), reference=str(world / steps.OTHER_MODEL))
    ids = torch.arange(12).view(2, 6) + 5
    places = torch.tensor([1, 2, 8, 10])
    batch: Batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "supervised": places}
    batch["labels"] = ids.flatten()[places + 1]
    output = network(batch, ())
    models = [AutoModelForCausalLM.from_pretrained(world / name) for name in (steps.OTHER_MODEL, "tied")]
    with torch.no_grad():
        rows = [model(input_ids=ids).logits.flatten(0, 1)[places] for model in models]
    torch.testing.assert_close(output.tokens["objective/reference_divergence"], divergence(*rows))
    output.total.backward()
    assert not any("reference" in name for name in network.state_dict())
    assert all(p.grad is None for p in network.reference.parameters())
    assert any(p.grad is not None for p in network.language_model.parameters())


def test_a_reference_that_does_not_fit_is_refused(world: Path, tmp_path: Path) -> None:
    lm, anchored = LanguageModelConfig(str(world / "tied")), ReferenceAnchored()
    with refused(r"^model.reference: cannot load '.*nowhere': no such directory"):
        make_network(lm, anchored, ChunkedEngine(), reference=str(tmp_path / "nowhere"))
    more = LanguageModelConfig(str(world / "tied"), resize_embeddings=500)
    with refused(r"^model.reference: '.*' has \d+ tokens in its vocabulary, and the model that is trained 500;"):
        make_network(more, anchored, ChunkedEngine(), reference=str(world / "untied"))
    with refused(r"^model.reference: CrossEntropyLoss reads no reference model, got 'early'"):
        SFTModule(lm, CrossEntropyLoss(), reference="early")


@pytest.mark.slow
def test_deepspeed_under_lightning_alone_is_wrong(two_ranks: Callable[[str], Ranks]) -> None:
    """Why `DeepSpeed` is not Lightning's own: that divides twice, and leaves the last window to the next epoch."""
    first, last = torch.tensor(VECTORS[:4]).sum(0) / 4, torch.tensor(VECTORS[4:]).sum(0) / 4
    for rank in two_ranks("zero2"):
        ours, lightnings = rank["six by four"]["DeepSpeed"], rank["six by four"]["LightningsOwn"]
        assert ours["steps"] == 2
        assert ours["place"] == pytest.approx((-first - last).tolist())
        assert lightnings["steps"] == 1
        assert lightnings["place"] == pytest.approx((-first / 4).tolist())
