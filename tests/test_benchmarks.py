"""Benchmarks measure what they say, side by side, and their results say where they come from."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import __main__ as every
from benchmarks import data_pipeline, diagnostics, memory_loading, record, sandbox, startup, training_step
from benchmarks import loss_engine as benchmark
from ts2_lightning.engines import FullEngine
from ts2_lightning.losses import EntmaxLoss, GEMLoss, SparsemaxLoss, TokenLoss, TS2Loss
from ts2_lightning.runs.stamps import revision
from ts2_lightning.toyworld import write_blank_model

COMPILED = [name for name in benchmark.SUBJECTS if name.endswith(", compiled")]


@pytest.mark.parametrize("name", [name for name in benchmark.SUBJECTS if name not in COMPILED])
def test_a_subject_takes_a_step(name: str) -> None:
    head, hidden, labels = benchmark.inputs((6, 4, 300))
    benchmark.step(benchmark.SUBJECTS[name], head, hidden, labels)
    assert torch.isfinite(hidden.grad).all()
    assert torch.isfinite(head.weight.grad).all()


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("public TS2", TS2Loss(tail_mass_cap=0.99)),
        ("public GEM", GEMLoss()),
        ("entmax's sparsemax", SparsemaxLoss()),
        ("entmax's 1.5", EntmaxLoss(1.5)),
        ("entmax's 1.25, bisection", EntmaxLoss(1.25)),
    ],
)
def test_both_sides_of_a_ratio_compute_the_same(name: str, loss: TokenLoss) -> None:
    head, hidden, labels = benchmark.inputs((12, 8, 300))
    gradients = []
    for objective in (benchmark.SUBJECTS[name], benchmark.with_engine(FullEngine(), loss)):
        benchmark.step(objective, head, hidden, labels)
        gradients.append(head.weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_the_readme_has_the_table_of_the_figures() -> None:
    root = Path(__file__).resolve().parents[1]
    figures = json.loads((root / "benchmarks/results/loss_engine_cpu.json").read_text())
    assert benchmark.table(figures, benchmark.IN_README) in (root / "README.md").read_text()


def test_the_monitor_takes_its_turns() -> None:
    rows = diagnostics.measure(TS2Loss(), diagnostics.QUICK, rounds=2, threads=1)
    assert rows.keys() == {*diagnostics.MODES, "thinned"}
    assert all(row["processor_seconds"] > 0 for row in rows.values())
    assert rows["off"]["to_off"] == rows["off"]["to_off_p75"] == 1


def test_a_thinned_monitor_follows_from_its_two_kinds_of_steps() -> None:
    rounds = [{"off": 10.0, "left_out": 10.0, "means": 11.0, "full": 20.0}, dict.fromkeys(diagnostics.MODES, 5.0)]
    rows = diagnostics.summary([turn for one in rounds for turn in one.items()])
    assert rows["thinned"]["processor_seconds"] == (11.0 + 5.0) / 2
    assert rows["thinned"]["to_off"] == (1.1 + 1.0) / 2
    assert rows["full"]["to_off_p25"] == 1.25


@pytest.mark.parametrize("training", training_step.TRAININGS)
def test_loops_take_their_turns_in_a_training(
    training: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TS2_CACHE_DIR", str(cache))
    monkeypatch.setattr(training_step, "WARM_UP", 1)
    write_blank_model(tmp_path)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path)).save_pretrained(tmp_path)
    turns = training_step.measure(training, str(tmp_path), steps=3)
    assert {name: len(of_name) for name, of_name in turns.items()} == {"plain": 3, "engine": 3, training: 3}
    table = training_step.summary(turns)
    assert table["plain"]["to_plain"] == table["plain"]["to_plain_p75"] == 1
    assert all(mine > 0 and plain > 0 for of_name in turns.values() for mine, plain in of_name)


def test_a_start_is_compared_with_importing_torch() -> None:
    rows = startup.summary({startup.UNIT: [2.0, 1.0, 9.0], "losses": [3.0, 3.0, 2.0]})
    assert rows["losses"]["processor_seconds"] == 3.0
    assert rows["losses"]["to_import_torch"] == 1.5, "the ratio is that of each round"
    busy = [sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"]
    assert startup.processor_seconds(busy) >= 0.25


def test_the_sandbox_is_measured_on_programs_that_are_right(tmp_path: Path) -> None:
    rows = [
        {"task_id": str(number), "prompt": "def f():\n", "canonical_solution": f"    return {number}\n",
         "test": f"def check(g):\n    assert g() == {number}\n", "entry_point": "f"}
        for number in range(3)
    ]  # fmt: skip
    file = tmp_path / "rows.jsonl.gz"
    with gzip.open(file, "wt") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    programs = sandbox.read_programs(file)
    rows_of = sandbox.measure(programs, [1], rounds=1)
    assert rows_of.keys() == {sandbox.INTERPRETERS, "sandbox, workers: 1"}
    assert all(row["processor_seconds"] > 0 and row["per_second"] > 0 for row in rows_of.values())
    assert rows_of[sandbox.INTERPRETERS]["to_interpreters"] == 1
    assert "seccomp" in sandbox.layers_here()
    assert list(sandbox.fresh_interpreters(programs)) == [True] * 3
    with pytest.raises(RuntimeError, match="1 of 3 right programs have not passed"):
        sandbox.turn(lambda: 2, 3)


def test_the_ways_to_load_are_compared_in_each_round() -> None:
    def ranks(private: float) -> list[dict[str, float]]:
        return [{"private": private, "mapped": 0.0, "kept": 1.0, "seconds": 2.0}] * 2

    rounds = [{"whole": ranks(2.0), "fsdp2": ranks(one), "zero3": ranks(2.0)} for one in (1.0, 1.0, 2.0)]
    row = memory_loading.summary(rounds)["fsdp2, rank 1"]
    assert (row["private"], row["private_to_whole"], row["private_to_whole_p75"]) == (1.0, 0.5, 0.75)
    assert row["seconds_to_whole"] == 1.0


def test_pipelines_are_compared_in_each_round() -> None:
    def turns(ours: float) -> dict[str, dict[str, float]]:
        names = {"ours": ours, "datasets.map": 2.0, "plain DataLoader": 2.0}
        return {
            f"{stage}: {name}": {"tokens": 10.0, "processor_seconds": seconds}
            for stage in ("tokenise", "start", "load")
            for name, seconds in names.items()
        }

    rounds = [turns(1.0), turns(2.0), turns(2.0)]
    assert data_pipeline.ratios(rounds)["load"] == {"to_theirs": 1.0, "to_theirs_p25": 0.75, "to_theirs_p75": 1.0}
    assert data_pipeline.summary(rounds)["load: ours"]["tokens_per_processor_second"] == 5


def test_every_benchmark_is_listed_and_has_a_command() -> None:
    titles = every.titles()
    results = {file.stem.removesuffix("_cpu") for file in (every.ROOT / "benchmarks" / "results").glob("*_cpu.json")}
    assert results <= titles.keys()
    assert all(titles.values())
    for name in titles.keys() - every.NEEDS_DATA.keys():
        words = every.command(name, "cpu")
        assert words is not None
        assert words[1:3] == ["-m", f"benchmarks.{name}"]
        assert words[-1].endswith(f"results/{name}_cpu.json")


def test_an_unknown_benchmark_gets_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--run", "trainingstep"])
    assert every.main() == 2
    assert capsys.readouterr().err == "error: unknown benchmark 'trainingstep'; did you mean training_step?\n"


# The rule over all benchmarks: who reads a figure learns where it comes from, and how sure it is.

COUNTED = ("memory_export", "traffic")
"""Benchmarks of bytes, of which every figure stands for itself."""

OF_A_GPU = ("gpu_check",)
"""Benchmarks that time a GPU, by its own clock, and write their figures part by part."""

RESULTS = sorted((every.ROOT / "benchmarks" / "results").glob("*.json"))


@pytest.mark.parametrize("name", every.titles())
def test_a_benchmark_keeps_its_record_and_takes_processor_time(name: str) -> None:
    text = (every.ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
    kept = r"\b(record\.)?write\((arguments|options|self)\.out, "
    assert re.search(kept, text), "its results lack machine and revision"
    if name not in COUNTED + OF_A_GPU:
        assert re.search(r"\b(spread|side_by_side)\(", text), "its ratios lack their spread"
        assert re.search(r"(process|thread)_time|processor_seconds\(", text), "it takes the time of the clock"


def ratios_without_spread(figures: Any) -> tuple[int, list[str]]:
    """How many ratios `to_...` some figures have, and the names of those without both quartiles."""
    if isinstance(figures, list):
        inside = [ratios_without_spread(one) for one in figures]
    elif isinstance(figures, dict):
        inside = [ratios_without_spread(one) for one in figures.values()]
        names = [name for name in figures if "to_" in name and not name.endswith(("_p25", "_p75"))]
        inside.append((len(names), [n for n in names if not {f"{n}_p25", f"{n}_p75"} <= figures.keys()]))
    else:
        return 0, []
    return sum(count for count, _ in inside), [name for _, missing in inside for name in missing]


def trouble_with(name: str, figures: dict[str, Any]) -> str:
    """What a file of results lacks; empty if nothing."""
    if missing := record.about().keys() - figures.keys():
        return f"no {sorted(missing)}"
    if missing := record.machine().keys() - figures["machine"].keys():
        return f"no {sorted(missing)} of the machine"
    if f"-m benchmarks.{name}" not in figures["command"]:
        return f"a command of another benchmark: {figures['command']}"
    count, without = ratios_without_spread(figures)
    if name not in COUNTED and (not count or without):
        return f"{count} ratios, without spread: {without}"
    return ""


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_results_say_where_they_come_from(file: Path) -> None:
    name = file.stem.rpartition("_")[0]
    assert trouble_with(name, json.loads(file.read_text(encoding="utf-8"))) == ""


def test_figures_that_a_benchmark_is_writing_are_no_change_of_its_code(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    (tmp_path / "results").mkdir()
    for name in ("results/a.json", "code.py"):
        (tmp_path / name).write_text("before")
    for words in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "first")):
        git(*words)
    (tmp_path / "results/a.json").write_text("after")
    flags = [(revision(tmp_path) or {})["dirty"], (revision(tmp_path, leave_out="results") or {})["dirty"]]
    assert flags == [True, False]
    (tmp_path / "code.py").write_text("after")
    assert (revision(tmp_path, leave_out="results") or {})["dirty"]


def test_results_without_their_record_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "startup_cpu.json"
    record.write(file, {"results": {"ours": record.spread("to_plain", [1.0, 1.5])}})
    whole = json.loads(file.read_text(encoding="utf-8")) | {"command": "python -m benchmarks.startup"}
    assert trouble_with("startup", whole) == ""
    assert trouble_with("sandbox", whole).startswith("a command of another")
    for field in ("command", "time", "machine", "versions", "revision"):
        assert trouble_with("startup", {k: v for k, v in whole.items() if k != field}) == f"no ['{field}']"
    single = whole | {"results": {"ours": {"to_plain": 1.0}}}
    assert trouble_with("startup", single) == "1 ratios, without spread: ['to_plain']"
    assert trouble_with("startup", whole | {"results": {}}) == "0 ratios, without spread: []"
