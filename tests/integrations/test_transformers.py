"""An objective in transformers' `Trainer` is trained as in ours: the same losses, gradient norms and weights."""

import copy
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MixtralConfig, Trainer

from tests.contract.plain_steps import Differences, differences, plain_rows
from tests.contract.steps import BATCH_SIZE, LOSSES, PARTIAL, VALIDATED, Case, run
from tests.integrations.trainings import (
    ENGINE,
    FunctionTrainer,
    InOrder,
    TokenLossTrainer,
    arguments,
    dataset,
    load,
    train,
)
from tests.reference import divergence, ts2
from tests.support.errors import refused
from ts2_lightning.integrations.answering import LOSS_HEAD
from ts2_lightning.integrations.transformers import TokenLossMixin, compute_loss_func
from ts2_lightning.losses import CrossEntropyLoss, GEMLoss, ReferenceAnchored, TokenLoss, TS2Loss

ROUNDING = Differences(objective=1e-6, statistics=1e-6, gradient_norm=5e-6, update=2e-5)
ALL_ROWS = range(BATCH_SIZE + PARTIAL)


@cache
def ours(world: Path, case: Case) -> dict[str, Any]:
    """What our own trainer makes of the rows, in four micro-batches a step."""
    return run(case, world, BATCH_SIZE // 4)


def in_order(outcome: dict[str, Any]) -> list[int]:
    """Rows in the order in which our trainer has taken them."""
    return [row for rows in outcome["rows"] for row in rows]


def assert_same(found: dict[str, Any], wanted: dict[str, Any], most: Differences = ROUNDING) -> None:
    worst = differences(wanted, found | {"rows": wanted["rows"]}, wanted["before"])
    assert all(error <= limit for error, limit in zip(worst, most, strict=True)), worst


@pytest.mark.parametrize(
    ("loss", "model", "changed"),
    [
        ("ts2", "tied", {}),
        ("gem", "untied", {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1}),
        ("ts2", "module", {"gradient_checkpointing": True}),
    ],
)
def test_trains_as_ours(world: Path, tmp_path: Path, loss: str, model: str, changed: dict[str, Any]) -> None:
    wanted = ours(world, Case(loss, model, "none"))
    rows = in_order(wanted)
    found = train(
        world, tmp_path, LOSSES[loss](), load(world / model), rows, validated=range(VALIDATED), changed=changed
    )
    assert_same(found, wanted)
    validation = wanted["logged"][2]  # seven rows in batches of three: the mean of their means is another number
    for name in ("cross_entropy", "entropy", "support_size", "tail_mass"):
        assert found["evaluated"][f"eval_{name}"] == pytest.approx(validation[f"val/{name}"], rel=1e-6)
    assert found["evaluated"]["eval_loss"] == pytest.approx(validation["val/objective"], rel=1e-6)


def test_a_function_trains_as_ours(world: Path, tmp_path: Path) -> None:
    wanted = ours(world, Case("ts2", "tied", "none"))
    function = compute_loss_func(TS2Loss(), ENGINE)
    found = train(
        world, tmp_path, None, load(world / "tied"), in_order(wanted), FunctionTrainer, compute_loss_func=function
    )
    for step in (1, 2):
        for name, error in (("train/objective", 1e-6), ("train/gradient_norm", 5e-6)):
            assert found["logged"][step][name] == pytest.approx(wanted["logged"][step][name], rel=error)


class Plain(InOrder, Trainer):
    """Transformers' own loss, which is cross-entropy."""


def adapted(world: Path, head: bool) -> Any:
    torch.manual_seed(0)
    names = ["q_proj", "down_proj", *["lm_head"] * head]
    return get_peft_model(load(world / "untied"), LoraConfig(r=2, target_modules=names, init_lora_weights=False))


@pytest.mark.parametrize("head", [False, True])
def test_an_adapter_trains_as_in_transformers(world: Path, tmp_path: Path, head: bool) -> None:
    found = train(world, tmp_path, CrossEntropyLoss(), adapted(world, head), ALL_ROWS)
    wanted = train(world, tmp_path, None, adapted(world, head), ALL_ROWS, Plain)
    names = {name for name, before in wanted["before"].items() if not before.equal(wanted["weights"][0][name])}
    assert any("lm_head" in name for name in names) == head
    assert all("lora" in name for name in names)
    for step in (0, 1):
        for name in ("train/objective", "train/gradient_norm"):
            assert found["logged"][step + 1][name] == pytest.approx(wanted["logged"][step + 1][name], rel=5e-6)
        for name in names:
            torch.testing.assert_close(found["weights"][step][name], wanted["weights"][step][name])


def test_anchored_to_the_model_without_its_adapter(world: Path, tmp_path: Path) -> None:
    model = adapted(world, head=False)
    found = train(world, tmp_path, ReferenceAnchored(TS2Loss(), 2.0), model, ALL_ROWS, validated=range(VALIDATED))
    logits, reference, labels = [], [], []
    with torch.no_grad():
        for ids, places in plain_rows(world, "validation"):
            logits.append(model(input_ids=ids[None]).logits[0, places - 1].double())
            with model.disable_adapter():
                reference.append(model(input_ids=ids[None]).logits[0, places - 1].double())
            labels.append(ids[places])
    rows, frozen, gold = (torch.cat(parts) for parts in (logits, reference, labels))
    apart = 2.0 * divergence(frozen, rows)
    assert apart.mean() > 0.1
    assert found["evaluated"]["eval_loss"] == pytest.approx((ts2(0.25)(rows, gold) + apart).mean().item(), rel=1e-5)


EIGHT_AND_THREE = (("train", range(8)), ("validation", range(3)))


class Widest(TorchDispatchMode):
    """Keeps the most rows of K columns that a tensor had which an operation made."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns, self.rows = columns, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, torch.Tensor) and made.dim() and made.shape[-1] == self.columns:
                self.rows = max(self.rows, made.numel() // self.columns)
        return result


def rows_of_logits(world: Path, out: Path, **how: Any) -> int:
    """Rows of K columns in the largest tensor of a step of eight rows and of an evaluation."""
    model = load(world / "untied")
    changed = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    with Widest(model.config.vocab_size) as widest:
        train(world, out, model=model, rows=range(8), validated=range(3), changed=changed, **how)
    return widest.rows


def test_no_tensor_holds_the_logits_of_a_micro_batch(world: Path, tmp_path: Path) -> None:
    """Of K columns there are the engine's chunk, of 13 tokens, and the head's matrix as it lies in the product."""
    tokens = min(sum(len(plain_rows(world, split)[i][1]) for i in rows) for split, rows in EIGHT_AND_THREE)
    matrix = load(world / "untied").config.hidden_size
    assert rows_of_logits(world, tmp_path, loss=TS2Loss()) <= matrix < tokens
    how = {"make": FunctionTrainer, "compute_loss_func": compute_loss_func(TS2Loss(), ENGINE)}
    assert rows_of_logits(world, tmp_path, loss=None, **how) > tokens


def test_logits_are_there_where_they_are_asked_for(world: Path, tmp_path: Path) -> None:
    seen = []

    def measure(prediction: Any) -> dict[str, float]:
        seen.append(prediction.predictions)
        return {"rows": float(len(prediction.predictions))}

    trainer = TokenLossTrainer(
        load(world / "tied"), arguments(tmp_path, per_device_eval_batch_size=1), token_loss=TS2Loss(),
        eval_dataset=dataset(world, [0], "validation"), compute_metrics=measure,
    )  # fmt: skip
    evaluated = trainer.evaluate()
    ids, places = plain_rows(world, "validation")[0]
    with torch.no_grad():
        logits = load(world / "tied")(input_ids=ids[None]).logits[0]
    assert evaluated["eval_rows"] == 1
    torch.testing.assert_close(torch.from_numpy(seen[0][0]), logits)
    assert evaluated["eval_loss"] == pytest.approx(ts2(0.25)(logits[places - 1], ids[places]).mean().item(), rel=1e-5)


def test_the_model_is_as_it_was(world: Path, tmp_path: Path) -> None:
    """In a checkpoint, on disk, in a copy, and when it is called as ever."""
    plain = load(world / "tied").eval()
    trainer = TokenLossTrainer(load(world / "tied"), arguments(tmp_path), token_loss=TS2Loss())
    model = trainer.model.eval()
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    ids = torch.arange(6)[None]
    assert model(input_ids=ids, labels=ids).loss == plain(input_ids=ids, labels=ids).loss
    assert model.generate(ids, max_new_tokens=3).equal(plain.generate(ids, max_new_tokens=3))
    trainer.save_model(str(tmp_path / "saved"))
    torch.testing.assert_close(load(tmp_path / "saved").state_dict(), plain.state_dict(), rtol=0, atol=0)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.get_input_embeddings().weight.zero_()
    assert not copied(input_ids=ids).logits.any()


def test_each_trial_of_a_search_has_the_objective(world: Path, tmp_path: Path) -> None:
    trainer = TokenLossTrainer(
        None, arguments(tmp_path, max_steps=1), token_loss=GEMLoss(), model_init=lambda: load(world / "tied"),
        train_dataset=dataset(world, [0] * 4),
    )  # fmt: skip
    first = trainer.model
    trainer.train()
    assert trainer.model is not first
    assert isinstance(getattr(trainer.model, LOSS_HEAD).loss, GEMLoss)


def test_a_batch_without_a_supervised_token_costs_nothing(world: Path, tmp_path: Path) -> None:
    row = dataset(world, [0])[0]
    nothing = row | {"labels": [-100] * len(row["labels"])}
    trainer = TokenLossTrainer(
        load(world / "tied"), arguments(tmp_path, max_grad_norm=0, per_device_train_batch_size=1), token_loss=TS2Loss(),
        train_dataset=[nothing, nothing, nothing, row, nothing, nothing, nothing, nothing],
    )  # fmt: skip
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[0] > 0
    assert losses[1] == 0


SETTINGS: dict[str, dict[str, Any]] = {
    "label_smoothing_factor: the loss is token_loss": {"label_smoothing_factor": 0.1},
    "torch_compile: ": {"torch_compile": True},
}


@pytest.mark.parametrize("message", SETTINGS)
def test_settings_under_which_it_would_be_another_loss(world: Path, tmp_path: Path, message: str) -> None:
    with refused(message):
        TokenLossTrainer(load(world / "tied"), arguments(tmp_path, **SETTINGS[message]), token_loss=TS2Loss())


def test_what_cannot_be_is_refused(world: Path, tmp_path: Path) -> None:
    def make(model: Any = None, loss: Any = None, **settings: Any) -> TokenLossTrainer:
        model = model or load(world / "tied")
        return TokenLossTrainer(model, arguments(tmp_path), token_loss=loss or TS2Loss(), **settings)

    with refused("token_loss: expected a TokenLoss, such as TS2Loss"):
        make(loss="TS2Loss")
    with refused("token_loss: expected a TokenLoss, such as TS2Loss.., got the class TS2Loss; call it"):
        make(loss=TS2Loss)
    with refused("engine: expected a LossEngine, such as ChunkedEngine.., got 'chunked'"):
        make(engine="chunked")
    with refused("unknown statistics: entropi; known: cross_entropy, entropy"):
        make(statistics=["entropi"])
    with refused("statistics: expected names, such as .'entropy'., got the text 'entropy'"):
        make(statistics="entropy")
    with refused("compute_loss_func: expected a TokenLoss, such as TS2Loss.., got 'TS2Loss'"):
        compute_loss_func("TS2Loss")  # type: ignore[arg-type]
    with refused("engine: expected a LossEngine"):
        compute_loss_func(TS2Loss(), engine="chunked")  # type: ignore[arg-type]
    with refused(r"Late: Trainer stands before TokenLossMixin .* write class Late\(TokenLossMixin, Trainer\)"):
        type("Late", (Trainer, TokenLossMixin), {})
    with refused("compute_loss_func: the loss is token_loss"):
        make(compute_loss_func=compute_loss_func(TS2Loss()))
    with refused("token_loss: ReferenceAnchored needs a reference model"):
        make(loss=ReferenceAnchored())
    with refused("compute_loss_func: ReferenceAnchored needs a reference model"):
        compute_loss_func(ReferenceAnchored())
    with refused("peft_config: PREFIX_TUNING adds tokens that have no label; use LoRA"):
        make(get_peft_model(load(world / "tied"), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)))
    mixture = MixtralConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, output_router_logits=True,
    )  # fmt: skip
    with refused("config.output_router_logits: the routers' loss is not added here"):
        make(AutoModelForCausalLM.from_config(mixture))
    ids = torch.arange(6)[None]
    trainer = make()
    with refused("the batch has no labels, it has input_ids"):
        trainer.compute_loss(trainer.model, {"input_ids": ids})
    vocabulary = trainer.model.config.vocab_size
    with refused(f"labels: expected 0 to {vocabulary - 1}, or -100 .* got {vocabulary}"):
        trainer.compute_loss(trainer.model, {"input_ids": ids, "labels": torch.full_like(ids, vocabulary)})
    trainer.model.forward = LlamaForCausalLM.forward.__get__(trainer.model)
    with refused("something has replaced the model's forward"):
        trainer.compute_loss(trainer.model, {"input_ids": ids, "labels": ids})


class SettingsOfRanks:
    """What a trainer of several ranks has of settings, without the ranks."""

    def __init__(self, **changes: Any) -> None:
        arguments = {
            "label_smoothing_factor": 0, "world_size": 2, "average_tokens_across_devices": True, "n_gpu": 1,
            "torch_compile": False,
        }  # fmt: skip
        sizes = SimpleNamespace(tp_size=changes.pop("tp_size", 1), cp_size=changes.pop("cp_size", None), sp_size=1)
        self.is_fsdp_enabled = changes.pop("fsdp", False)
        self.args = SimpleNamespace(**{**arguments, **changes})
        self.accelerator = SimpleNamespace(parallelism_config=sizes)
        self.compute_loss_func = None
        self.model = LlamaForCausalLM(
            LlamaConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fsdp": True}, "fsdp: not under a trainer's FSDP"),
        ({"average_tokens_across_devices": False}, "average_tokens_across_devices: set it to True"),
        ({"tp_size": 2, "cp_size": 4}, "parallelism_config: .* got tp_size=2, cp_size=4; leave it out"),
        ({"n_gpu": 2}, "nn.DataParallel has copies of the model"),
        ({"torch_compile": True}, "torch_compile: the loss is not compiled"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor: the loss is token_loss"),
        ({"loss_type": "dft"}, "loss_type: the loss is token_loss, got dft"),
        ({"world_size": 1, "average_tokens_across_devices": False}, None),
        ({"loss_type": "nll"}, None),
    ],
)
def test_settings_under_which_the_loss_would_be_another(changes: dict[str, Any], message: str | None) -> None:
    class Trained(TokenLossMixin, SettingsOfRanks):
        pass

    if message is None:
        Trained(token_loss=TS2Loss(), **changes)
        return
    with refused(message):
        Trained(token_loss=TS2Loss(), **changes)


def test_labels_that_are_shifted_already(world: Path, tmp_path: Path) -> None:
    trainer = TokenLossTrainer(load(world / "tied"), arguments(tmp_path), token_loss=TS2Loss())
    ids = torch.arange(6)[None]
    shifted = torch.tensor([[1, 2, 3, 4, 5, -100]])
    one, other = (
        trainer.compute_loss(trainer.model, {"input_ids": ids} | labels)
        for labels in ({"labels": ids}, {"shift_labels": shifted})
    )
    assert one.item() == other.item()


def test_a_loss_of_the_users_own(world: Path, tmp_path: Path) -> None:
    class Squares(TokenLoss):
        def evaluate(self, rows: Any) -> Any:
            return CrossEntropyLoss().evaluate(rows)

    class Own(TokenLossMixin, Trainer):
        pass

    found = train(world, tmp_path, Squares(), load(world / "tied"), ALL_ROWS[:4], Own, statistics=())
    assert found["logged"][1].keys() & {"train/entropy", "train/support_size"} == set()
