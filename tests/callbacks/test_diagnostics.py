"""The diagnostics against plain formulas on whole logits, and under every strategy against one process."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler
from matplotlib.image import imread
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.callbacks import diagnostics_runs
from tests.callbacks.diagnostics_runs import PROMPTS, TSPD, VALIDATION
from tests.metrics.plain import of_all
from tests.support.errors import refused
from tests.support.ranks import launch
from tests.support.training import make_trainer
from ts2_lightning.callbacks import Checkpoints, DistributionMonitor, SampleGenerations
from ts2_lightning.callbacks.reference_drift import ReferenceFile
from ts2_lightning.callbacks.tensorboard_tabs import diagnostics_layout
from ts2_lightning.data import SFTData
from ts2_lightning.losses import TS2Loss
from ts2_lightning.modules import AdapterConfig, LanguageModelConfig, SFTModule
from ts2_lightning.modules.distance import squared_distance, start_weights
from ts2_lightning.modules.language_model import load_language_model
from ts2_lightning.types import UserError

STRATEGIES = ("ddp", "zero2", "zero3", "fsdp2", "fsdp2_tp2")
VARYING = ("throughput/", "train/supervised_tokens_per_second", "train/peak_memory_gb", "train/padding")


class Witness(Callback):
    """Keeps the logits of every supervised token as the model itself gives them, before the step changes it."""

    def __init__(self) -> None:
        self.steps: dict[int, list[dict[str, Tensor]]] = {}
        self.validation: list[list[dict[str, Tensor]]] = [[] for _ in VALIDATION]

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.steps.setdefault(trainer.global_step + 1, []).append(read(module, batch))

    def on_validation_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.validation[dataloader_idx].append(read(module, batch))


@torch.no_grad()
def read(module: Any, batch: Any) -> dict[str, Tensor]:
    logits = module.language_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    kept = {name: batch[name].clone() for name in ("labels", "positions", "row_spans", "row_index")}
    return {"logits": logits.flatten(0, 1)[batch["supervised"]], **kept}


@pytest.fixture(scope="module")
def alone(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Witness, Path]:
    directory = tmp_path_factory.mktemp("alone")
    module, _, memory = diagnostics_runs.run(world, directory, more=[witness := Witness()])
    return module, memory, witness, directory


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return next(v for i, v in enumerate(ordered, start=1) if i / len(ordered) >= share - 1e-12)


def by_hand(batches: list[dict[str, Tensor]], kinds: dict[int, str]) -> dict[str, float]:
    """Everything that the monitor logs, token by token in Python's floats, from whole logits."""
    logits = torch.cat([batch["logits"] for batch in batches])
    labels = torch.cat([batch["labels"] for batch in batches])
    positions = torch.cat([batch["positions"] for batch in batches]).tolist()
    columns = {name: values.tolist() for name, values in of_all(logits, labels).items()}
    for setting in TSPD:
        columns[setting.name] = tspd(logits, labels, setting)
    found = {name: sum(values) / len(values) for name, values in columns.items()}
    for name in ("support_size", "gold_rank"):
        found[f"{name}_p50"] = quantile(columns[name], 0.5)
        found[f"{name}_p90"] = quantile(columns[name], 0.9)
    groups: dict[str, list[int]] = {}
    for i, (position, label) in enumerate(zip(positions, labels.tolist(), strict=True)):
        place = "1" if position == 1 else "2-3" if position < 4 else "4-"
        groups.setdefault(f"position {place}", []).append(i)
        groups.setdefault(f"token_class {'first' if position == 1 else kinds[label]}", []).append(i)
    for group, members in groups.items():
        kind, name = group.split()
        found[f"by_{kind}/share/{name}"] = len(members) / len(positions)
        for key, values in columns.items():
            found[f"by_{kind}/{key}/{name}"] = sum(values[i] for i in members) / len(members)
    return found


def tspd(logits: Tensor, labels: Tensor, setting: Any) -> list[float]:
    """TS2, definition 1, by sorting each row."""
    found = []
    for z, y in zip(logits.double(), labels.tolist(), strict=True):
        p = z.softmax(-1)
        order = p.argsort(descending=True, stable=True).tolist()
        chosen = order[: setting.m] if y in order[: setting.m] else [*order[: setting.m - 1], y]
        outside = p.sum() - p[chosen].sum()
        found.append(float(p[chosen].min() >= setting.eps_head and outside <= setting.eps_tail))
    return found


@pytest.fixture(scope="module")
def kinds(world: Path) -> dict[int, str]:
    """The kind of every token, from the words themselves."""
    tokenizer = AutoTokenizer.from_pretrained(world / "untied")
    words = {i: tokenizer.convert_ids_to_tokens(i) for i in range(len(tokenizer))}
    return {
        i: "end" if word == "<|end|>" else "digits" if word.isdigit() else "words" if word.isalpha() else "other"
        for i, word in words.items()
    }


def check(logged: dict[str, float], stage: str, wanted: dict[str, float], of_set: str = "") -> None:
    """Under `val/KEY`, `val_by_KIND/KEY/GROUP`; of a set under `val/SET/KEY`, `val_by_KIND/SET/KEY/GROUP`."""
    names = {}
    for key in wanted:
        kind, _, rest = key.partition("/") if key.startswith("by_") else ("", "", key)
        names["/".join(part for part in (f"{stage}_{kind}" if kind else stage, of_set, rest) if part)] = key
    assert names.keys() <= logged.keys()
    for name, key in names.items():
        assert logged[name] == pytest.approx(wanted[key], rel=2e-5, abs=1e-6), name


def groups_of(names: Iterable[str]) -> set[str]:
    return {name for name in names if "_by_" in name and "objective" not in name}


def test_the_monitor_is_exact(alone: tuple[Any, Any, Witness, Path], kinds: dict[int, str]) -> None:
    """Over all micro-batches of a step, and over a validation."""
    _, memory, witness, _ = alone
    assert [len(witness.steps[step]) for step in (1, 2)] == [4, 4]  # the second step has three rows
    for step in (1, 2):
        check(memory.steps[step], "train", wanted := by_hand(witness.steps[step], kinds))
        groups = {f"train_{name}" for name in wanted if name.startswith("by_")}
        assert {name for name in groups_of(memory.steps[step]) if name.startswith("train_")} == groups
    check(memory.steps[2], "val", by_hand([*chain(*witness.validation)], kinds))
    for name, batches in zip(VALIDATION, witness.validation, strict=True):
        check(memory.steps[2], "val", by_hand(batches, kinds), name)
        assert memory.steps[2][f"val/{name}/perplexity"] == pytest.approx(
            math.exp(memory.steps[2][f"val/{name}/cross_entropy"])
        )
    logged = {name for name in memory.steps[2] if name.startswith("val")}
    of_all = {name for name in logged if not any(f"/{of_set}/" in name for of_set in VALIDATION)}
    for of_set in VALIDATION:
        assert {name.replace(f"/{of_set}/", "/", 1) for name in logged if f"/{of_set}/" in name} == of_all
    assert {name for name in memory.steps[1] if "tspd" in name and "_by_" not in name} == {
        f"train/{setting.name}" for setting in TSPD
    }


def test_a_test_is_measured_as_a_validation_is(world: Path, tmp_path: Path) -> None:
    model = str(world / "untied")
    rows = str(world / "validation.jsonl")
    data = SFTData(train=rows, validation=rows, test=rows, tokenizer=model, limit_validation=6, limit_test=6)
    found = []
    for stage in ("validate", "test"):
        trainer = make_trainer(tmp_path, devices=1, callbacks=[DistributionMonitor(tspd=TSPD)])
        getattr(trainer, stage)(SFTModule(LanguageModelConfig(model), TS2Loss()), data, verbose=False)
        found.append({name.partition("/")[2]: value.item() for name, value in trainer.callback_metrics.items()})
    assert "zero_gradient" in found[0]
    assert found[1] == found[0]


def test_histograms_are_exact(alone: tuple[Any, Any, Witness, Path]) -> None:
    _, _, witness, directory = alone
    lines = [json.loads(line) for line in (directory / "histograms.jsonl").read_text().splitlines()]
    written = {(step, "train"): witness.steps[step] for step in (1, 2)}
    written[2, "val"] = [*chain(*witness.validation)]
    written |= {(2, f"val/{name}"): rows for name, rows in zip(VALIDATION, witness.validation, strict=True)}
    assert len(lines) == 2 * len(written)
    for (step, prefix), batches in written.items():
        for name in ("support_size", "gold_rank"):
            [line] = [x for x in lines if x["step"] == step and x["name"] == f"{prefix}/{name}"]
            columns = [of_all(batch["logits"], batch["labels"])[name] for batch in batches]
            expected = Counter(str(int(value)) for value in torch.cat(columns).tolist())
            assert line["counts"] == dict(expected)


def test_drift_is_that_of_two_models(alone: tuple[Any, Any, Witness, Path], world: Path) -> None:
    module, memory, _, _ = alone
    trained, base = module.language_model, AutoModelForCausalLM.from_pretrained(world / "untied", dtype=torch.float32)
    pairs = list(zip(trained.parameters(), base.parameters(), strict=True))
    distance = sum(float((a.detach().double() - b.detach().double()).square().sum()) for a, b in pairs) ** 0.5
    assert distance > 0.01
    assert memory.steps[2]["drift/weights"] == pytest.approx(distance, rel=1e-5)
    kl, l2, tokens = 0.0, 0.0, 0
    batches = module.trainer.datamodule.fixed_batches("validation", 40)
    with torch.no_grad():
        for batch in batches:
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            p0, p = (
                model(**inputs).logits.double().flatten(0, 1)[batch["supervised"]].softmax(-1)
                for model in (base, trained.eval())
            )
            kl += float((p0 * (p0 / p).log()).sum())
            l2 += float((p0 - p).norm(dim=-1).sum())
            tokens += len(p)
    trained.train()
    assert tokens >= 40
    assert memory.steps[2]["drift/kl"] == pytest.approx(kl / tokens, rel=1e-3, abs=1e-7)
    assert memory.steps[2]["drift/l2"] == pytest.approx(l2 / tokens, rel=1e-4)


def test_the_picture_has_the_distributions_of_two_models(alone: tuple[Any, Any, Witness, Path], world: Path) -> None:
    """At the first token behind the opening of the answer, before training and after it."""
    module, _, _, directory = alone
    template = module.trainer.datamodule.template
    base = AutoModelForCausalLM.from_pretrained(world / "untied", dtype=torch.float32)
    start, latest = diagnostics_runs.pictured(module.trainer)
    assert (start - latest).abs().max() > 1e-3
    for number, prompt in enumerate(PROMPTS):
        ids = torch.tensor([template.render_prompt([{"role": "user", "content": prompt}], "the answer is")])
        for model, p in ((base, start), (module.language_model.eval(), latest)):
            with torch.no_grad():
                wanted = model(ids).logits[0, -1].softmax(-1)
            torch.testing.assert_close(p[number], wanted, rtol=1e-4, atol=1e-7)
        assert imread(directory / f"next_token/{number}.png").shape[-1] == 3
    module.language_model.train()


def test_every_chart_of_tensorboards_page_has_a_line(alone: tuple[Any, Any, Witness, Path]) -> None:
    _, memory, *_ = alone
    names = set(memory.steps[2])
    layout = diagnostics_layout(["position", "token_class"], has_tspd=True)
    empty = {
        (category, title)
        for category, charts in layout.items()
        for title, (_, tags) in charts.items()
        if not any(re.match(tag, name) for tag in tags for name in names)
    }
    assert not empty


def test_throughput_counts(alone: tuple[Any, Any, Witness, Path]) -> None:
    _, memory, witness, _ = alone
    for step in (1, 2):
        logged = memory.steps[step]
        seconds = sum(logged[f"throughput/{part}_seconds"] for part in ("data", "step", "logging"))
        assert all(logged[f"throughput/{part}_seconds"] > 0 for part in ("data", "step", "logging"))
        spans = torch.cat([b["row_spans"][b["row_index"] >= 0] for b in witness.steps[step]])
        lengths = (spans[:, 1] - spans[:, 0]).double()
        assert logged["throughput/tokens_per_second"] == pytest.approx(lengths.sum().item() / seconds, rel=1e-5)
        # 32 wide, 48 in the middle, keys and values of half the width, two layers; see `steps.SIZES`
        layer = 32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 48
        supervised = sum(len(batch["labels"]) for batch in witness.steps[step])
        flops = 6 * 2 * layer * lengths.sum() + 6 * 32 * 428 * supervised + 12 * 32 * 2 * lengths.square().sum() / 2
        assert logged["throughput/mfu"] == pytest.approx(float(flops) / (1e9 * seconds), rel=1e-5)


def test_samples_are_written(alone: tuple[Any, Any, Witness, Path]) -> None:
    _, memory, _, directory = alone
    lines = [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]
    assert [(line["step"], line["prompt"]) for line in lines] == [(s, p) for s in (0, 1, 2) for p in PROMPTS]
    assert all(len(line["samples"]) == 2 for line in lines)
    for step in (0, 1, 2):
        assert 0 <= memory.steps[step]["samples/distinct"] <= 1
        assert 0 <= memory.steps[step]["samples/self_bleu"] <= 100
        assert 1 <= memory.steps[step]["samples/tokens"] <= 6


def test_a_resumed_run_goes_on_with_the_base_of_before(
    alone: tuple[Any, Any, Witness, Path], world: Path, tmp_path: Path
) -> None:
    """One step, then the second in a new process's state: the same numbers and files as of two steps at once."""
    module, whole, _, directory = alone
    diagnostics_runs.run(world, tmp_path, more=[Checkpoints(str(tmp_path / "checkpoints"))], max_steps=1)
    line = '{"step": 2, "prompt": "of a run that was killed"}\n'
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write(line)
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    _, trainer, memory = diagnostics_runs.run(world, tmp_path, checkpoint=checkpoint)
    for name in ("drift/kl", "drift/l2", "drift/weights", "samples/mean_probability"):
        assert memory.steps[2][name] == pytest.approx(whole.steps[2][name], rel=1e-4), name
    assert (tmp_path / "samples.jsonl").read_text() == (directory / "samples.jsonl").read_text()
    assert torch.equal(diagnostics_runs.pictured(trainer)[0], diagnostics_runs.pictured(module.trainer)[0])
    (tmp_path / "reference" / "about.json").unlink()
    with pytest.raises(UserError, match=r"did not begin with it .*; set tokens to 0, or begin a new run"):
        diagnostics_runs.run(world, tmp_path, checkpoint=checkpoint)


def test_a_reference_of_other_rows_is_refused(tmp_path: Path) -> None:
    def batch(label: int) -> dict[str, Tensor]:
        return {"input_ids": torch.ones(1, 3).long(), "supervised": torch.tensor([1]), "labels": torch.tensor([label])}

    reference = ReferenceFile(tmp_path, [batch(2)])
    reference.write(torch.randn(1, 5), torch.tensor([2]))
    reference.finish(True)
    assert ReferenceFile(tmp_path, [batch(2)]).trouble() == ""
    assert "of other validation rows" in ReferenceFile(tmp_path, [batch(3)]).trouble()


@pytest.mark.parametrize(
    ("prompts", "message"), [([], "prompts must not be empty"), ("no/such/file.txt", "no file no/such/file.txt")]
)
def test_prompts_that_are_none(prompts: Any, message: str) -> None:
    with refused(message):
        SampleGenerations(prompts)


def test_prompts_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("name a fruit\n\nwhy ?\n")
    assert SampleGenerations(str(tmp_path / "prompts.txt")).prompts == ["name a fruit", "why ?"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"adapter": AdapterConfig(r=2)}, "has an adapter"), ({"init": "random"}, "init is random")],
)
def test_a_start_that_is_in_no_file_is_refused(settings: dict[str, Any], message: str, world: Path) -> None:
    config = LanguageModelConfig(str(world / "untied"), **settings)
    with pytest.raises(UserError, match=rf"{message}.*weights: false"):
        start_weights(config, load_language_model(config))


def test_tied_weights_count_once(world: Path) -> None:
    config = LanguageModelConfig(str(world / "tied"))
    model = load_language_model(config)
    start = start_weights(config, model)
    assert squared_distance(model, start).item() == 0
    with torch.no_grad():
        model.get_input_embeddings().weight += 0.5
    expected = 0.25 * model.get_output_embeddings().weight.numel()
    assert squared_distance(model, start).item() == pytest.approx(expected, rel=1e-5)


def test_the_profiler_is_given_back(alone: tuple[Any, Any, Witness, Path]) -> None:
    module, *_ = alone
    assert isinstance(module.trainer.profiler, PassThroughProfiler)


@pytest.fixture(scope="module")
def two_ranks(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two_ranks")
    launch("tests.callbacks.diagnostics_runs", world, out, *STRATEGIES, timeout=400)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_log_what_one_does(strategy: str, two_ranks: Path, alone: tuple[Any, Any, Witness, Path]) -> None:
    """The statistics, the drift, the samples and what is pictured; one launch for all strategies."""
    module, memory, _, directory = alone
    found = torch.load(two_ranks / strategy / "logged.pt")
    for step, wanted in memory.steps.items():
        assert found[step].keys() == wanted.keys()
        for name, value in wanted.items():
            if not name.startswith(VARYING):
                assert found[step][name] == pytest.approx(value, rel=2e-3, abs=2e-5), (step, name)
    samples = [(two_ranks / strategy / "samples.jsonl"), directory / "samples.jsonl"]
    texts = [[[s["text"] for s in json.loads(x)["samples"]] for x in path.read_text().splitlines()] for path in samples]
    assert texts[0] == texts[1]
    assert (two_ranks / strategy / "histograms.jsonl").read_text() == (directory / "histograms.jsonl").read_text()
    found = torch.load(two_ranks / strategy / "pictured.pt")
    torch.testing.assert_close(found, diagnostics_runs.pictured(module.trainer), rtol=2e-3, atol=2e-5)
