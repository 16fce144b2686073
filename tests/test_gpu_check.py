"""The check of a GPU goes through at tiny sizes without one, sees what is wrong, and ends a part in time."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import __main__ as every
from benchmarks import gpu_check
from benchmarks.gpu import correctness, heads, kernels, timing
from benchmarks.gpu.device import Device, LeftOutError
from benchmarks.gpu.rows import KINDS, Rows, all_rows
from benchmarks.gpu_check import Job, Run
from ts2_lightning import losses
from ts2_lightning.engines import ChunkedEngine, FullEngine
from ts2_lightning.losses import CrossEntropyLoss, TokenLoss, TS2Loss
from ts2_lightning.types import UserError

K = 300
CPU = Device(tiny=True, until=float("inf"))


def check(tmp_path: Path, *options: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit status, results and output of a run in a process of its own."""
    out = tmp_path / "figures.json"
    words = [sys.executable, "-m", "benchmarks.gpu_check", "--tiny", "--out", str(out), *options]
    done = subprocess.run(words, cwd=gpu_check.ROOT, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    figures = json.loads(out.read_text())
    assert figures["results"] == lines
    assert figures["machine"]["processor"] == lines[0]["machine"]["processor"]
    assert out.with_suffix(".md").read_text().strip() in done.stdout
    return done.returncode, lines, done.stdout + done.stderr


ONE_OF_EACH_WAY = (
    *("TS2Loss", "CrossEntropyLoss", "LabelSmoothingLoss", "GEMLoss", "SparsemaxLoss", "FenchelYoungPlusLoss, scaled"),
    *("EntmaxLoss, 1.25", "ReferenceAnchored"),
)
"""A softmax, with a uniform part, at two temperatures; projections, at a scale too; what torch's operations write."""


@pytest.mark.parametrize(
    "names",
    [pytest.param(ONE_OF_EACH_WAY, marks=pytest.mark.slow), pytest.param((), marks=pytest.mark.long)],
    ids=["one of each way", "all"],
)
def test_objectives_are_checked_through_the_interpreter(tmp_path: Path, names: tuple[str, ...]) -> None:
    """That kernels are right for all of them is tested in `tests/kernels`."""
    status, lines, output = check(tmp_path, "--parts", "correctness", *(("--objectives", *names) if names else ()))
    assert status == 0, output
    assert {line["objective"] for line in lines if "objective" in line} == set(names or correctness.objectives())
    of_ts2 = [line for line in lines if line.get("objective") == "TS2Loss"]
    assert [(line["factors"], line["ok"]) for line in of_ts2] == [("float32", True), ("bfloat16", True)]
    assert all(line["write_gradient"] == 2 for line in of_ts2)  # rows with a mask, and without
    assert {"gradient", "support_size", "tail_mass", "gold_rank"} <= {line.get("quantity") for line in lines}
    right = {line["kernel"] for line in lines if "kernel" in line and line["ok"]}
    assert right == {
        "gradient in place, bfloat16",
        "gradient in place, float32",
        "NaN, TS2Loss",
        "NaN, CrossEntropyLoss",
    }
    assert "the times mean nothing" in output


@pytest.mark.slow
def test_time_steps_and_memory_go_through(tmp_path: Path) -> None:
    status, lines, output = check(tmp_path, "--parts", "time", "steps", "memory")
    assert status == 0, output
    of_heads = [line for line in lines if "head" in line]
    left_out = {line["head"] for line in of_heads if "left_out" in line}
    timed = {line["head"] for line in of_heads if "ms" in line}
    assert {*heads.SUBJECTS, heads.COMPILED} - timed == left_out <= {heads.TRL, heads.LIGER}
    assert {line["head"] for line in of_heads if "peak_gb" in line} == timed - {heads.PRODUCTS, heads.COMPILED}
    assert {line.get("step") for line in lines} >= {"TS2, statistics in every step", "plain loop, beside CE"}
    targets = [line for line in lines if "target" in line]
    assert len(targets) >= 4
    assert all(line["met"] is None for line in targets)  # nobody knows


# -- the rows, and what is wrong


@pytest.mark.parametrize("dtype", correctness.DTYPES, ids=str)
def test_heads_give_the_logits_and_show_their_gradient(dtype: torch.dtype) -> None:
    for rows in all_rows(4, K):
        head, states = rows.head(dtype, "cpu"), rows.hidden_states(dtype, "cpu")
        wanted = rows.exact_logits.float()
        logits = head(states) if dtype == torch.float32 else head.float()(states.float())
        assert torch.equal(logits, wanted)
        slope = torch.randn(logits.shape)
        (gradient,) = torch.autograd.grad(
            (head(states.to(head.weight.dtype)) * slope)[wanted.isfinite()].sum(), head.weight
        )
        shown = gradient[:, : len(slope)].T
        assert torch.equal(shown, slope.masked_fill(~wanted.isfinite(), 0))


def test_rows_are_of_all_kinds_and_their_labels_can_be_learnt() -> None:
    unmasked, masked = all_rows(4, K)
    assert set(unmasked.kinds) == set(KINDS)
    assert set(masked.kinds) == {"masked"}
    for rows in (unmasked, masked):
        wanted = rows.exact_logits
        assert wanted.gather(1, rows.labels[:, None]).isfinite().all()
        assert torch.equal(rows.labels[::4], wanted[::4].argmax(-1))


def test_every_objective_is_checked() -> None:
    of_package = {
        name
        for name, loss in vars(losses).items()
        if inspect.isclass(loss) and issubclass(loss, TokenLoss) and not inspect.isabstract(loss)
    }
    assert of_package <= correctness.objectives().keys()


def compared(actual: correctness.Results, rows: Rows, loss: TokenLoss, dtype: torch.dtype) -> dict[str, float]:
    exact = correctness.run(FullEngine(), loss, rows, torch.float64, "cpu")
    bounds = correctness.tolerances(exact, rows, loss, dtype, truncates=False)
    return {name: this.over_tolerance for name, this in correctness.worst_of(actual, exact, bounds, rows).items()}


@pytest.mark.parametrize("objective", correctness.objectives())
@pytest.mark.parametrize("dtype", correctness.DTYPES, ids=str)
def test_torch_operations_are_within_the_tolerances(objective: str, dtype: torch.dtype) -> None:
    loss = correctness.objectives()[objective]
    for rows in all_rows(2, K):
        actual = correctness.run(ChunkedEngine(kernels=False), loss, rows, dtype, "cpu")
        assert max(compared(actual, rows, loss, dtype).values()) <= 1


def spoilt(results: correctness.Results, name: str, value: float, column: int = 0) -> correctness.Results:
    """The results with one number of the third row replaced."""
    copy: Tensor = results[name].clone()
    copy.view(len(copy), -1)[2, column] = value
    return {**results, name: copy}


def test_what_is_wrong_is_seen() -> None:
    rows, loss = all_rows(2, K)[0], TS2Loss()
    right = correctness.run(ChunkedEngine(kernels=False), loss, rows, torch.float32, "cpu")
    gradient, tail = right["gradient"][2, 0].item(), right["tail_mass"][2].item()
    cases = {
        "gradient": [gradient * 1.0002, float("nan"), float("inf")],
        "tail_mass": [tail * 1.0001],
        "support_size": [right["support_size"][2].item() + 1],
        "objective": [right["objective"][2].item() + 2e-4],
        "grad_hidden_states": [float("nan")],
    }
    for name, values in cases.items():
        for value in values:
            over = compared(spoilt(right, name, value), rows, loss, torch.float32)
            assert over[name] > 1, (name, value)
            assert all(o <= 1 for other, o in over.items() if other != name)
    gold = int(rows.labels[2])
    at_gold = spoilt(right, "gradient", right["gradient"][2, gold].item() + 5e-5, gold)
    assert compared(at_gold, rows, loss, torch.float32)["gradient"] > 1
    missing = {name: value for name, value in right.items() if name != "entropy"}
    assert compared(missing, rows, loss, torch.float32)["entropy"] == float("inf")


def test_a_head_that_computes_something_else_is_no_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    data = heads.inputs(CPU, heads.TINY[0])
    wrong = heads.Subject(lambda d: heads.plain(d) * 1.05, is_cross_entropy=True)
    every_head = {heads.PLAIN: heads.SUBJECTS[heads.PLAIN], "wrong": wrong}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "SUBJECTS", every_head)
        steps = timing._steps(data, heads.TINY[0], (), first=True)
    assert steps.keys() == {heads.PLAIN}
    (line,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert line["head"] == "wrong"
    assert line["ok"] is False


@pytest.mark.parametrize("name", ["plain CE in chunks", "torch's linear_cross_entropy", "CE, torch operations"])
def test_heads_that_are_compared_have_the_same_gradients(name: str) -> None:
    data = heads.inputs(CPU, heads.Shape(7, 16, 100))
    heads.SUBJECTS[heads.PLAIN].step(data)()
    wanted = [data.hidden_states.grad, data.head.weight.grad]
    heads.SUBJECTS[name].step(data)()
    for gradient, other in zip([data.hidden_states.grad, data.head.weight.grad], wanted, strict=True):
        torch.testing.assert_close(gradient.float(), other.float(), rtol=0, atol=0.02 * other.abs().max().item())


def test_public_ts2_is_ts2() -> None:
    pytest.importorskip("entmax")
    data = heads.inputs(CPU, heads.Shape(7, 16, 100))
    ours = heads.ours(TS2Loss(), kernels=False)(data)
    torch.testing.assert_close(heads.public_ts2(data), ours, rtol=0.02, atol=0.02)


def test_a_race_would_be_counted() -> None:
    a = torch.tensor([[1.0, torch.nan]])
    assert kernels._different(a, a.clone()) == 0
    assert kernels._different(a, torch.tensor([[1.0, 2.0]])) == 1
    rows = torch.randn(2, 5)
    kernels.in_place(rows)[:] = 3
    assert torch.equal(rows.view(torch.bfloat16)[:, :5], torch.full((2, 5), 3).bfloat16())


def test_a_compiler_that_takes_too_long_is_left_out() -> None:
    def compiler() -> None:
        try:
            while True:
                pass
        except Exception as error:  # as torch's compiler does
            raise RuntimeError("an error of the compiler's own") from error

    with pytest.raises(LeftOutError, match=r"it takes over 0\.05 seconds"), timing._at_most(0.05):
        compiler()


# -- the run


def test_without_a_gpu_one_line_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu_check.main([]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "gpu_check: there is no CUDA device here; --tiny tries the same code on the CPU"
    ]
    assert "gpu_check" in every.NEEDS_GPU
    assert every.run(["gpu_check"], "cpu") == 0


def test_a_job_that_takes_too_long_is_ended_and_the_next_one_starts() -> None:
    run = Run(None)
    gpu_check.run_jobs(run, "time", [Job("timing", "measure")], tiny=True, seconds=0.2)
    assert "its share of the time" in run.results[-1]["failed"]
    gpu_check.run_jobs(run, "time", [Job("heads", "nothing")], tiny=True, seconds=300)
    assert "has no attribute 'nothing'" in run.results[-1]["failed"]
    assert len(run.wrong) == 2


def test_what_there_is_no_time_for_is_left_out_or_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be left out is, and is no failure; the seconds that a part leaves go to those after it."""
    seconds: list[tuple[str, float]] = []
    monkeypatch.setattr(gpu_check, "run_jobs", lambda run, part, jobs, tiny, left: seconds.append((part, left)))
    run = Run(None)
    gpu_check.run_parts(run, gpu_check.parse(["--limit", "40"]))
    assert [result["job"] for result in run.results if "left_out" in result] == ["kernels.measure_layouts"]
    assert run.wrong == []
    wanted = {"correctness": 14.4, "time": 25, "steps": 25, "memory": 40}
    assert [part for part, _ in seconds] == ["correctness", "time", "time", "steps", "memory"]
    assert all(left == pytest.approx(wanted[part], abs=2) for part, left in seconds)


def test_a_job_that_dies_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho out of luck >&2\nexit 7\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    run = Run(None)
    gpu_check.run_jobs(run, "steps", [Job("steps", "measure")], tiny=True, seconds=60)
    assert run.results == [
        {"part": "steps", "job": "steps.measure", "ok": False, "failed": "exit status 7: out of luck"}
    ]


def test_misspelt_names_get_the_right_one() -> None:
    with pytest.raises(UserError, match=r"--objectives: expected one of .* got 'TS2Los'.*TS2Loss"):
        correctness.check(CPU, K, ["TS2Los"])
    with pytest.raises(UserError, match=r"--heads: .* got 'TOFO'.*TOFU"):
        timing.measure(CPU, ["TOFO"])


def test_targets_are_met_or_missed() -> None:
    target = heads.TARGETS[0]
    assert target.told(1.19, tiny=False)["met"] is True
    assert target.told(1.21, tiny=False)["met"] is False


def test_tables_show_what_matters_last() -> None:
    results: list[dict[str, Any]] = [
        {"part": "time", "head": "TS2", "ms": 1234.5, "ms_p25": 1.0, "ms_p75": 2.0},
        {"part": "time", "ok": False, "head": "CE", "failed": "RuntimeError: a | b"},
        {"part": "time", **heads.TARGETS[0].told(1.3, tiny=False)},
    ]
    text = gpu_check.tables(results)
    assert "| TS2 | 1,234 (1 - 2) |" in text
    assert "| TS2 / three products, time | 1.3 | 1.2 | **no** |" in text
    assert text.splitlines()[-1] == "| **no** | CE | RuntimeError: a \\| b |"


def test_a_loss_in_nothing_is_compared() -> None:
    """One of the checks above can fail: cross-entropy is not TS2."""
    rows = all_rows(2, K)[0]
    actual = correctness.run(ChunkedEngine(kernels=False), CrossEntropyLoss(), rows, torch.float32, "cpu")
    assert compared(actual, rows, TS2Loss(), torch.float32)["gradient"] > 1
