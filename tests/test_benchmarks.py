"""The benchmark measures what it says: its public formulas are our objectives, and every subject takes a step."""

import gzip
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import __main__ as every
from benchmarks import diagnostics, sandbox, startup, training_step
from benchmarks import loss_engine as benchmark
from ts2_lightning.engines import FullEngine
from ts2_lightning.losses import EntmaxLoss, GEMLoss, SparsemaxLoss, TokenLoss, TS2Loss
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
    record = json.loads((root / "benchmarks/results/loss_engine_cpu.json").read_text())
    assert benchmark.table(record, benchmark.IN_README) in (root / "README.md").read_text()


def test_the_monitor_takes_its_turns() -> None:
    found = diagnostics.measure(TS2Loss(), diagnostics.QUICK, rounds=2, threads=1)
    assert found.keys() == {*diagnostics.MODES, "thinned"}
    assert all(numbers["seconds"] > 0 for numbers in found.values())
    assert found["off"]["seconds_over_off"] == found["off"]["cpu_seconds_over_off"] == 1


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
    told = startup.summary({startup.UNIT: [2.0, 1.0, 9.0], "losses": [3.0, 3.0, 2.0]})
    assert told["losses"] == {"processor_seconds": 3.0, "ratio_to_import_torch": 1.5}
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
    found = sandbox.measure(programs, sandbox.SandboxSettings(run_code=True, workers=1), rounds=1)
    assert found["per_second"] > 0
    assert found["per_processor_second"] > 0
    assert "seccomp" in found["layers"]
    assert list(sandbox.fresh_interpreters(programs)) == [True] * 3
    with pytest.raises(RuntimeError, match="1 of 3 right programs have not passed"):
        sandbox.rates(lambda: 2, 3, 1)


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
