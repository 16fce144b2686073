"""Which runs are one row, what it is called, and what is said of runs that have nothing to show."""

import json
import math
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.studies.report_runs import config_of, make_grid, make_run, write_measures
from tests.support.errors import refused
from ts2_lightning.evaluation import check_spec, files_of
from ts2_lightning.program import program
from ts2_lightning.studies.report import Results, collect
from ts2_lightning.studies.report.rows import flat, labels_of, short_names
from ts2_lightning.types import UserError

V, D = "toyworld/seen/validity_t1", "toyworld/seen/distinct_t1"
OBJECTIVES = {"objective": ("CE", "TS2"), "alpha": ("0.25", "1")}
ROWS = ({"objective": "CE"}, {"objective": "TS2", "alpha": "0.25"}, {"objective": "TS2", "alpha": "1"})


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def labels(results: Results) -> list[str]:
    return [row.label for row in results.rows]


def reasons(results: Results) -> dict[str, str]:
    return {entry.name: entry.reason for entry in results.missing}


# Runs without a grid --------------------------------------------------------------------------------------------


def test_runs_that_differ_in_their_seeds_are_a_row() -> None:
    """The seed of everything, of the data, and of the rows that are drawn; names and places do not count."""
    for seed in (0, 1, 2):
        for name, loss in (("ce", "CrossEntropyLoss"), ("ts2", "TS2Loss")):
            config = config_of(loss, seed) | {"name": f"{name}-{seed}", "runs_dir": f"place-{seed}"}
            make_run(Path(f"runs/{name}-{seed}/1"), config, {V: 0.5 + seed})
    results = collect(["runs/ce-0", "runs/ce-1", "runs/ce-2", "runs/ts2-*"])
    assert labels(results) == ["CrossEntropyLoss", "TS2Loss"]
    assert [results.values(row, V) for row in results.rows] == [{0: 0.5, 1: 1.5, 2: 2.5}] * 2
    assert results.seeds == [0, 1, 2]
    assert results.missing == ()


@pytest.mark.parametrize(
    ("varied", "of_row"),
    [
        ("data.seed", {1: 1.0, 2: 2.0, 3: 3.0}),
        ("data.train", {1: 1.0, 2: 2.0, 3: 3.0}),
        ("seed_everything", {1: 1.0, 2: 2.0, 3: 3.0}),
    ],
)
def test_the_seed_is_the_one_that_varies(varied: str, of_row: dict[int, float]) -> None:
    """Whichever of them it is, no run is lost, and rows are paired by it."""
    for name, loss, shift in (("ce", "CrossEntropyLoss", 0.0), ("ts2", "TS2Loss", 0.5)):
        for seed in (1, 2, 3):
            config = config_of(loss)
            if varied == "seed_everything":
                config[varied] = seed
            else:
                key = varied.removeprefix("data.")
                config["data"][key] = seed if key == "seed" else f"toyworld:train?seed={seed}"
            make_run(Path(f"runs/{name}/{seed}"), config, {V: seed + shift})
    results = collect(["runs"])
    ce, ts2 = results.rows
    assert results.values(ce, V) == of_row
    difference = results.difference(ts2, ce, V)
    assert (difference.n, difference.mean) == (3, 0.5)


def test_rows_whose_seeds_lie_in_different_settings_lose_no_run() -> None:
    """No setting tells all runs apart: those that share a seed are rows of their own."""
    for seed in (1, 2, 3):
        config = config_of("CrossEntropyLoss")
        config["data"]["seed"] = seed
        make_run(Path(f"runs/ce/{seed}"), config, {V: seed})
        make_run(Path(f"runs/ts2/{seed}"), config_of("TS2Loss") | {"seed_everything": seed}, {V: seed})
    results = collect(["runs"])
    assert sorted(value for row in results.rows for value in results.values(row, V).values()) == [1, 1, 2, 2, 3, 3]
    assert len({row.label for row in results.rows}) == len(results.rows) == 4


def test_attempts_that_began_elsewhere_are_rows() -> None:
    """They are other trainings of the same settings and seed."""
    make_run(Path("runs/a/1"), config_of(), {V: 0.1})
    make_run(Path("runs/a/2"), config_of() | {"ckpt_path": "runs/b/1/checkpoints/last.ckpt"}, {V: 0.2})
    make_run(Path("runs/c/1"), config_of("CrossEntropyLoss"), {V: 0.3})
    results = collect(["runs"])
    assert {row.label: results.values(row, V) for row in results.rows} == {
        "TS2Loss (a/1)": {0: 0.1},
        "TS2Loss (a/2)": {0: 0.2},
        "CrossEntropyLoss": {0: 0.3},
    }


def test_labels_are_what_differs() -> None:
    make_run(Path("runs/a/1"), config_of("CrossEntropyLoss"), {V: 0.1})
    make_run(Path("runs/b/1"), config_of("CrossEntropyLoss", lr=2.5e-4), {V: 0.2})
    make_run(Path("runs/c/1"), config_of("TS2Loss", alpha=0.25, logit_scale=1.0, top_k=None), {V: 0.3})
    make_run(Path("runs/d/1"), config_of("TS2Loss", alpha=1, logit_scale=1.0, top_k=None), {V: 0.4})
    results = collect(["runs"])
    assert labels(results) == [
        "CrossEntropyLoss, lr 0.0005",
        "CrossEntropyLoss, lr 0.00025",
        "TS2Loss, lr 0.0005, alpha 0.25",
        "TS2Loss, lr 0.0005, alpha 1",
    ]
    assert results.axes["alpha"] == ("0.25", "1"), "a number can be drawn against"
    assert results.rows[3].labels == {"loss": "TS2Loss", "lr": "0.0005", "alpha": "1"}


def test_equal_configurations_are_told_apart_by_their_names() -> None:
    for name in ("before", "after"):
        make_run(Path(f"runs/{name}/1"), config_of(), {V: 0.1})
    assert labels(collect(["runs/before", "runs/after"])) == ["before", "after"]


def test_equal_ones_among_others() -> None:
    make_run(Path("runs/a/1"), config_of("CrossEntropyLoss"), {V: 0.1})
    make_run(Path("runs/a/2"), config_of("TS2Loss"), {V: 0.1})
    make_run(Path("runs/b/1"), config_of("CrossEntropyLoss"), {V: 0.1})
    assert labels(collect(["runs"])) == ["CrossEntropyLoss (a)", "CrossEntropyLoss (b)", "TS2Loss"]


def test_labels_that_would_be_endless_give_way_to_names() -> None:
    make_run(Path("runs/small/1"), config_of(a_setting_with_a_name="some value", another_setting="b"), {V: 0.1})
    make_run(Path("runs/large/1"), config_of(a_setting_with_a_name="other value", another_setting="c"), {V: 0.1})
    results = collect(["runs/small", "runs/large"])
    assert labels(results) == ["small", "large"]
    assert results.rows[1].labels == {"a_setting_with_a_name": "other value", "another_setting": "c"}


def test_runs_that_were_moved_keep_apart() -> None:
    """They are no attempts of each other, whatever they are called."""
    for name in ("before", "after"):
        make_run(Path("kept", name), config_of(), {V: 0.1})
    assert labels(collect(["kept"])) == ["after", "before"]
    assert labels(collect(["kept/after"])) == ["after"]


def test_a_single_run_is_called_by_its_name() -> None:
    make_run(Path("runs/mine/1"), config_of(), {V: 0.1})
    assert labels(collect(["runs/mine/1"])) == ["mine"]


def test_of_several_attempts_the_newest_finished_counts() -> None:
    make_run(Path("runs/a/1"), config_of(), {V: 0.1})
    make_run(Path("runs/a/9"), config_of(), {V: 0.9})
    make_run(Path("runs/a/10"), config_of(), {V: 1.0})
    make_run(Path("runs/a/11"), config_of(), {V: 1.1}, state={"state": "failed", "step": 2, "steps": 9})
    (row,) = collect(["runs/a"]).rows
    assert [run.name for run in row.runs] == ["runs/a/10"]
    assert collect(["runs/a"]).missing == (), "the training is not missing"


def test_attempts_with_other_settings_are_other_rows() -> None:
    make_run(Path("runs/a/1"), config_of(alpha=1), {V: 0.1})
    make_run(Path("runs/a/2"), config_of(alpha=2), {V: 0.2})
    assert labels(collect(["runs/a"])) == ["alpha 1", "alpha 2"]


def test_the_settings_of_the_last_start_count() -> None:
    run = make_run(Path("runs/a/1"), config_of(alpha=1), {V: 0.1})
    (run / "config-resume-1.yaml").write_text((run / "config.yaml").read_text().replace("alpha: 1", "alpha: 7"))
    make_run(Path("runs/b/1"), config_of(alpha=2), {V: 0.2})
    assert labels(collect(["runs"])) == ["alpha 7", "alpha 2"]


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"state": "running", "step": 3, "steps": 9}, "still running, or killed, at step 3 of 9"),
        ({"state": "stopped", "step": 3, "steps": None}, "stopped at step 3"),
        ({"state": "failed", "step": 0, "steps": 9}, "failed at step 0 of 9"),
    ],
)
def test_a_run_that_is_not_finished_is_named(state: dict[str, Any], reason: str) -> None:
    make_run(Path("runs/a/1"), config_of(), {V: 0.1})
    make_run(Path("runs/b/1"), config_of(alpha=3), {V: 0.2}, state=state)
    results = collect(["runs/a", "runs/b"])
    assert labels(results) == ["a"]
    assert reasons(results) == {"runs/b/1": reason}


def test_a_run_that_says_nothing_of_its_state_counts() -> None:
    """As those that were made before runs told it."""
    run = make_run(Path("runs/a/1"), config_of(), {V: 0.1})
    (run / "state.json").unlink()
    assert labels(collect(["runs"])) == ["a"]


def test_damaged_files_are_named_and_cost_no_other_run() -> None:
    make_run(Path("runs/good/1"), config_of(), {V: 0.1})
    for name in ("config", "measure", "curve", "list", "state"):
        make_run(Path(f"runs/{name}/1"), config_of(), {V: 0.1}, {"val/entropy": {1: 0.5}})
    Path("runs/config/1/config.yaml").write_text("a: [")
    next(Path("runs/measure/1/measures").iterdir()).write_text('{"name": "toyworld", "values": {"a": "much"}}')
    Path("runs/curve/1/csv/metrics.csv").write_text("step,val/entropy\n1,0.5\n2,low\n")
    next(Path("runs/list/1/measures").iterdir()).write_text("[]")
    Path("runs/state/1/state.json").write_text("{")
    results = collect(["runs"])
    assert labels(results) == ["good"]
    found = reasons(results)
    assert "config.yaml: cannot be read" in found["runs/config/1"]
    assert "not what `measure` writes" in found["runs/measure/1"]
    assert "metrics.csv:3: not a row of numbers" in found["runs/curve/1"]
    assert "not what `measure` writes" in found["runs/list/1"]
    assert "state.json: is not JSON" in found["runs/state/1"]
    assert not any("\n" in reason for reason in found.values())


def test_what_was_logged_last_are_values() -> None:
    """Also with a last line that was cut short, as a kill leaves it."""
    curves = {"val/entropy": {5: 0.4, 10: 0.3}, "train/entropy": {1: 0.9, 10: 0.2}, "throughput/mfu": {1: 0.5}}
    run = make_run(Path("runs/a/1"), config_of(), curves=curves)
    with (run / "csv" / "metrics.csv").open("a") as stream:
        stream.write("11,0.1")
    (row,) = collect(["runs/a"]).rows
    assert row.runs[0].values == {"val/entropy": 0.3, "train/entropy": 0.2}
    assert row.runs[0].curves["throughput/mfu"] == {1: 0.5}


def test_decodings_are_rows() -> None:
    run = make_run(Path("runs/a/1"), config_of(), {V: 0.1})
    write_measures(run, {V: 0.7}, {"decoding": "sparsemax", "toyworld": {}})
    results = collect(["runs/a"])
    assert {row.label: results.values(row, V) for row in results.rows} == {
        "decoding softmax": {0: 0.1},
        "decoding sparsemax": {0: 0.7},
    }


def test_what_does_not_depend_on_the_decoding_is_of_every_row() -> None:
    run = make_run(Path("runs/a/1"), config_of(), {V: 0.1, "validation/entropy": 0.3})
    write_measures(run, {V: 0.7}, {"decoding": "sparsemax", "toyworld": {}})
    results = collect(["runs/a"])
    assert [results.values(row, "validation/entropy") for row in results.rows] == [{0: 0.3}] * 2
    assert [row.runs[0].settings["toyworld"]["decoding"] for row in results.rows] == ["softmax", "sparsemax"]
    assert "decoding" not in results.rows[0].runs[0].settings["validation"]
    alone = make_run(Path("runs/b/1"), config_of(lr=1.0), {"validation/entropy": 0.5})
    results = collect([alone])
    assert [results.values(row, "validation/entropy") for row in results.rows] == [{0: 0.5}]


def test_values_of_different_settings_are_not_mixed() -> None:
    """The last result of a measure is shown whole, of runs and of models that were only measured."""
    cold = {"template": "plain", "diversity": {"temperature": 0.6, "sentence_bert": "some/model"}}
    for place, config in (("runs/a/1", config_of()), ("models/b", None)):
        run = make_run(
            Path(place), config, {"diversity/self_bleu_diversity": 0.6, "diversity/sentence_bert": 9.0}, spec=cold
        )
        for file in run.glob("measures/*.json"):
            os.utime(file, ns=(1, 1))
        write_measures(run, {"diversity/self_bleu_diversity": 1.0}, {"diversity": {"temperature": 1.0}})
        ((shown,),) = [row.runs for row in collect([run]).rows]
        assert shown.values == {"diversity/self_bleu_diversity": 1.0}
        assert (shown.settings["diversity"]["temperature"], shown.settings["diversity"]["template"]) == (1.0, "auto")


@pytest.mark.parametrize("model", ["export/config.json", "checkpoints/last.ckpt"])
def test_what_was_measured_before_the_model_changed_is_said(model: str) -> None:
    """Training has gone on: the values are shown, as those of another model."""
    ((_, of_grid),) = make_grid(Path("runs/study"), {"row": ["a"]}, [{"row": "a"}], (0,)).items()
    for run in (of_grid, Path("own/1")):
        make_run(run, config_of(), {V: 0.1})
        (run / model).parent.mkdir()
        with zipfile.ZipFile(run / model, "w") as archive:  # what a whole checkpoint is
            archive.writestr("data", "")
        os.utime(run / model, ns=(5, 5))
        write_measures(run, {"validation/entropy": 1.0})
        assert collect([run.parent]).missing == ()
        (old,) = run.glob("measures/toyworld-*.json")
        os.utime(old, ns=(4, 4))
    said = "toyworld: measured before the model changed; measure again"
    assert [entry.reason for entry in collect(["own"]).missing] == [said]
    results = collect(["runs/study"])
    assert [(entry.row, entry.reason) for entry in results.missing] == [("a", said)]
    assert results.values(results.rows[0], V) == {0: 0.1}


def test_a_model_that_was_only_measured_is_a_base() -> None:
    make_run(Path("models/llama"), None, {V: 0.3})
    make_run(Path("runs/a/1"), config_of(), {V: 0.1})
    results = collect(["models/llama", "runs/a"])
    assert [(row.label, row.is_base) for row in results.rows] == [("llama", True), ("a", False)]


def test_without_a_seed_runs_are_no_pairs() -> None:
    config = config_of()
    for key in ("seed_everything", "data"):
        config.pop(key)
    for name in ("a", "b"):
        make_run(Path(f"runs/{name}/1"), config, {V: 0.1})
    results = collect(["runs"])
    assert labels(results) == ["a", "b"]
    assert results.seeds == []
    assert results.difference(results.rows[1], results.rows[0], V).n == 0


def test_the_record_of_a_run() -> None:
    make_run(Path("runs/a/1"), config_of(), {V: 0.1})
    ((run,),) = [row.runs for row in collect(["runs"]).rows]
    assert (run.revision, run.seconds, run.time) == ("0123456789ab", 60.0, "2026-01-02T03:04:05+00:00")
    assert run.command == f"{program()} fit -c runs/a/1/config.yaml"


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["runs/none"], r"runs/none: no such run; did you mean runs/nine\?"),
        (["runs/no*thing"], "no such run"),
        (["file"], "file: not a directory"),
        (["empty"], "empty: no run there"),
        (["runs/unfinished"], r"nothing to report: runs/unfinished/1: stopped at step 1"),
    ],
)
def test_nothing_there(paths: list[str], message: str) -> None:
    make_run(Path("runs/nine/1"), config_of(), {V: 0.1})
    make_run(Path("runs/unfinished/1"), config_of(), {V: 0.1}, state={"state": "stopped", "step": 1})
    Path("file").touch()
    Path("empty/within").mkdir(parents=True)
    with refused(message):
        collect(paths)


def test_links_are_not_followed_in_circles() -> None:
    make_run(Path("runs/a/1"), config_of(), {V: 0.1})
    os.symlink(Path("runs").absolute(), Path("runs/again"))
    assert labels(collect(["runs"])) == ["a"]


# Settings -------------------------------------------------------------------------------------------------------


def test_lists_of_classes() -> None:
    """A callback that one run has and another lacks."""
    plain = flat({"trainer": {"callbacks": None}})
    noisy = flat({"trainer": {"callbacks": [{"class_path": "callbacks.NEFTune", "init_args": {"alpha": 5.0}}]}})
    assert noisy == {"trainer.callbacks.0": "NEFTune", "trainer.callbacks.0.alpha": 5.0}
    assert labels_of([plain, noisy]) == [{}, {"0": "NEFTune"}]


def test_names_are_as_short_as_they_can_be() -> None:
    names = ["model.loss", "model.loss.alpha", "model.loss.base.alpha", "data.loss", "lr"]
    found = short_names(names)
    assert found == {
        "model.loss": "model.loss",
        "model.loss.alpha": "loss.alpha",
        "model.loss.base.alpha": "base.alpha",
        "data.loss": "data.loss",
        "lr": "lr",
    }


@pytest.mark.parametrize("rows", [2, 5])
def test_labels_tell_all_rows_apart(rows: int) -> None:
    """Whatever the settings are: all combinations of present, absent and two values."""
    values = ({}, {"a": 1}, {"a": 2}, {"b": 1}, {"a": 1, "b": 1}, {"a": 1, "b": 2}, {"c": 3, "a": 2})
    for start in range(len(values) - rows + 1):
        chosen = [dict(value) for value in values[start : start + rows]]
        found = [tuple(of_row.items()) for of_row in labels_of(chosen)]
        assert len(set(found)) == rows, chosen


# Grids ----------------------------------------------------------------------------------------------------------


def test_a_grid() -> None:
    places = make_grid(Path("runs/study"), OBJECTIVES, ROWS, report={"baseline": {"objective": "TS2", "alpha": 1}})
    for (i, seed), run in places.items():
        make_run(run, config_of(seed=seed), {V: i + seed / 10})
    results = collect(["runs/study"])
    assert labels(results) == ["CE", "TS2, alpha 0.25", "TS2, alpha 1"]
    assert results.values(results.rows[2], V) == {0: 2.0, 1: 2.1, 2: 2.2}
    assert results.rows[1].labels == {"objective": "TS2", "alpha": "0.25"}
    assert (results.title, results.paper, results.file) == ("A study", "Someone, table 1", "configs/grid/study.yaml")
    assert results.settings.baseline == "TS2, alpha 1"
    assert results.missing == ()
    assert results.rows[0].runs[1].command.endswith("study/row0-s1-0a1b2c3d")


def test_what_the_grid_file_wants_shown() -> None:
    report = {
        "columns": [V],
        "planes": [{"x": D, "y": V}],
        "against": [{"axis": "alpha", "metrics": [V]}],
        "curves": ["train/entropy"],
    }
    make_grid(Path("runs/study"), OBJECTIVES, ROWS, report=report)
    settings = collect(["runs/study"]).settings
    assert (settings.columns, settings.planes) == ((V,), ((D, V),))
    assert (settings.against, settings.curves) == ({"alpha": (V,)}, ("train/entropy",))
    assert settings.baseline == ""


def test_everything_that_can_be_missing_of_a_grid() -> None:
    directory = Path("runs/study")
    places = make_grid(directory, {"row": "abcdef"}, [{"row": c} for c in "abcdef"], (0,), {"toyworld": {}, "cost": {}})
    made = {i: run for (i, _), run in places.items()}
    both = {V: 0.5, "cost/seconds": 9.0}
    make_run(made[0], config_of(), both)
    make_run(made[1], config_of(), {V: 0.5})
    make_run(made[2], config_of(), state={"state": "failed", "step": 3, "steps": 9})
    failure = {"stage": "fit", "status": 1, "message": "NaN in step 3", "log": "runs/study/fit.log"}
    (made[2].parent / "failed.json").write_text(json.dumps(failure))
    make_run(made[3], config_of(), both, state={"state": "running", "step": 4, "steps": 9})
    make_run(made[4], config_of(), {V: 0.7})
    (made[4].parent / "failed.json").write_text(json.dumps(failure | {"stage": "measure", "message": "no memory"}))
    results = collect([directory])
    found = {entry.row: entry.reason for entry in results.missing}
    assert found == {
        "b": "not measured: cost",
        "c": "the training failed (status 1): NaN in step 3; see runs/study/fit.log",
        "d": "still running, or killed, at step 4 of 9",
        "e": "the measurement failed (status 1): no memory; see runs/study/fit.log",
        "f": "has not been started",
    }
    assert [len(row.runs) for row in results.rows] == [1, 1, 0, 0, 1, 0], "every row is in the table"
    assert results.values(results.rows[4], V) == {0: 0.7}, "what was measured is kept"


def test_the_newest_attempt_of_a_grid_decides() -> None:
    ((_, first),) = make_grid(Path("runs/study"), {"row": "a"}, [{"row": "a"}], (0,)).items()
    make_run(first, config_of(), {V: 0.1})
    make_run(first.parent / "2", config_of(), {V: 0.2})
    results = collect(["runs/study"])
    assert results.values(results.rows[0], V) == {0: 0.2}
    make_run(first.parent / "10", config_of(), {V: 0.3}, state={"state": "running", "step": 1, "steps": 9})
    assert collect(["runs/study"]).rows[0].runs == ()


def test_measures_with_other_settings_are_not_mixed_in() -> None:
    wanted = {"decoding": "sparsemax", "diversity": {"limit": 10}}
    ((_, run),) = make_grid(Path("runs/study"), {"row": "a"}, [{"row": "a"}], (0,), wanted).items()
    make_run(run, config_of(), {"diversity/ngram": 0.1}, spec={"diversity": {"limit": 10}})
    write_measures(run, {"diversity/ngram": 0.2}, {"decoding": "sparsemax", "diversity": {"limit": 20}})
    results = collect(["runs/study"])
    assert [entry.reason for entry in results.missing] == ["not measured: diversity"]
    write_measures(run, {"diversity/ngram": 0.3}, wanted)
    results = collect(["runs/study"])
    assert results.missing == ()
    assert results.values(results.rows[0], "diversity/ngram") == {0: 0.3}


def test_a_run_that_the_grid_no_longer_names_is_left_out() -> None:
    ((_, run),) = make_grid(Path("runs/study"), {"row": "a"}, [{"row": "a"}], (0,)).items()
    make_run(run, config_of(), {V: 0.1})
    make_run(Path("runs/study/old-s0-ffffffff/1"), config_of(), {V: 0.9})
    results = collect(["runs/study"])
    assert [run.values[V] for row in results.rows for run in row.runs] == [0.1]


def test_the_base_model_is_a_row_without_seeds() -> None:
    places = make_grid(Path("runs/study"), {"row": "a"}, [{"row": "a"}], (0, 1), base=True)
    make_run(Path("runs/study/base"), None, {V: 0.9})
    for run in places.values():
        make_run(run, config_of(), {V: 0.1})
    results = collect(["runs/study"])
    assert [(row.label, row.is_base) for row in results.rows] == [("base", True), ("a", False)]
    assert results.seeds == [0, 1]
    assert len(results.runs) == 2


def test_a_grid_with_a_users_measure_needs_no_file_of_the_user() -> None:
    directory = Path("runs/study")
    places = make_grid(directory, {"row": "a"}, [{"row": "a"}], (0,))
    plan = json.loads((directory / "grid.json").read_text())
    plan["points"][0] |= {"measure": {"nowhere.Weights": {}}, "files": {"weights": "weights-1.json"}}
    (directory / "grid.json").write_text(json.dumps(plan))
    run = make_run(places[0, 0], config_of())
    assert list(reasons(collect(["runs/study"])).values()) == ["not measured: weights"]
    how = {"decoding": "softmax", "template": "auto", "settings": {}, "key": "k", "values": {"weights/norm": 1.0}}
    (run / "measures").mkdir()
    (run / "measures/weights-1.json").write_text(json.dumps({"name": "weights", **how}))
    results = collect(["runs/study"])
    assert results.values(results.rows[0], "weights/norm") == {0: 1.0}
    assert not results.missing


def test_a_training_that_rows_share_is_counted_once() -> None:
    directory = Path("runs/study")
    places = make_grid(directory, {"row": "ab"}, [{"row": "a"}, {"row": "b"}], (0,))
    plan = json.loads((directory / "grid.json").read_text())
    for point in plan["points"]:
        del point["files"]  # as a version before 0.2 wrote it
    plan["points"][1] |= {"run": plan["points"][0]["run"], "measure": {"decoding": "sparsemax", "toyworld": {}}}
    (directory / "grid.json").write_text(json.dumps(plan))
    run = make_run(places[0, 0], config_of(), {V: 0.1})
    write_measures(run, {V: 0.6}, {"decoding": "sparsemax", "toyworld": {}})
    results = collect([directory])
    assert [results.values(row, V) for row in results.rows] == [{0: 0.1}, {0: 0.6}]
    assert len(results.runs) == 1


def test_weights_between_base_and_tuned_model_have_no_logged_values() -> None:
    """What was logged is of the weights at their end; the curves are those of the training, which is one."""
    directory, axes = Path("runs/study"), {"row": "a", "interpolate": ["0.5", "1"]}
    rows = [{"row": "a", "interpolate": "0.5"}, {"row": "a", "interpolate": "1"}]
    places = make_grid(directory, axes, rows, (0,))
    plan = json.loads((directory / "grid.json").read_text())
    spec = {"toyworld": {}, "interpolate": 0.5}
    between = str(next(iter(files_of(Path(), check_spec(spec)).values())).relative_to("measures"))
    plan["points"][0] |= {"run": plan["points"][1]["run"], "measure": spec, "files": {"toyworld": between}}
    (directory / "grid.json").write_text(json.dumps(plan))
    run = make_run(places[1, 0], config_of(), {V: 0.6}, {"val/entropy": {9: 0.5}})
    results = collect([directory])
    assert [(missing.row, missing.reason) for missing in results.missing] == [
        ("a, interpolate 0.5", "not measured: toyworld")
    ]
    write_measures(run, {V: 0.1}, spec)
    results = collect([directory])
    assert [row.label for row in results.rows] == ["a, interpolate 0.5", "a, interpolate 1"]
    assert [results.values(row, V) for row in results.rows] == [{0: 0.1}, {0: 0.6}]
    assert [results.values(row, "val/entropy") for row in results.rows] == [{}, {0: 0.5}]
    assert (len(results.runs), len(results.runs[0].curves)) == (1, 1)
    assert not results.missing


def test_the_table_has_a_line_for_each_row_seed_and_value() -> None:
    axes, rows = {"loss": ["CE", "TS2"], "alpha": ["1"]}, [{"loss": "CE"}, {"loss": "TS2", "alpha": "1"}]
    for (row, seed), run in make_grid(Path("runs/study"), axes, rows, (0, 1), base=True).items():
        make_run(
            run, config_of(seed=seed), {V: row + seed / 4} if (row, seed) == (1, 1) else {V: row + seed / 4, D: 2.0}
        )
    make_run(Path("runs/study/base"), None, {V: 7.0})
    table = collect(["runs/study"]).table
    assert list(table) == ["row", "axis/loss", "axis/alpha", "name", "seed", "decoding", "value"]
    assert set(table["decoding"]) == {"softmax"}
    of_v = table[table["name"] == V]
    assert of_v[["row", "axis/loss", "axis/alpha", "seed", "value"]].values.tolist() == [
        ["base", None, None, None, 7.0],
        *(["CE", "CE", None, seed, seed / 4] for seed in (0, 1)),
        *(["TS2, alpha 1", "TS2", "1", seed, 1 + seed / 4] for seed in (0, 1)),
    ]
    of_d = table[table["name"] == D]
    assert of_d["value"].isna().tolist() == [True, False, False, False, True], "measured, and not defined"


def test_a_value_that_is_not_defined_is_not_passed_over() -> None:
    """`measure` leaves out what is no number; a mean over the other seeds would be a choice among them."""
    places = make_grid(Path("runs/study"), {"row": "a"}, [{"row": "a"}])
    for (_, seed), run in places.items():
        make_run(run, config_of(), {V: 0.1} if seed == 1 else {V: 0.1, D: 2.0})
    results = collect(["runs/study"])
    (row,) = results.rows
    assert results.values(row, D)[0] == 2.0
    assert math.isnan(results.values(row, D)[1])
    assert math.isnan(results.summary(row, D).mean)
    assert results.summary(row, V).mean == pytest.approx(0.1)


def test_a_grid_without_any_result_is_no_error() -> None:
    make_grid(Path("runs/study"), {"row": "a"}, [{"row": "a"}])
    results = collect(["runs/study"])
    assert results.names == []
    assert len(results.missing) == 3


def test_grids_and_runs_together() -> None:
    for name in ("one", "two"):
        ((_, run),) = make_grid(Path(f"runs/{name}"), {"row": ["a"]}, [{"row": "a"}], (0,)).items()
        make_run(run, config_of(), {V: 0.1})
    make_run(Path("runs/own/1"), config_of(), {V: 0.2})
    results = collect(["runs"])
    assert labels(results) == ["one: a", "two: a", "own"]
    assert results.file == ""


def test_rows_of_the_same_choice_on_several_axes_are_two() -> None:
    axes = {"neft": ("off", "on"), "wd": ("on",)}
    places = make_grid(Path("runs/study"), axes, [{"neft": "on"}, {"wd": "on"}, {"neft": "on", "wd": "on"}], (0,))
    for (row, _), run in places.items():
        make_run(run, config_of(), {V: row / 10})
    results = collect(["runs/study"])
    assert {row.label: results.values(row, V) for row in results.rows} == {
        "neft on": {0: 0.0},
        "wd on": {0: 0.1},
        "neft on, wd on": {0: 0.2},
    }


def test_no_two_rows_have_one_label() -> None:
    """A base model that is called as a row, and choices that have a comma in them."""
    rows = [{"a": "base"}, {"a": "x, y"}, {"a": "x", "b": "y"}]
    for place in ("here", "there"):
        places = make_grid(Path(f"runs/{place}/study"), {"a": ["base", "x, y", "x"], "b": ["y"]}, rows, (0,), base=True)
        make_run(Path(f"runs/{place}/study/base"), None, {V: 0.9})
        for (row, _), run in places.items():
            make_run(run, config_of(), {V: row / 10})
    results = collect(["runs/here"])
    assert labels(results) == ["base (2)", "base", "x, y", "x, y (2)"]
    assert {row.label: results.values(row, V) for row in results.trained} == {
        "base": {0: 0.0}, "x, y": {0: 0.1}, "x, y (2)": {0: 0.2},
    }  # fmt: skip
    both = labels(collect(["runs"]))
    assert both[0] == "here/study: base (2)"
    assert both[5] == "there/study: base"
    assert len(set(both)) == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold an object, got list"),
        ('{"name": "x"}', "not what `ablate` writes"),
        ('{"name": "x", "title": "", "axes": {}, "points": [{"labels": 3}]}', "not what `ablate` writes"),
    ],
)
def test_a_damaged_grid(text: str, message: str) -> None:
    Path("runs/study").mkdir(parents=True)
    Path("runs/study/grid.json").write_text(text)
    with pytest.raises(UserError, match=message):
        collect(["runs/study"])


def test_a_baseline_that_no_row_has() -> None:
    make_grid(Path("runs/study"), OBJECTIVES, ROWS, report={"baseline": {"objective": "DPO"}})
    with pytest.raises(UserError, match=r"grid\.json: report\.baseline: no row with objective: DPO"):
        collect(["runs/study"])


def test_a_baseline_with_few_choices_is_the_row_with_the_fewest_others() -> None:
    rows = [{"objective": "TS2", "alpha": "1"}, {"objective": "TS2"}, {"objective": "CE"}]
    make_grid(Path("runs/study"), OBJECTIVES, rows, report={"baseline": {"objective": "TS2"}})
    assert collect(["runs/study"]).settings.baseline == "TS2"
