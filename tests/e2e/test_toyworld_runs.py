"""`fit`, `validate`, `test` and `predict` on the toy world's rows, with a model of random weights."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests.e2e.command_line import CommandLine, column, json_lines
from tests.reference import sparsemax
from ts2_lightning.types import TOKEN_STATISTICS

SHORT = ("--data.limit_train=32", "--data.limit_validation=20", "--trainer.max_epochs=1")  # four steps
RUN = Path("runs/quickstart/1")
LOSSES = '''
from ts2_lightning.losses import ValueLoss


class Focal(ValueLoss):
    """Cross-entropy that cares less for what is learnt."""

    def __init__(self, gamma: float = 2.0):
        self.gamma = gamma

    def value(self, logits, labels):
        log_p = logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
        return -(1 - log_p.exp()) ** self.gamma * log_p


class Exploding(ValueLoss):
    """Becomes infinite with its third batch."""

    def __init__(self):
        self.calls = 0

    def value(self, logits, labels):
        self.calls += 1
        return logits.sum(-1) * (float("nan") if self.calls == 3 else 1e-3)
'''
CALLBACKS = """
import torch
from lightning.pytorch import Callback


class KeepWeights(Callback):
    '''Writes the weights after every step, and those that an error left.'''

    def on_train_batch_end(self, trainer, module, *args):
        torch.save(module.language_model.state_dict(), f"after-{trainer.global_step}.pt")

    def on_exception(self, trainer, module, exception):
        torch.save(module.language_model.state_dict(), "after-error.pt")
"""


def config_of(run: Path = RUN) -> dict[str, Any]:
    return dict(yaml.safe_load((run / "config.yaml").read_text()))


def exported(run: Path = RUN) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(run / "export")
    return model.eval()


def test_fit_validate_test_and_predict(ts2: CommandLine) -> None:
    ts2.toy("fit", *SHORT).done()
    check_what_a_fit_leaves()
    checkpoint = ("--ckpt_path", str(RUN / "checkpoints" / "last.ckpt"))
    limits = ("--data.limit_validation=20", "--data.limit_test=20", "--data.limit_predict=5")
    results = {}
    for command in ("validate", "test"):
        ts2.toy(command, *limits, *checkpoint).done()
        results |= json.loads((RUN / command / "1" / "metrics.json").read_text())
    assert results["val/cross_entropy"] == pytest.approx(column(RUN, "val/cross_entropy")[4], rel=1e-6)
    model, tokenizer = exported(), AutoTokenizer.from_pretrained(RUN / "export")
    for name, source in (("val", "validation"), ("test", "test")):
        assert results[f"{name}/cross_entropy"] == pytest.approx(
            plain_cross_entropy(model, tokenizer, source), rel=1e-5
        )
    sets = ("--data.validation.seen=toyworld:validation", "--data.validation.unseen=toyworld:test")
    ts2.toy("validate", *limits, *sets, *checkpoint).done()
    both = json.loads((RUN / "validate" / "2" / "metrics.json").read_text())
    parts = [both[f"val/{name}/cross_entropy"] for name in ("seen", "unseen")]
    assert parts == pytest.approx([results["val/cross_entropy"], results["test/cross_entropy"]], rel=1e-6)
    assert min(parts) < both["val/cross_entropy"] < max(parts)
    assert results["test/perplexity"] == pytest.approx(math.exp(results["test/cross_entropy"]), rel=1e-6)
    ts2.toy("predict", *limits, *checkpoint).done()
    check_predictions(model, tokenizer)


def check_what_a_fit_leaves() -> None:
    assert list(column(RUN, "train/objective")) == [1, 2, 3, 4]
    for name in ("objective", "cross_entropy", "gradient_norm", "learning_rate", *TOKEN_STATISTICS):
        assert all(math.isfinite(value) for value in column(RUN, f"train/{name}").values()), name
        assert len(column(RUN, f"train/{name}")) == 4
    assert column(RUN, "train/supervised_tokens_per_second")[4] > 0
    assert 0.05 < column(RUN, "train/peak_memory_gb")[4] < 50
    record = json.loads((RUN / "data.json").read_text())
    assert record["splits"]["train"]["supervised_tokens"] > 100
    assert {path.name for path in (RUN / "checkpoints").iterdir()} == {"step-000004.ckpt", "best.ckpt", "last.ckpt"}
    state = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    weights = load_file(RUN / "export" / "model.safetensors")
    for name, weight in weights.items():
        assert torch.equal(state[f"network.language_model.{name}"], weight), name


def conversations(source: str) -> list[list[dict[str, str]]]:
    from ts2_lightning.toyworld import resolve_source

    return [row["messages"] for row in json_lines(resolve_source(f"toyworld:{source}"))]


def plain_logits(model: PreTrainedModel, tokenizer: Any, messages: list[dict[str, str]]) -> tuple[Any, Any]:
    """Logits and gold tokens of the answer of a conversation with one turn, through the chat template."""
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert whole[: len(prompt)] == prompt
    assert whole[-1] == tokenizer.eos_token_id
    ids = torch.tensor(whole)
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1].double()
    return logits, ids[len(prompt) :]


def plain_cross_entropy(model: PreTrainedModel, tokenizer: Any, source: str) -> float:
    pairs = [plain_logits(model, tokenizer, messages) for messages in conversations(source)[:20]]
    losses = [torch.nn.functional.cross_entropy(*pair, reduction="sum") for pair in pairs]
    return (torch.stack(losses).sum() / sum(len(labels) for _, labels in pairs)).item()


def check_predictions(model: PreTrainedModel, tokenizer: Any) -> None:
    rows = json_lines(RUN / "predict" / "1" / "predictions.jsonl")
    assert [row["row"] for row in rows] == [0, 1, 2, 3, 4]
    for row, messages in zip(rows, conversations("test"), strict=False):
        logits, gold = plain_logits(model, tokenizer, messages)
        assert row["token"] == gold.tolist()
        assert row["position"] == list(range(1, len(gold) + 1))
        p, support = logits.softmax(-1), sparsemax(logits) > 0
        mine = p.gather(-1, gold[:, None])[:, 0]
        wanted = {
            "gold_probability": mine,
            "cross_entropy": -mine.log(),
            "entropy": -(p * p.log()).sum(-1),
            "support_size": support.sum(-1).double(),
            "gold_in_support": support.gather(-1, gold[:, None])[:, 0].double(),
            "tail_mass": (p * ~support).sum(-1),
            "top1": p.topk(3).values[:, 0],
            "top3": p.topk(3).values[:, 2],
        }
        for name, values in wanted.items():
            assert row[name] == pytest.approx(values.tolist(), rel=1e-4, abs=1e-6), name


def test_a_loss_in_a_file_of_the_user(ts2: CommandLine) -> None:
    Path("focal_losses.py").write_text(LOSSES)
    ts2.toy("fit", *SHORT, "--model.loss=focal_losses.Focal", "--model.loss.gamma=1.5").done()
    wanted = {"class_path": "focal_losses.Focal", "init_args": {"gamma": 1.5}}
    assert config_of()["model"]["loss"] == wanted
    objective, plain = column(RUN, "train/objective"), column(RUN, "train/cross_entropy")
    assert all(0 < objective[step] < plain[step] for step in (1, 2, 3, 4))
    # At random weights p = 1 / 428 nearly, so the focal factor is (1 - p) ** 1.5.
    assert objective[1] == pytest.approx(plain[1] * (1 - 1 / 428) ** 1.5, rel=1e-3)


def test_a_loss_by_its_bare_name(ts2: CommandLine) -> None:
    ts2.toy("fit", *SHORT, "--model.loss", "TS2Loss", "--model.loss.alpha", "0.5", "--trainer.max_steps=1").done()
    recorded = config_of()["model"]["loss"]
    assert recorded["class_path"].endswith("TS2Loss")
    assert recorded["init_args"]["alpha"] == 0.5
    parts = [column(RUN, f"train/objective/{part}")[1] for part in ("sparsemax", "tail_suppression")]
    assert column(RUN, "train/objective")[1] == pytest.approx(sum(parts), rel=1e-6)
    ts2.toy("fit", *SHORT, "--model.loss", "TS2Loss", "--model.loss.alpha", "0.25", "--trainer.max_steps=1").done()
    quarter = column("runs/quickstart/2", "train/objective/tail_suppression")[1]
    assert parts[1] == pytest.approx(2 * quarter, rel=1e-5)


def test_a_printed_config_gives_the_same_run(ts2: CommandLine) -> None:
    answer = ts2.toy("fit", *SHORT, "--model.loss=CrossEntropyLoss", "--print_config").done()
    assert not Path("runs").exists()
    Path("printed.yaml").write_text(answer.out)
    assert yaml.safe_load(answer.out)["data"]["limit_train"] == 32
    ts2.toy("fit", *SHORT, "--model.loss=CrossEntropyLoss").done()
    ts2("fit", "-c", "printed.yaml").done()
    assert column("runs/printed/1", "train/objective") == column(RUN, "train/objective")
    first, second = config_of(), config_of(Path("runs/printed/1"))
    assert {**first, "name": None} == {**second, "name": None}


def test_a_gradient_that_is_not_finite_stops_before_the_update(ts2: CommandLine) -> None:
    Path("my_exploding_losses.py").write_text(LOSSES)
    Path("my_callbacks.py").write_text(CALLBACKS)
    answer = ts2.toy(
        "fit", *SHORT, "--model.loss=my_exploding_losses.Exploding", "--trainer.callbacks+=my_callbacks.KeepWeights"
    )
    assert answer.status == 2
    errors = [line for line in answer.err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert errors[0].startswith("error: step 3: the loss is not finite among rows ")
    assert "stopped before the update, the weights are those of the step before. " in errors[0]
    assert "Traceback" not in answer.err
    before, after = (torch.load(f"after-{name}.pt") for name in ("2", "error"))
    assert not Path("after-3.pt").exists()
    for name, weight in before.items():
        assert torch.isfinite(weight).all(), name
        assert torch.equal(weight, after[name]), name
    assert not torch.equal(before["model.norm.weight"], torch.load("after-1.pt")["model.norm.weight"])
    assert not (RUN / "export").exists()


def test_only_time_ends_the_run(ts2: CommandLine) -> None:
    constant = ("--model.schedule.name=constant", "--model.schedule.warmup_steps=0")
    time = ("--trainer.max_epochs=-1", "--trainer.max_time=00:00:00:02")
    answer = ts2.toy("fit", *SHORT[:2], *time)
    assert answer.status == 2
    assert "needs its number of steps" in answer.err
    ts2.toy("fit", *SHORT[:2], *time, *constant).done()
    assert column("runs/quickstart/1", "train/objective"), "no step in the time given"
