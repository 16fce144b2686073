"""`report` from the command line: where it goes, what it prints, and what it refuses in one line."""

from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.studies.report_runs import config_of, make_grid, make_run
from ts2_lightning.cli.report import _missing
from ts2_lightning.studies.report import Missing, Results

V, D = "toyworld/seen/validity_t1", "toyworld/seen/distinct_t1"


@pytest.fixture
def runs(here: Path) -> None:
    """Two rows of two seeds, and a run that is not finished."""
    for seed in (0, 1):
        curves = {"val/cross_entropy": {1: 2.0, 2: 1.0 + seed}}
        make_run(Path(f"runs/ce-{seed}/1"), config_of("CrossEntropyLoss", seed), {V: 0.9, D: 3.0 + seed}, curves)
        make_run(Path(f"runs/ts2-{seed}/1"), config_of("TS2Loss", seed), {V: 0.8 + 0.01 * seed, D: 5.0}, curves)
    make_run(Path("runs/gem/1"), config_of("GEMLoss"), {V: 0.1}, state={"state": "running", "step": 1, "steps": 9})


@pytest.mark.usefixtures("runs")
def test_runs_become_a_report(ts2: Run) -> None:
    answer = ts2("report", "runs/ce-*", "runs/ts2-0", "runs/ts2-1", "runs/gem")
    assert (answer.status, answer.err) == (0, "")
    table = [line.split() for line in answer.out.splitlines() if line.startswith(("CrossEntropyLoss", "TS2Loss"))]
    assert table == [
        ["CrossEntropyLoss", "0.900", "±", "0.000*", "3.50", "±", "0.71°"],
        ["TS2Loss", "0.805", "±", "0.007", "5.00", "±", "0.00*"],
    ]
    assert "n = 2 seeds (0, 1)" in answer.out
    assert "runs/gem/1: still running, or killed, at step 1 of 9" in answer.out
    assert "report/report.md" in answer.out
    for name in ("report.md", "table.csv", "results.json", "plane-1.png", "plane-1.svg", "curves.svg"):
        assert Path("report", name).is_file(), name
    assert not Path("report/table.tex").exists()
    assert max(map(len, answer.out.splitlines())) <= 80


@pytest.mark.usefixtures("runs")
def test_what_is_asked_for_is_shown(ts2: Run) -> None:
    options = ["--columns", f"{D},val/cross_entropy", "--planes", f"val/cross_entropy:{D}", "--baseline", "TS2Loss"]
    ts2("report", "runs", "--out", "elsewhere", *options, "--latex").done()
    report = Path("elsewhere/report.md").read_text()
    assert "|  | D, T 1 ↑ | val: cross entropy ↓ |" in report
    assert "## Against TS2Loss" in report
    assert "val: cross entropy against D, T 1" in Path("elsewhere/plane-1.svg").read_text(), (
        "the first is the quality, upwards"
    )
    assert Path("elsewhere/table.tex").is_file()
    assert not Path("report").exists()


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(("columns", "points"), [("1", 244.8), ("2", 504)])
def test_pictures_are_as_wide_as_the_columns_of_a_paper(ts2: Run, columns: str, points: float) -> None:
    ts2("report", "runs", "--planes", f"val/cross_entropy:{D}", "--paper-columns", columns).done()
    assert f'width="{points}pt"' in Path("report/plane-1.svg").read_text()


def test_of_many_runs_that_are_missing_for_one_reason_the_first_are_named(ts2: Run) -> None:
    rows = [f"row {i}" for i in range(9)]
    runs = make_grid(Path("runs/study"), {"row": rows}, [{"row": one} for one in rows], (0,))
    make_run(next(iter(runs.values())), config_of(), {V: 0.5})
    answer = ts2("report", "runs/study").done()
    missing = [line for line in answer.out.splitlines() if line.startswith("missing: ")]
    assert len(missing) == 1
    first, second = (f"study/{run.parent.name}" for run in [*runs.values()][1:3])
    assert missing == [f"missing: {first}, {second} and 6 more, which the report names: has not been started"]
    assert Path("runs/study/report/report.md").read_text().count("has not been started") == 8


def test_the_report_of_a_grid_lies_with_its_runs(ts2: Run) -> None:
    for (_, seed), run in make_grid(Path("runs/study"), {"row": ["a"]}, [{"row": "a"}], (0, 1)).items():
        make_run(run, config_of(seed=seed), {V: 0.5})
    answer = ts2("report", "runs/study").done()
    assert "A study" in answer.out
    assert "runs/study/report/report.md" in answer.out
    assert Path("runs/study/report/results.json").is_file()


def test_what_a_grid_asks_for_and_nobody_has_is_said(ts2: Run) -> None:
    report = {"columns": [V, f"{V}0"]}
    for (_, seed), run in make_grid(Path("runs/study"), {"row": ["a"]}, [{"row": "a"}], (0,), report=report).items():
        make_run(run, config_of(seed=seed), {V: 0.5}, {"val/cross_entropy": {1: 0.5}})
    answer = ts2("report", "runs/study").done()
    assert f"missing: {V}0: not measured; did you mean {V}?" in answer.out
    assert "(1 picture)" in answer.out


def test_a_grid_without_results_says_why(ts2: Run) -> None:
    make_grid(Path("runs/study"), {"row": ["a"]}, [{"row": "a"}], (0, 1))
    answer = ts2("report", "runs/study").done()
    assert answer.out.count("has not been started") == 2
    assert "Nothing has been measured yet." in Path("runs/study/report/report.md").read_text()


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["runs/non"], "runs/non: no such run"),
        (["runs/gem"], "runs/gem: nothing to report: runs/gem/1: still running, or killed, at step 1 of 9"),
        (["runs", "--baseline", "TS2loss"], "--baseline TS2loss: no such row; did you mean TS2Loss?"),
        (["runs", "--columns", "validity"], "--columns validity: no run has such a value"),
        (["runs", "--planes", V], f"--planes {V}: write QUALITY:DIVERSITY"),
        (["runs", "--planes", f"{V}:nothing"], "--planes nothing: no run has such a value"),
        (["runs", "--out", "runs/ce-0/1/config.yaml"], "this is a file; name a directory"),
        (["runs", "--paper-columns", "3"], "argument --paper-columns: invalid choice: 3 (choose from 1, 2)"),
        ([], "report: the following arguments are required: RUNS"),
    ],
)
def test_refusals_take_one_line(ts2: Run, options: list[str], said: str) -> None:
    assert said in ts2("report", *options).refusal
    assert not Path("report").exists()


def rates(objectives: tuple[str, ...] = ("CE", "TS2")) -> None:
    """A grid over three rates with two seeds."""
    axes = {"objective": list(objectives), "rate": ["1e-3", "5e-4", "2.5e-4"]}
    labels = [{"objective": objective, "rate": rate} for objective in objectives for rate in axes["rate"]]
    for (i, seed), run in make_grid(Path("runs/study"), axes, labels, (0, 1)).items():
        of_rate, of_objective = i % 3, i // 3
        values = {V: 0.97 - 0.05 * of_rate + 0.01 * seed, D: 2.0 + of_rate + 0.5 * of_objective + 0.1 * seed}
        make_run(run, config_of(seed=seed), values)


def test_curves_along_a_dial_with_diversity_at_a_quality(ts2: Run) -> None:
    rates()
    options = ["--frontier", f"{V}:{D}", "--dials", "rate", "--at", "0.95", "--baseline", "objective=CE"]
    answer = ts2("report", "runs/study", *options).done()
    table = answer.out.split("at the quality 0.950")[1].split("n = 2 seeds")[0]
    lines = [line.split() for line in table.splitlines() if line.startswith(("CE ", "TS2 "))][:2]
    # by hand: seed 0 crosses at 0.4 of the first step, seed 1 at 0.6, so that D is 2.4 and 2.7
    assert [line[:2] for line in lines] == [["CE", "2.55"], ["TS2", "3.05"]]
    assert "+0.50" in lines[1]
    assert "2 of 2" in table
    assert max(map(len, answer.out.splitlines())) <= 80
    for name in ("frontier-1.png", "frontiers.csv", "matched.csv"):
        assert Path("runs/study/report", name).is_file(), name
    assert "minus CE at the same rate" in Path("runs/study/report/report.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--frontier", V, "--dials", "rate"], f"--frontier {V}: write QUALITY:DIVERSITY"),
        (["--frontier", f"{V}:{D}"], "--dials AXIS[,AXIS] belong together; give both"),
        (["--frontier", f"{V}:{D}", "--dials", "rte"], "--dials rte: no axis 'rte'; did you mean rate?"),
        (["--frontier", f"{V}:{D}", "--dials", "objective,rate,x"], "--dials x: no axis 'x'"),
        (["--frontier", f"{V}:toyworld/accuracy", "--dials", "rate"], "--frontier toyworld/accuracy: no run has such"),
        (["--at", "0.9"], "--at: nothing is drawn along a dial"),
        (["--baseline", "objective=TS3"], "no choice of objective 'TS3'; did you mean TS2?"),
    ],
)
def test_what_is_wrong_with_dials_is_said_in_one_line(ts2: Run, options: list[str], message: str) -> None:
    rates()
    assert message in ts2("report", "runs/study", *options).complaint


def test_a_run_that_several_rows_miss_is_named_once() -> None:
    missing = tuple(Missing("study/a", row, "has not been started") for row in ("a, 0.6", "a, 1"))
    assert _missing(Results("A study", "", (), (), {}, missing)) == ["missing: study/a: has not been started"]
