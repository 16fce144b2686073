"""Grids that the parser of `fit` has resolved: what makes two trainings the same, and what is said of a wrong one."""

import builtins
import errno
import io
import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import GPT2Config

from ts2_lightning.cli.settings import SettingsReader
from ts2_lightning.evaluation import check_spec, files_of
from ts2_lightning.studies.grid import Grid, identity, read_grid
from ts2_lightning.studies.grid.resolve import grid_name
from ts2_lightning.types import UserError

QUICKSTART = Path(__file__).resolve().parents[2] / "configs/experiment/quickstart.yaml"
ONE: dict[str, Any] = {"one": {"only": {}}}
Read = Callable[..., Grid]
ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
BASE: dict[str, Any] = {
    "model": {"lm": {"path": "model"}, "loss": {"class_path": "TS2Loss", "init_args": {"alpha": 0.25}}},
    "data": {"train": "rows.jsonl", "validation": ["val.jsonl"], "tokenizer": "model", "batch_size": 8},
    "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 2},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with rows and a model's directory, of which nothing is ever loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TS2_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("rows", "val", "test"):
        write_rows(f"{name}.jsonl", name)
    Path("model/sub").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "sub/tokenizer.json"):
        Path("model", name).write_text(name)
    Path("base.yaml").write_text(yaml.safe_dump(BASE))
    return tmp_path


def write_rows(name: str, *texts: str) -> None:
    Path(name).write_text("".join(json.dumps({**ROW, "id": text}) + "\n" for text in texts))


def grid(file: str | Path = "grid.yaml", runs_dir: str | Path = "runs", name: str | None = None, **parts: Any) -> Grid:
    """A grid of the given parts; by default of one row on the base."""
    content = {"base": "base.yaml", "axes": ONE, **parts}
    Path(file).write_text(yaml.safe_dump(content, sort_keys=False))
    return read_grid(file, SettingsReader().read, runs_dir, name)


def digest(overrides: dict[str, Any] | None = None, **parts: Any) -> str:
    given: dict[str, Any] = {"set": overrides} if overrides else {}
    (training,) = grid(**given, **parts).trainings
    return training.digest


# What a grid is -----------------------------------------------------------------------------------------------------


def test_a_grid_on_the_toy_world(here: Path) -> None:
    found = grid(
        base=str(QUICKSTART),
        title="On toys",
        axes={
            "alpha": {"setting": "model.loss.alpha", "values": [0.25, 1]},
            "objective": {
                "CE, plain": {"set": {"model.loss": "CrossEntropyLoss"}},
                "TS2": {"set": {"model.loss": "TS2Loss"}, "measure": {"toyworld": False}},
            },
        },
        runs=[{"objective": "CE, plain"}, {"objective": "TS2", "alpha": "all"}],
        seeds=[0, 7],
        seeded={"data.seed": "{seed}", "data.train": "toyworld:train?seed={seed}"},
        measure={"toyworld": {}, "cost": {}},
        base_model={"label": "start"},
        report={"baseline": {"objective": "CE, plain"}},
        slurm={"partition": "gpu"},
    )
    assert (found.name, found.title, found.paper, found.seeds) == ("grid", "On toys", None, (0, 7))
    assert found.axes == {"alpha": ("0.25", "1"), "objective": ("CE, plain", "TS2")}
    assert [(dict(point.labels), point.seed) for point in found.points] == [
        (labels, seed)
        for labels in (
            {"objective": "CE, plain"},
            {"alpha": "0.25", "objective": "TS2"},
            {"alpha": "1", "objective": "TS2"},
        )
        for seed in (0, 7)
    ]
    last = found.points[-1]
    assert last.training.name == f"grid/1-ts2-s7-{last.training.digest[:8]}"
    assert last.training.config["data"]["train"] == "toyworld:train?seed=7"
    assert last.training.config["model"]["loss"]["init_args"]["alpha"] == 1
    assert last.measure == {"toyworld": False, "cost": {}}
    assert shlex.split(last.training.command)[-len(last.training.options) - 1 :] == ["fit", *last.training.options]
    assert len({training.digest for training in found.trainings}) == 6
    assert (found.base_model.path, found.base_model.measure) == ("toyworld", {"toyworld": {}})
    record = json.loads(json.dumps(found.record()))
    assert record["axes"] == {"alpha": ["0.25", "1"], "objective": ["CE, plain", "TS2"]}
    directory = found.base_model.directory
    [file] = files_of(Path(), check_spec({"toyworld": {}})).values()
    measured = {"measure": {"toyworld": {}}, "files": {"toyworld": file.name}}
    assert record["base_model"] == {"label": "start", "directory": directory, **measured}
    assert [point["run"] for point in record["points"]] == [point.training.run for point in found.points]
    assert not Path("cache").exists(), "a grid is read without making anything"
    assert not Path("runs").exists()


def test_rows_that_train_the_same_share_it(here: Path) -> None:
    axes = {
        "objective": {
            "TS2": {},
            "sparse": {"measure": {"decoding": "sparsemax"}},
            "said again": {"set": {"model.loss.alpha": 0.25}},
            "other": {"set": {"model.loss.alpha": 0.26}},
        }
    }
    points = grid(axes=axes).points
    assert len({point.training.name for point in points}) == 2
    assert points[0].training is points[1].training is points[2].training
    assert points[3].training.name.startswith("grid/other-s0-")


def test_shares_of_the_way_are_measured_and_not_trained(here: Path) -> None:
    axes = {"objective": {"TS2": {}, "other": {"set": {"model.loss.alpha": 0.26}}}, "interpolate": [0.5, 0.75, 1]}
    runs = [{"objective": "TS2", "interpolate": "all"}, {"objective": "other"}]
    made = grid(axes=axes, runs=runs, measure={"cost": {}})
    assert [(dict(point.labels), point.measure) for point in made.points] == [
        *(
            ({"objective": "TS2", "interpolate": text}, {"cost": {}, "interpolate": share})
            for text, share in (("0.5", 0.5), ("0.75", 0.75), ("1", 1.0))
        ),
        ({"objective": "other"}, {"cost": {}}),
    ]
    assert [training.run for training in made.trainings] == [
        f"{name}-s0-{training.digest[:8]}" for name, training in zip(("ts2", "other"), made.trainings, strict=True)
    ]
    files = [point["files"]["cost"] for point in made.record()["points"]]
    with pytest.raises(
        UserError, match=r"base_model: measure\.interpolate: there is nothing between the base model and"
    ):
        grid(measure={"cost": {}, "interpolate": 0.5}, base_model={})
    assert files == [f"interpolate-0.5/{files[3]}", f"interpolate-0.75/{files[3]}", files[3], files[3]]


def test_the_parser_forgets_the_row_before(here: Path) -> None:
    """One parser reads all rows: what one sets must not reach the next."""
    sets = {"trainer.callbacks+": "NEFTune", "model.loss": "GEMLoss", "model.loss.beta": 0.9, "trainer.max_epochs": 7}
    alone = grid().points[0].training.config
    axes = {"order": {"changed": {"set": sets}, "plain": {}}}
    changed, plain = grid(axes=axes).points
    assert changed.training.config["trainer"]["max_epochs"] == 7
    assert {**plain.training.config, "name": None} == {**alone, "name": None}


def test_the_name_of_a_grid(here: Path) -> None:
    assert grid(file="my grid.yaml").name == "my grid"
    assert grid(name="own/name").points[0].training.name.startswith("own/name/only-s0-")
    shipped = QUICKSTART.parents[1] / "grid"
    assert grid_name(shipped / "toyworld" / "alpha.yaml") == "toyworld-alpha"
    with pytest.raises(UserError, match="the name of a run is a directory below --runs_dir"):
        grid(name="../elsewhere")


def test_a_renamed_row_keeps_its_run(here: Path) -> None:
    before = grid(axes={"one": {"early name": {}}}).points[0].training
    Path("runs", before.name).mkdir(parents=True)
    after = grid(axes={"one": {"late name": {}}}).points[0].training
    assert after.name == before.name
    assert after.options == before.options


# What decides a result ----------------------------------------------------------------------------------------------


def test_where_things_lie_does_not_change_a_training(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = digest()
    assert digest(file="renamed.yaml") == first
    assert digest(name="other", runs_dir="other") == first
    Path("named.yaml").write_text(yaml.safe_dump(BASE | {"name": "mine", "runs_dir": "elsewhere"}))
    assert digest(base="named.yaml") == first
    Path("moved/rows").mkdir(parents=True)
    Path("rows.jsonl").rename("moved/rows/other.jsonl")
    Path("model").rename("moved/model")
    moved = {"data.train": "moved/rows/other.jsonl", "model.lm.path": "moved/model", "data.tokenizer": "moved/model"}
    assert digest(moved) == first
    monkeypatch.chdir("moved")
    here_too = {"data.train": "rows/other.jsonl", "model.lm.path": "model", "data.tokenizer": str(here / "moved/model")}
    assert digest({**here_too, "data.validation": ["../val.jsonl"]}, base="../base.yaml") == first


def test_how_it_is_written_does_not_change_a_training(here: Path) -> None:
    first = digest()
    backwards = {key: dict(reversed(value.items())) for key, value in reversed(BASE.items())}
    Path("backwards.yaml").write_text(yaml.safe_dump(backwards, sort_keys=False))
    assert digest(base="backwards.yaml") == first
    assert digest({"model.loss.alpha": 0.25, "trainer.max_epochs": 2, "data.max_length": 2048}) == first
    assert digest({"model.loss": "ts2_lightning.losses.TS2Loss"}) == first
    assert digest({"data.test": "test.jsonl"}) == digest({"data.test": {"a": "test.jsonl"}}) == first, "no fit reads it"
    assert digest({"model.lm.adapter": None, "data.limit_train": None}) == first
    assert digest({"trainer.max_epochs": None}) == digest({"trainer.max_epochs": 3}), "as in fit"


def test_a_length_that_is_left_to_the_model_is_a_number(here: Path) -> None:
    """So that a run from before null was the default is the same training."""
    toyworld = {"model.lm.path": "toyworld"}
    assert digest({**toyworld, "data.max_length": None}) == digest({**toyworld, "data.max_length": 128})
    hub = {"model.lm.path": "org/model"}
    assert digest({**hub, "data.max_length": None}) != digest({**hub, "data.max_length": 2048}), "it may have fewer"
    for positions, length in ((64, 64), (4096, 2048)):
        GPT2Config(n_positions=positions).save_pretrained("gpt2")
        gpt2 = {"model.lm.path": "gpt2"}
        assert digest({**gpt2, "data.max_length": None}) == digest({**gpt2, "data.max_length": length})


def test_the_digest_of_a_training_is_that_of_earlier_versions(here: Path) -> None:
    """Another one would train finished grids anew."""
    Path("rows.jsonl").write_text('{"prompt": "1 + 1?", "completion": "2"}\n')
    Path("small").mkdir()
    Path("small/weights").write_text("weights")
    loss = {"class_path": "TS2Loss", "init_args": {"alpha": 0.25}}
    data = {"train": [{"path": "rows.jsonl", "times": 2}], "validation": "rows.jsonl", "test": 0.1, "max_length": 64}
    config = {"model": {"lm": {"path": "small", "init": None}, "loss": loss}, "data": data, "name": "a"}
    assert identity.digest_of(config) == "8c95f0300039f63dda4161ed11004a1a494c92ebd677dea51f346075bb161642"


CHANGES: list[dict[str, Any]] = [
    {"model.loss.alpha": 0.26},
    {"model.loss": "GEMLoss"},
    {"model.optimizer.lr": 1e-3},
    {"model.lm.dtype": "bfloat16"},
    {"model.lm.path": "toyworld"},
    {"model.lm.path": "toyworld?seed=1"},
    {"model.lm.path": "org/model"},
    {"data.train": "val.jsonl"},
    {"data.train": ["rows.jsonl", "rows.jsonl"]},
    {"data.train": [{"path": "rows.jsonl", "times": 2}]},
    {"data.train": [{"path": "rows.jsonl", "format": "messages"}]},
    {"data.train": "hub:org/rows"},
    {"data.train": "toyworld:train"},
    {"data.train": "toyworld:train?seed=1"},
    {"data.validation": None},
    {"data.test": 0.5},
    {"data.test": {"held": 0.25, "other": "test.jsonl"}},
    {"data.max_length": 64},
    {"data.seed": 1},
    {"seed_everything": 1},
    {"trainer.max_steps": 10},
    {"trainer.devices": 2},
    {"trainer.gradient_clip_val": 1.0},
    {"trainer.callbacks+": "NEFTune"},
    {"trainer.callbacks+": "NEFTune", "trainer.callbacks.alpha": 7.0},
    {"data.limit_train": 1},
]


def test_a_setting_of_the_training_changes_it(here: Path) -> None:
    axes = {"change": {"none": {}, **{str(change): {"set": change} for change in CHANGES}}}
    points = grid(axes=axes, seeded={"trainer.min_steps": "{seed}"}).points  # so that the seeds themselves may be set
    by_digest: dict[str, list[str]] = {}
    for point in points:
        by_digest.setdefault(point.training.digest, []).append(point.title)
    assert len(points) == 1 + len(CHANGES)
    assert [titles for titles in by_digest.values() if len(titles) > 1] == []


@pytest.mark.parametrize("file", ["rows.jsonl", "val.jsonl", "model/model.safetensors", "model/sub/tokenizer.json"])
def test_a_changed_file_changes_the_training(here: Path, file: str) -> None:
    first = digest()
    before = Path(file).read_text()
    Path(file).write_text(before.replace("o", "0", 1))
    assert Path(file).stat().st_size == len(before)
    assert digest() != first
    Path(file).write_text(before)
    assert digest() == first


@pytest.mark.parametrize("place", ["rows.jsonl", "model/sub/tokenizer.json", "model/sub", "model/.hidden"])
def test_what_may_not_be_read_is_told_in_one_line(here: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Root may read everything, so that the system's answer is a stand-in."""
    Path("model/.hidden").mkdir()

    def refuse(known: Callable[..., Any]) -> Callable[..., Any]:
        def ask(path: Any, *arguments: Any, **settings: Any) -> Any:
            if str(path) == place:
                raise PermissionError(errno.EACCES, "Permission denied", place)
            return known(path, *arguments, **settings)

        return ask

    for module, name in ((builtins, "open"), (io, "open"), (os, "scandir")):
        monkeypatch.setattr(module, name, refuse(getattr(module, name)))
    if place == "model/.hidden":
        assert digest(), "hidden files are not looked at"
        return
    with pytest.raises(
        UserError,
        match=rf"^grid.yaml:\d+: .*: {place}: (cannot be read|not a readable data file) \(Permission denied\)$",
    ):
        grid()


def test_a_file_that_no_fit_reads_changes_nothing(here: Path) -> None:
    first = digest({"data.test": "test.jsonl"})
    write_rows("test.jsonl", "changed")
    Path("model/.cache").write_text("hidden")
    assert digest({"data.test": "test.jsonl"}) == first


@pytest.mark.parametrize("streaming", [False, True])
def test_named_sets_and_streams_have_their_contents(here: Path, streaming: bool) -> None:
    data = {"train": [{"path": "rows.jsonl", "format": "messages"}], "streaming": streaming}
    first = identity.digest_of({"data": {**data, "validation": {"seen": "val.jsonl", "unseen": "test.jsonl"}}})
    other = identity.digest_of({"data": {**data, "validation": {"seen": "test.jsonl", "unseen": "val.jsonl"}}})
    assert first != other
    write_rows("rows.jsonl", "else")
    assert identity.digest_of({"data": {**data, "validation": {"seen": "val.jsonl", "unseen": "test.jsonl"}}}) != first


def test_a_large_file_is_known_by_blocks_all_over_it(here: Path) -> None:
    """A change of a MiB is seen wherever it is; of a small file every byte is."""
    size, file = 10 << 20, Path("weights")
    file.write_bytes(bytes(size))
    digests = {identity.sampled_digest(file)}
    for start in range(0, size, 1 << 20):
        content = bytearray(size)
        content[start : start + (1 << 20)] = b"x" * (1 << 20)
        file.write_bytes(content)
        digests.add(identity.sampled_digest(file))
    assert len(digests) == 11
    small = {}
    for place in (None, 0, 1, (4 << 20) - 1, 2_000_003):
        content = bytearray(4 << 20)
        if place is not None:
            content[place] = 1
        file.write_bytes(content)
        small[place] = identity.sampled_digest(file)
    assert len(set(small.values())) == 5


def test_the_measures_of_a_base_model_are_those_of_its_content(here: Path) -> None:
    def directory(path: str) -> str:
        model = grid(base_model={}, set={"model.lm.path": path}).base_model
        return model.directory

    first = directory("model")
    assert re.fullmatch("base-[0-9a-f]{8}", first)
    assert len({first, directory("org/x"), directory("toyworld")}) == 3
    Path("model").rename("moved")
    Path("model").symlink_to("moved")  # of which the tokenizer is
    assert directory("moved") == first
    Path("moved/model.safetensors").write_text("other weights")
    assert directory("moved") != first


# What is wrong ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"set": {"trainer.max_epoch": 1}},
            "grid.yaml:6: set.trainer.max_epoch: one=only, seed 0: --trainer.max_epoch: no such option; did you mean",
        ),
        ({"set": {"model.loss.alpa": 1}}, "one=only, seed 0: --model.loss.alpa: "),
        ({"set": {"model.loss": "TS3Loss"}}, "did you mean TS2Loss?"),
        ({"set": {"model.loss.alpha": "many"}}, "--model.loss.alpha: expected"),
        ({"set": {"model.loss.alpha": -1}}, "alpha"),
        (
            {"set": {"data.batch_size": 0}},
            "grid.yaml:6: set.data.batch_size: one=only, seed 0: data.batch_size must be a whole number of at least 1",
        ),
        (
            {"set": {"trainer.max_steps": -2}},
            "grid.yaml:6: set.trainer.max_steps: one=only, seed 0: trainer.max_steps must be",
        ),
        ({"set": {"model.optimizer.lr": ".nan"}}, "grid.yaml:6: set.model.optimizer.lr: one=only, seed 0: model.optim"),
        ({"set": {"data.train": "row.jsonl"}}, "no file row.jsonl; did you mean rows.jsonl?"),
        ({"set": {"data.train": "toyworld:trian"}}, "did you mean toyworld:train?"),
        (
            {"axes": {"alpha": {"setting": "model.loss.alpha", "values": [0.5, "many"]}}},
            "grid.yaml:7: axes.alpha.values #2: alpha=many, seed 0: --model",
        ),
        (
            {"seeded": {"model.optimizer.lr": "many{seed}"}},
            "grid.yaml:6: seeded.model.optimizer.lr: one=only, seed 0: --model.optimizer.lr: expected",
        ),
        ({"set": {"trainer.default_root_dir": "x"}}, "set --runs_dir and --name"),
        ({"set": {"model.loss": "other.yaml"}}, "other.yaml"),
        ({"measure": {"toywrld": {}}}, "one=only, seed 0: measure: no measure 'toywrld'; did you mean toyworld?"),
        ({"base_model": {"measure": {"toywrld": {}}}}, "base_model: measure: no measure 'toywrld'"),
        (
            {"base_model": {}, "axes": {"model.lm.path": {"setting": "model.lm.path", "values": ["model", "org/x"]}}},
            ": base_model: the runs start from model and org/x; leave base_model out",
        ),
        (
            {"base_model": {}, "set": {"model.lm.revision": "v1"}},
            ": base_model: it is measured as its path alone; leave",
        ),
        (
            {"base_model": {}, "axes": {"start": {"a": {}, "b": {"set": {"model.lm.init": "random"}}}}},
            ": base_model: it is measured as its path alone; leave base_model out where model.lm.revision is set or",
        ),
        (
            {
                "axes": {"loss": {"a": {}, "b": {"set": {"model.loss.alpa": 1}}}},
                "runs": [{"loss": "a"}, {"loss": "b"}],
                "seeds": [3],
            },
            "axes.loss.b.set.model.loss.alpa: loss=b, seed 3: --model.loss.alpa",
        ),
    ],
    ids=str,
)
def test_what_fit_would_refuse_is_told_with_the_row(here: Path, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as told:
        grid(**parts)
    assert message in str(told.value)
    assert "\n" not in str(told.value)
