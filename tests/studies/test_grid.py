"""Grid files: their rows, and what is said of a wrong one. Nothing is resolved here, so it needs no parser."""

import itertools
import sys
import types
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ts2_lightning.studies.grid.resolve import command_line
from ts2_lightning.studies.grid.schema import GridFile, read_grid_file
from ts2_lightning.types import UserError

AXES = """
axes:
  objective:
    CE: {set: {model.loss: CrossEntropyLoss}}
    "CE, half rate": {set: {model.loss: CrossEntropyLoss, model.optimizer.lr: 2.5e-4}}
    TS2: {set: {model.loss: TS2Loss}}
  beta: {setting: model.loss.beta, values: [0.7, 8.0e-1, 1.0]}
  gamma: {setting: model.loss.gamma, values: [2, 3]}
"""


MEASURED = f"{AXES}seeds: [0, 1, 2]\nmeasure: {{toyworld: {{}}}}\n"
SHORT = {"VALID": "toyworld/seen/validity_t1", "DISTINCT": "toyworld/seen/distinct_t1"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a base configuration."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("seed_everything: 0\n")
    return tmp_path


def form(text: str, base: str = "base: base.yaml") -> GridFile:
    Path("grid.yaml").write_text(base + text, encoding="utf-8")
    return read_grid_file(Path("grid.yaml"))


def rows(text: str) -> list[dict[str, str]]:
    return [row.labels for row in form(AXES + text).rows]


# Rows ---------------------------------------------------------------------------------------------------------------


def test_without_runs_the_rows_are_the_product_of_all_axes(here: Path) -> None:
    found = [tuple(row.values()) for row in rows("")]
    assert found == list(itertools.product(["CE", "CE, half rate", "TS2"], ["0.7", "8.0e-1", "1.0"], ["2", "3"]))


def test_blocks_are_laid_behind_one_another(here: Path) -> None:
    runs = """
runs:
- {objective: [CE, "CE, half rate"]}
- {gamma: 3, beta: all, objective: TS2}
- zip: [{beta: [0.7, 8.0e-1]}, {gamma: [3, 2]}]
- product: [{zip: [{gamma: all}, {beta: [1.0, 0.7]}]}, {objective: ["CE, half rate", CE]}]
"""
    assert rows(runs) == [
        {"objective": "CE"},
        {"objective": "CE, half rate"},
        {"objective": "TS2", "beta": "0.7", "gamma": "3"},
        {"objective": "TS2", "beta": "8.0e-1", "gamma": "3"},
        {"objective": "TS2", "beta": "1.0", "gamma": "3"},
        {"beta": "0.7", "gamma": "3"},
        {"beta": "8.0e-1", "gamma": "2"},
        {"objective": "CE, half rate", "beta": "1.0", "gamma": "2"},
        {"objective": "CE", "beta": "1.0", "gamma": "2"},
        {"objective": "CE, half rate", "beta": "0.7", "gamma": "3"},
        {"objective": "CE", "beta": "0.7", "gamma": "3"},
    ]


def test_labels_have_the_order_of_the_axes(here: Path) -> None:
    assert [list(row) for row in rows("runs: [{gamma: 2, objective: CE, beta: 0.7}]")] == [
        ["objective", "beta", "gamma"]
    ]


def test_a_rule_leaves_out_the_rows_that_have_all_of_its_axes(here: Path) -> None:
    left = rows(
        "runs: [{beta: all}, {beta: all, gamma: all}]\nexclude: [{beta: [0.7, 1.0], gamma: 2}, {gamma: 3, beta: 1.0}]"
    )
    assert left == [
        {"beta": "0.7"},
        {"beta": "8.0e-1"},
        {"beta": "1.0"},
        {"beta": "0.7", "gamma": "3"},
        {"beta": "8.0e-1", "gamma": "2"},
        {"beta": "8.0e-1", "gamma": "3"},
    ]


UNIVERSE = {"a": ["1", "2", "3"], "b": ["x", "y"], "c": ["on", "no", "0.50"]}
ALL_ROWS = [
    {axis: choice for axis, choice in zip(UNIVERSE, choices, strict=True) if choice is not None}
    for choices in itertools.product(*([None, *choices] for choices in UNIVERSE.values()))
]


def some(axis: str) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(UNIVERSE[axis]), min_size=1, unique=True)


plain = st.sets(st.sampled_from(list(UNIVERSE)), min_size=1).flatmap(
    lambda axes: st.fixed_dictionaries({axis: st.just("all") | some(axis) for axis in sorted(axes)})
)
zipped = st.tuples(
    st.permutations(list(UNIVERSE)), st.integers(1, 2)
).flatmap(
    lambda drawn: st.tuples(
        *(
            st.permutations(UNIVERSE[axis]).map(lambda order, axis=axis: {axis: order[: drawn[1]]})  # type: ignore[misc]
            for axis in drawn[0][:2]
        )
    ).map(lambda parts: {"zip": list(parts)})
)
block = plain | zipped | zipped.map(lambda inner: {"product": [inner, {axis_left(inner): "all"}]})


def axis_left(zip_block: dict[str, Any]) -> str:
    taken = {axis for part in zip_block["zip"] for axis in part}
    return next(axis for axis in UNIVERSE if axis not in taken)


def belongs(row: dict[str, str], block: dict[str, Any]) -> bool:
    """Whether a row is of a block, said without making the block's rows."""
    if "zip" in block:
        choices = {axis: wanted for part in block["zip"] for axis, wanted in part.items()}
        if row.keys() != choices.keys():
            return False
        places = {choices[axis].index(row[axis]) if row[axis] in choices[axis] else -1 for axis in row}
        return len(places) == 1 and -1 not in places
    if "product" in block:
        inner, (axis,) = block["product"][0], block["product"][1]
        return axis in row and belongs({name: value for name, value in row.items() if name != axis}, inner)
    return row.keys() == block.keys() and all(block[axis] == "all" or row[axis] in block[axis] for axis in row)


@settings(
    derandomize=True, deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(blocks=st.lists(block, min_size=1, max_size=3), exclude=st.lists(plain, max_size=2))
def test_the_rows_are_those_that_belong(
    here: Path, blocks: list[dict[str, Any]], exclude: list[dict[str, Any]]
) -> None:
    """Against every possible row, each asked whether it belongs."""

    def left_out(row: dict[str, str], rule: dict[str, Any]) -> bool:
        return all(axis in row and (rule[axis] == "all" or row[axis] in rule[axis]) for axis in rule)

    members = [row for block in blocks for row in ALL_ROWS if belongs(row, block)]
    twice = any(members.count(row) > 1 for row in members)
    expected, idle = members, False
    for rule in exclude:
        remaining = [row for row in expected if not left_out(row, rule)]
        idle |= len(remaining) == len(expected)
        expected = remaining
    axes: dict[str, Any] = {axis: {choice: {} for choice in choices} for axis, choices in UNIVERSE.items()}
    content = {"axes": axes, "runs": blocks, **({"exclude": exclude} if exclude else {})}
    text = "\n" + yaml.safe_dump(content, sort_keys=False)
    if twice or idle or not expected:
        with pytest.raises(
            UserError, match="comes twice" if twice else "leaves out no row" if idle else "leaves none of these rows"
        ):
            form(text)
    else:
        found = [row.labels for row in form(text).rows]
        assert sorted(map(sorted, (row.items() for row in found))) == sorted(
            map(sorted, (row.items() for row in expected))
        )


# Settings -----------------------------------------------------------------------------------------------------------


def options(grid: GridFile, row: int = 0, seed: int = 0) -> list[str]:
    return list(command_line(grid.layers(grid.rows[row].labels, seed)))


def test_later_layers_win_and_files_come_before_settings(here: Path) -> None:
    for name in ("second", "choice", "condition"):
        Path(f"{name}.yaml").write_text("{}\n")
    grid = form(
        """
set: {trainer.max_epochs: 1, trainer.log_every_n_steps: 10}
axes:
  length: {setting: trainer.max_epochs, values: [2]}
  objective: {TS2: {config: choice.yaml, set: {model.loss: TS2Loss}}}
when:
- if: {objective: TS2}
  config: condition.yaml
  set: {model.loss.alpha: 5, trainer.log_every_n_steps: 1}
""",
        base="base: [base.yaml, second.yaml]",
    )
    assert options(grid, seed=4) == [
        *("-c", "base.yaml", "-c", "second.yaml", "-c", "choice.yaml", "-c", "condition.yaml"),
        *("--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1"),
        *("--model.loss", "TS2Loss", "--model.loss.alpha", "5", "--seed_everything", "4", "--data.seed", "4"),
    ]


def test_a_class_comes_before_its_settings_in_any_order_of_the_axes(here: Path) -> None:
    grid = form(
        """
axes:
  alpha: {setting: model.loss.alpha, values: [1]}
  objective: {TS2: {set: {model.loss: TS2Loss, trainer.callbacks+: NEFTune}}}
  more: {both: {set: {trainer.callbacks+: Throughput}}}
"""
    )
    words = options(grid)
    assert words.index("--model.loss") < words.index("--model.loss.alpha")
    assert [words[at + 1] for at, word in enumerate(words) if word == "--trainer.callbacks+"] == [
        "NEFTune",
        "Throughput",
    ]


def test_only_what_matches_sets_something(here: Path) -> None:
    when = (
        "when: [{if: {objective: [CE, TS2], gamma: 3}, set: {trainer.max_epochs: 9}, measure: {decoding: sparsemax}}]"
    )
    grid = form(AXES + "runs: [{objective: all, gamma: all}, {objective: CE}]\n" + when)
    changed = [row.labels for row in grid.rows if any(layer.measure for layer in grid.layers(row.labels))]
    assert changed == [{"objective": "CE", "gamma": "3"}, {"objective": "TS2", "gamma": "3"}]


def test_values_are_written_as_one_types_them(here: Path) -> None:
    Path("sub").mkdir()
    Path("sub/ts2.yaml").write_text("{}\n")
    grid = form(
        """
set: {a: 5.0e-4, b: true, c: null, d: [1, "x"], e: {k: 1e-3}, f: "", g: sub/ts2.yaml, h: sub/other.yaml, i: ~}
axes: {one: {only: {}}}
"""
    )
    found = options(grid)
    assert dict(zip(found[2::2], found[3::2], strict=True)) == {
        "--a": "5.0e-4", "--b": "true", "--c": "null", "--d": '[1, "x"]', "--e": '{"k": "1e-3"}', "--f": "",
        "--g": "sub/ts2.yaml", "--h": "sub/other.yaml", "--i": "null", "--seed_everything": "0", "--data.seed": "0",
    }  # fmt: skip


def test_files_are_relative_to_the_grid(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("grids").mkdir()
    Path("loss.yaml").write_text("{}\n")
    Path("grids/grid.yaml").write_text("base: ../base.yaml\nset: {model.loss: ../loss.yaml}\naxes: {one: {only: {}}}\n")
    expected = [["-c", "base.yaml", "--model.loss", "loss.yaml"], ["-c", str(here / "base.yaml"), "--model.loss"]]
    assert options(read_grid_file(Path("grids/grid.yaml")))[:4] == expected[0]
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert options(read_grid_file(here / "grids/grid.yaml"))[:4] == [*expected[1], str(here / "loss.yaml")]


def test_files_of_measures_are_relative_to_the_grid_or_else_to_the_working_directory(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", types.ModuleType("sentence_transformers"))
    sys.modules["sentence_transformers"].__spec__ = ModuleSpec("sentence_transformers", None)
    Path("grids/embedder").mkdir(parents=True)
    for name in ("grids/beside.jsonl", "grids/both.jsonl", "both.jsonl", "here.jsonl"):
        Path(name).touch()
    measure = {
        "decoding": "softmax",
        "toyworld": None,
        "cost": False,
        "validation": {
            "rows": {"a": "beside.jsonl", "b": ["hub:some/set", {"path": "here.jsonl", "times": 2}]},
            "limit": 3,
        },
        "probes": {"rows": None, "prompts": "b*.jsonl", "kinds": ["macro"]},
        "diversity": {"prompts": ["toyworld:test", "both.jsonl"], "sentence_bert": "embedder"},
    }
    grid = {
        "base": "../base.yaml",
        "axes": {"one": {"only": {"measure": {"diversity": {"sentence_bert": "org/model"}}}}},
    }
    Path("grids/grid.yaml").write_text(yaml.safe_dump({**grid, "measure": measure}))
    found = read_grid_file(Path("grids/grid.yaml"))
    assert found.common.measure == measure | {
        "validation": {
            "rows": {"a": "grids/beside.jsonl", "b": ["hub:some/set", {"path": "here.jsonl", "times": 2}]},
            "limit": 3,
        },
        "probes": {"rows": None, "prompts": "grids/b*.jsonl", "kinds": ["macro"]},
        "diversity": {"prompts": ["toyworld:test", "grids/both.jsonl"], "sentence_bert": "grids/embedder"},
    }
    assert found.axes["one"]["only"].measure == {"diversity": {"sentence_bert": "org/model"}}
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match=r"yaml:\d+: .*diversity\.sentence_bert: needs .* pip install .*sentence-bert"):
        read_grid_file(Path("grids/grid.yaml"))


def test_parameters_of_slurm_are_not_judged_without_submitit(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert form(AXES + 'slurm: {partitoin: gpu, time: "24:00:00"}').slurm == {"partitoin": "gpu", "time": "24:00:00"}
    monkeypatch.delitem(sys.modules, "submitit")
    assert form(AXES + "slurm: {partition: null, time: 90}").slurm == {"partition": None, "time": 90}


def test_a_seed_sets_what_the_file_says(here: Path) -> None:
    grid = form(
        '\naxes: {one: {only: {}}}\nseeds: [3, 0]\nseeded: {data.train: "toyworld:train?seed={seed}", x: [1, "{seed}"]}'
    )
    assert grid.seeds == (3, 0)
    assert options(grid, seed=3)[2:] == ["--data.train", "toyworld:train?seed=3", "--x", '[1, "3"]']


def test_what_a_seed_sets_may_be_said_twice(here: Path) -> None:
    """As long as it is the same, and what a seed adds to a list takes nothing away."""
    grid = form("\nset: {a: 5, b: 1}\naxes: {one: {only: {}}}\nseeded: {a: 5, b+: 2, c: '{seed}'}")
    assert options(grid)[2:] == ["--a", "5", "--b", "1", "--b+", "2", "--c", "0"]


def base_model(text: str) -> tuple[str, Mapping[str, Any]]:
    found = form(text)
    return found.base_model.label, found.base_measure


def test_the_base_model_is_measured_like_the_runs_but_for_their_cost(here: Path) -> None:
    text = "\naxes: {one: {only: {}}}\nmeasure: {toyworld: {}, cost: {}}\n"
    assert form(text).base_model is None
    assert base_model(text + "base_model: {}") == ("base", {"toyworld": {}})
    own = "base_model: {label: start, measure: {validation: {}}}"
    assert base_model(text + own) == ("start", {"validation": {}})


# What is wrong ------------------------------------------------------------------------------------------------------

WRONG = {
    "unknown key": ("axis: {}", "grid.yaml:2: axis: no such key; did you mean axes?"),
    "no axes": ("title: x", "grid.yaml:1: axes is missing"),
    "empty axes": ("axes: {}", "grid.yaml:2: axes: expected axes with their choices, got an empty mapping"),
    "axes of a list": ("axes: [a]", "grid.yaml:2: axes: expected axes with their choices, got a list"),
    "empty axis": (
        "axes: {a: {}}",
        "axes.a: expected choices with their settings, or `setting:` and `values:`, got an",
    ),
    "axis true": (
        "axes: {a: true}",
        "axes.a: expected choices with their settings, or `setting:` and `values:`, got 'true'",
    ),
    "axis of a list": ("axes: {a: [1, 2]}", "or `setting:` and `values:`, got a list"),
    "no values": ("axes: {a: {setting: x, values: []}}", "axes.a.values: expected a list of values, got an empty list"),
    "values missing": ("axes: {a: {setting: x}}", "axes.a: values is missing"),
    "values of no list": ("axes: {a: {setting: x, values: 3}}", "axes.a.values: expected a list of values, got '3'"),
    "value of a list": (
        "axes: {a: {setting: x, values: [[1]]}}",
        "axes.a.values #1: expected a single value, got a list",
    ),
    "value twice": ("axes: {a: {setting: x, values: [1, 2, 1]}}", "axes.a.values #3: 1 comes twice"),
    "key of a choice": ("axes: {a: {b: {sets: {}}}}", "grid.yaml:2: axes.a.b.sets: no such key; did you mean set?"),
    "choice of no mapping": ("axes: {a: {b: 3}}", "axes.a.b: expected a mapping with config, set, measure, got '3'"),
    "set of no mapping": ("axes: {a: {b: {set: true}}}", "axes.a.b.set: expected `setting: value` lines, got 'true'"),
    "set of nothing": ("axes: {a: {b: {set: }}}", "axes.a.b.set: expected `setting: value` lines, got nothing"),
    "config not there": (
        "axes: {a: {b: {config: bse.yaml}}}",
        "axes.a.b.config: bse.yaml: no such file; did you mean base",
    ),
    "choice all": ("axes: {a: {all: {}}}", "axes.a: no choice can be called 'all', which stands for all of them"),
    "axis zip": ("axes: {zip: {b: {}}}", "axes.zip: the name is taken, blocks of runs use it"),
    "axis seed": ("axes: {seed: {b: {}}}", "axes.seed: the name is taken, `seeds` is what it would mean"),
    "tag": (
        "axes: {a: {b: {set: {x: !!python/object:os.system 1}}}}",
        "axes.a.b.set.x: not plain YAML: could not determine",
    ),
    "tag of a mapping": ("axes: {a: {b: {set: {x: !!omap [{y: 1}]}}}}", "axes.a.b.set.x: not plain YAML: tag"),
    "a list as a key": ("axes: {a: {b: {set: {[x, y]: 1}}}}", "axes.a.b.set: not plain YAML: unhashable type: 'list'"),
    "merge of a number": ("axes: {a: {<<: 3}}", "axes.a: not plain YAML: expected a mapping or list of mappings"),
    "runs of a mapping": (AXES + "runs: {objective: CE}", "grid.yaml:9: runs: expected a list of blocks"),
    "no runs": (
        AXES + "runs: []",
        "runs: expected a list of blocks, such as `- {objective: [CE, TS2]}`, got an empty list",
    ),
    "empty block": (AXES + "runs: [{}]", "runs #1: expected a block such as"),
    "axis of a block": (
        AXES + "runs:\n- {objective: CE}\n- {btea: 0.7}",
        "grid.yaml:11: runs #2.btea: no axis 'btea'; did",
    ),
    "choice of a block": (
        AXES + "runs: [{objective: [CE, TS3]}]",
        "runs #1.objective #2: no choice of objective 'TS3'; did",
    ),
    "number as another": (AXES + "runs: [{beta: 0.70}]", "runs #1.beta: no choice of beta '0.70'; did you mean 0.7?"),
    "choice twice": (AXES + "runs: [{objective: [CE, CE]}]", "runs #1.objective: 'CE' comes twice"),
    "no choice": (
        AXES + "runs: [{objective: []}]",
        "runs #1.objective: expected a choice or choices, got an empty list",
    ),
    "choice a mapping": (
        AXES + "runs: [{objective: {CE: 1}}]",
        "runs #1.objective: expected a single value, got a mapping",
    ),
    "row twice": (
        AXES + "runs:\n- {beta: all, gamma: 3}\n- {gamma: 3, beta: 0.7}",
        "grid.yaml:11: runs #2: the row gamma=3 beta",
    ),
    "zip": (AXES + "runs: [{zip: [{beta: all}, {gamma: all}]}]", "a zip must be equally long, got 3 and 2 rows"),
    "zip of one axis": (
        AXES + "runs: [{zip: [{beta: all}, {beta: all}]}]",
        "runs #1.zip #2: axis 'beta' is in another part",
    ),
    "zip and axis": (AXES + "runs: [{zip: [{beta: 0.7}], gamma: 2}]", "runs #1: zip stands alone in its block"),
    "zip of no list": (AXES + "runs: [{zip: {beta: all}}]", "runs #1.zip: expected a list of blocks, got a mapping"),
    "product": (AXES + "runs: [{product: [{beta: 0.7}, {beta: 1.0, gamma: 2}]}]", "axis 'beta' is in another part too"),
    "exclude axis": (AXES + "exclude: [{gama: 2}]", "exclude #1.gama: no axis 'gama'; did you mean gamma?"),
    "exclude choice": (AXES + "exclude: [{gamma: 9}]", "exclude #1.gamma: no choice of gamma '9'; there are 2, 3"),
    "exclude nothing": (
        AXES + "runs: [{gamma: 2}]\nexclude: [{gamma: 3}]",
        "grid.yaml:10: exclude #1: leaves out no row",
    ),
    "exclude all": (AXES + "exclude: [{gamma: all}]", "grid.yaml:2: axes: exclude leaves none of these rows"),
    "exclude no list": (
        AXES + "exclude: {gamma: 2}",
        "exclude: expected a list, one `- ` for each exclude, got a mapping",
    ),
    "when key": (AXES + "when: [{iff: {gamma: 2}}]", "when #1.iff: no such key; did you mean if?"),
    "when axis": (AXES + "when: [{if: {gama: 2}, set: {a: 1}}]", "when #1.if.gama: no axis 'gama'"),
    "when choice": (AXES + "when: [{if: {gamma: [2, 4]}, set: {a: 1}}]", "when #1.if.gamma #2: no choice of gamma '4'"),
    "when nothing": (AXES + "when: [{if: {gamma: 2}}]", "when #1: sets nothing; give it one of config, set, measure"),
    "when never": (
        AXES + "runs: [{beta: all}]\nwhen: [{if: {gamma: 2}, set: {a: 1}}]",
        "when #1.if: no row of the grid is",
    ),
    "seeds": (AXES + "seeds: 3", "grid.yaml:9: seeds: expected a list of whole numbers, such as [0, 1, 2], got '3'"),
    "seed twice": (AXES + "seeds: [0, 1, 0]", "seeds #3: seed 0 comes twice"),
    "seed true": (
        AXES + "seeds: [true]",
        "seeds #1: must be a whole number of at least 0 and at most 4294967295, got True",
    ),
    "seed below": (
        AXES + "seeds: [-1]",
        "seeds #1: must be a whole number of at least 0 and at most 4294967295, got -1",
    ),
    "placeholder": (
        AXES + "seeded: {a: '{sed}'}",
        "seeded.a: {sed} is not known in '{sed}'; the seed is written {seed}",
    ),
    "no placeholder": (
        AXES + "seeded: {a: 1}",
        "seeded: no value has {seed}, so that all seeds would be the same training",
    ),
    "seeded choices": (
        "\naxes: {rows: {setting: data.train, values: [a.jsonl, b.jsonl]}}\nseeded: {data.train: 'rows?seed={seed}'}",
        "grid.yaml:2: axes.rows.values #1: data.train is what a seed sets, which comes after this; take it out here",
    ),
    "seeded by default": (
        AXES + "seeds: [0, 1]\nset: {data.seed: 0}",
        "grid.yaml:10: set.data.seed: data.seed is what a seed sets",
    ),
    "a place": (
        AXES + "set: {ckpt_path: last.ckpt}",
        "grid.yaml:9: set.ckpt_path: a grid sees to where its runs lie and from where they go on; take it out",
    ),
    "a seeded place": (
        AXES + "seeded: {name: 'run-{seed}', data.seed: '{seed}'}",
        "grid.yaml:9: seeded.name: a grid sees to where its runs lie",
    ),
    "seeded condition": (
        AXES + "runs: [{beta: all}]\nwhen: [{if: {beta: 0.7}, set: {a+: 1}}]\nseeded: {a: '{seed}'}",
        "when #1.set.a+: a is what a seed sets",
    ),
    "seed elsewhere": (AXES + "set: {a: '{seed}'}", "set.a: {seed} stands only in values of seeded"),
    "measure": (
        AXES + "measure: [toyworld]",
        "measure: expected measures with their settings, such as {validation: {}}, got a",
    ),
    "base_model": (AXES + "base_model: {name: base}", "base_model.name: no such key"),
    "base_model true": (AXES + "base_model: true", "base_model: expected a mapping with label, measure, got 'true'"),
    "report": (AXES + "report: {colums: [a]}", "report.colums: no such key; did you mean columns?"),
    "columns": (AXES + "report: {columns: a}", "report.columns: expected a list, one `- ` for each columns, got 'a'"),
    "column": (AXES + "report: {columns: [[a]]}", "report.columns #1: expected a single value, got a list"),
    "plane": (AXES + "report: {planes: [{x: a}]}", "report.planes #1: y is missing"),
    "paper columns": (AXES + "report: {paper_columns: 3}", "report.paper_columns: expected 1 or 2, the columns of a"),
    "paper columns true": (AXES + "report: {paper_columns: true}", "report.paper_columns: expected 1 or 2"),
    "against": (AXES + "report: {against: [{axis: alpha, metrics: [a]}]}", "report.against #1.axis: no axis 'alpha'"),
    "metrics": (AXES + "report: {against: [{axis: beta, metrics: a}]}", "report.against #1.metrics: expected a list"),
    "value of no measure": (
        AXES + "measure: {toyworld: {}}\nreport: {columns: [val/entropy, validation/entropy]}",
        "grid.yaml:10: report.columns #2: validation/entropy: the grid does not measure 'validation'; did you mean",
    ),
    "value of a wrong measure": (
        AXES + "measure: {toyworld: {}}\nreport: {planes: [{x: toywrld/seen/distinct_t1, y: toyworld/mine}]}",
        "report.planes #1.x: toywrld/seen/distinct_t1: the grid does not measure 'toywrld'; did you mean toyworld/seen",
    ),
    "value left out": (
        AXES + "measure: {cost: false}\nreport: {columns: [cost/seconds]}",
        "report.columns #1: cost/seconds: the grid does not measure 'cost'; it measures nothing",
    ),
    "wrong value": (
        AXES + "measure: {toyworld: {}}\nreport: {against: [{axis: beta, metrics: [toyworld/seen/validty_t1]}]}",
        "metrics #1: toyworld has no value 'toyworld/seen/validty_t1'; did you mean toyworld/seen/validity_t1?",
    ),
    "wrong value of a set": (
        AXES + "measure: {validation: {}}\nreport: {columns: [validation/chat/entropy, validation/chat/entrpy]}",
        "report.columns #2: validation has no value 'validation/chat/entrpy'",
    ),
    "curve of a measure": (
        AXES + "report: {curves: [train/any, mine/entropy, validation/entropy]}",
        "report.curves #3: nothing is logged as 'validation/entropy'; did you mean val/entropy?",
    ),
    "wrong curve": (AXES + "report: {curves: [trian/entropy]}", "as 'trian/entropy'; did you mean train/entropy?"),
    "curve of no stage": (AXES + "report: {curves: [tail_mass]}", "as 'tail_mass'; did you mean"),
    "baseline": (
        AXES + "report: {baseline: {objective: EC}}",
        "report.baseline.objective: no choice of objective 'EC'",
    ),
    "baseline of many": (
        AXES + "report: {baseline: {objective: [CE, TS2]}}",
        "report.baseline: expected one choice of objective, got 2",
    ),
    "baseline of none": (
        AXES + "runs: [{beta: 0.7}]\nreport: {baseline: {gamma: 2}}",
        "report.baseline: no row of the grid is meant; name the choice of fewer axes",
    ),
    "dial": (
        MEASURED + "report: {frontiers: [{dials: [bta], quality: VALID, diversity: DISTINCT, at: 0.9}]}",
        "grid.yaml:11: report.frontiers #1.dials #1: no axis 'bta'; did you mean beta?",
    ),
    "dials": (
        MEASURED + "report: {frontiers: [{dials: [beta, gamma, objective], quality: VALID, diversity: DISTINCT}]}",
        "report.frontiers #1: dials: expected one axis or two different ones, got beta, gamma, objective",
    ),
    "dial twice": (
        MEASURED + "report: {frontiers: [{dials: [beta, beta], quality: VALID, diversity: DISTINCT}]}",
        "dials: expected one axis or two different ones, got beta, beta",
    ),
    "dial with one point": (
        MEASURED + "report: {frontiers: [{dials: [beta], quality: VALID, diversity: DISTINCT, where: {beta: 0.7}}]}",
        "report.frontiers #1.dials #1: a dial needs at least two choices, beta has 1 in these rows",
    ),
    "quality of no measure": (
        MEASURED + "report: {frontiers: [{dials: [beta], quality: gsm8k/accuracy, diversity: DISTINCT, at: 0.9}]}",
        "report.frontiers #1.quality: gsm8k/accuracy: the grid does not measure 'gsm8k'",
    ),
    "diversity without a better direction": (
        MEASURED + "report: {frontiers: [{dials: [beta], quality: VALID, diversity: toyworld/seen/entropy, at: 0.9}]}",
        "report.frontiers #1.diversity: toyworld/seen/entropy: neither direction is better",
    ),
    "where": (
        MEASURED + "report: {frontiers: [{dials: [beta], quality: VALID, diversity: DISTINCT, where: {gamma: 9}}]}",
        "report.frontiers #1.where.gamma: no choice of gamma '9'",
    ),
    "no quality to compare at": (
        MEASURED + "report: {frontiers: [{dials: [beta], quality: VALID, diversity: DISTINCT}]}",
        "report.frontiers #1: at: no baseline is named; give a quality such as 0.95",
    ),
    "too many qualities to compare at": (
        MEASURED.replace("[0.7, 8.0e-1, 1.0]", "[1, 2, 3, 4, 5]")
        + "report: {baseline: {objective: CE}, frontiers: [{dials: [gamma], quality: VALID, diversity: DISTINCT}]}",
        "report.frontiers #1: at: the baseline has 10 of these rows; give a quality such as 0.95",
    ),
    "quality of many rows": (
        MEASURED + "report: {frontiers: [{dials: [beta], quality: VALID, diversity: DISTINCT, at: [{objective: CE}]}]}",
        "report.frontiers #1.at #1: must mean one row of these, means 6; name the choice of more axes",
    ),
    "quality that is none": (
        MEASURED + "report: {frontiers: [{dials: [beta], quality: VALID, diversity: DISTINCT, at: high}]}",
        "report.frontiers #1.at: expected a quality such as 0.95, choices of a row, or baseline, got 'high'",
    ),
    "best of no axis": (
        MEASURED + "report: {best: [{axis: bet, by: VALID, choose_on: [0], report_on: [1]}]}",
        "report.best #1.axis: no axis 'bet'; did you mean beta?",
    ),
    "best of one": (
        MEASURED + "report: {best: [{axis: beta, by: VALID, choose_on: [0], report_on: [1], where: {beta: 0.7}}]}",
        "report.best #1.axis: nothing to choose: beta has less than two choices in these rows",
    ),
    "best by no direction": (
        MEASURED + "report: {best: [{axis: beta, by: toyworld/seen/entropy, choose_on: [0], report_on: [1]}]}",
        "report.best #1.by: toyworld/seen/entropy: neither direction is better, so that none is the best",
    ),
    "best on a seed that is not there": (
        MEASURED + "report: {best: [{axis: beta, by: VALID, choose_on: [0], report_on: [7]}]}",
        "report.best #1.report_on #1: the grid has no seed 7; it has 0, 1, 2",
    ),
    "best on the same seed": (
        MEASURED + "report: {best: [{axis: beta, by: VALID, choose_on: [0, 1], report_on: [1, 2]}]}",
        "report.best #1.report_on #1: seed 1 decides too: what is chosen and reported on the same numbers looks too",
    ),
    "best on half the seeds": (
        MEASURED + "report: {best: [{axis: beta, by: VALID, choose_on: [0]}]}",
        "report.best #1: choose_on and report_on belong together",
    ),
    "best on the same rows": (
        MEASURED + "report: {best: [{axis: beta, by: VALID, columns: [toyworld/unseen/validity_t1, DISTINCT]}]}",
        "report.best #1: chosen by toyworld/seen/validity_t1 and reported on toyworld/seen/distinct_t1, of the same",
    ),
    "best on nothing": (
        MEASURED + "report: {best: [{axis: beta, by: VALID}]}",
        "report.best #1: give choose_on and report_on, or columns with values of other prompts or rows",
    ),
    "axis of a measure": (
        "axes: {a: {measure: temperature, values: [1, 2]}}",
        "axes.a.measure: expected a measure and its setting, such as diversity.temperature, got 'temperature'",
    ),
    "axis of two": (
        "axes: {a: {measure: diversity.top_k, setting: b, values: [1, 2]}}",
        "axes.a: expected one of setting and measure beside values",
    ),
    "share above 1": (
        "axes: {interpolate: [0.5, 1.5]}",
        "grid.yaml:2: axes.interpolate #2: must be a finite number of at least 0 and at most 1, got 1.5",
    ),
    "share twice": ("axes: {interpolate: [0.5, 0.50]}", "grid.yaml:2: axes.interpolate #2: 0.50 comes twice"),
    "shares of a kind": (
        "axes: {interpolate: {half: {}}}",
        "axes.interpolate: expected a list of shares of the way from the base model to the tuned one, such as",
    ),
    "slurm": (AXES + "slurm: [gpu]", "slurm: expected a mapping of submitit's parameters, got a list"),
    "slurm key": (
        AXES + "slurm: {partitoin: gpu}",
        "grid.yaml:9: slurm.partitoin: submitit has no such parameter; did",
    ),
    "slurm time": (
        AXES + "slurm:\n  partition: gpu\n  time: 24:00:00",
        'grid.yaml:11: slurm.time: YAML reads 24:00:00 as the number 86400; write it in quotes: "24:00:00"',
    ),
    "rows": (
        AXES + "measure:\n  validation: {rows: bse.yaml}",
        "grid.yaml:10: measure.validation.rows: no file bse.yaml; did you mean base.yaml?",
    ),
    "rows of a kind": (
        AXES + "measure: {validation: {rows: base.yaml}}",
        "rows: base.yaml: rows are read from files that",
    ),
    "rows of the toy world": (AXES + "measure: {validation: {rows: 'toyworld:trian'}}", "did you mean toyworld:train?"),
    "prompts of a choice": (
        "axes: {a: {b: {measure: {diversity: {prompts: [{path: 'no*.jsonl'}]}}}}}",
        "grid.yaml:2: axes.a.b.measure.diversity.prompts #1.path: no file no*.jsonl",
    ),
    "split of rows": (
        AXES + "measure: {validation: {rows: {path: no.jsonl, split: test}}}",
        "grid.yaml:9: measure.validation.rows.path: no file no.jsonl",
    ),
    "rows of a set": (
        AXES + "base_model: {measure: {probes: {rows: {chat: no.jsonl}}}}",
        "base_model.measure.probes.rows.chat: no file no.jsonl",
    ),
    "key twice": (AXES + "seeds: [0]\nseeds: [1]", "grid.yaml:10: seeds was given before, on line 9; keep one"),
    "no YAML": (AXES + "runs: [{a: b]", "grid.yaml:9: not valid YAML:"),
    "title": (AXES + "title: [a]", "title: expected a single value, got a list"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_told_in_one_line(here: Path, text: str, message: str) -> None:
    for short, name in SHORT.items():
        text = text.replace(short, name)
    with pytest.raises(UserError) as told:
        form("\n" + text.lstrip("\n"))
    assert message in str(told.value)
    assert str(told.value).startswith("grid.yaml:")
    assert "\n" not in str(told.value)


WHOLE = {
    "title": "t",
    "paper": "p",
    "base": ["base.yaml"],
    "set": {"a": 1},
    "axes": {
        "x": {"one": {"set": {"b": 2}, "measure": {}, "config": "base.yaml"}},
        "y": {"setting": "c", "values": [1, 2, 3]},
        "z": {"measure": "toyworld_decoded.temperature", "values": [0.5, 1]},
    },
    "runs": [{"x": "one"}, {"zip": [{"x": "one"}, {"y": [1]}]}, {"product": [{"y": "all"}]}],
    "exclude": [{"y": 2}],
    "when": [{"if": {"y": 1}, "set": {"d": 3}}],
    "seeds": [0, 1],
    "seeded": {"e": "{seed}"},
    "measure": {"toyworld": {}},
    "base_model": {"label": "b", "measure": {}},
    "report": {
        "baseline": {"x": "one", "y": 1},
        "columns": ["toyworld/accuracy"],
        "planes": [{"x": "val/entropy", "y": "toyworld/seen/validity_t1"}],
        "against": [{"axis": "y", "metrics": ["toyworld/mine"]}],
        "curves": ["val/chat/entropy"],
        "frontiers": [
            {
                "dials": ["y"],
                "quality": "toyworld/seen/validity_t1",
                "diversity": "toyworld/seen/distinct_t1",
                "at": [0.9, {"x": "one", "y": 1}, "baseline"],
                "where": {"y": [1, 3]},
            }
        ],
        "best": [{"axis": "y", "by": "toyworld/accuracy", "choose_on": [0], "report_on": [1], "columns": ["val/a"]}],
    },
    "slurm": {"partition": "p"},
}
ANYTHING: list[Any] = [
    None,
    True,
    3,
    -1.5,
    "",
    "x",
    "{seed}",
    "all",
    [],
    {},
    [[]],
    [None],
    {"x": None},
    {"x": {"y": "all"}},
    {"zip": 1},
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in inner for place in places(child, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], by)
    return copy


def said_of(content: Any) -> str:
    """What is said of a grid; nothing if it can be read."""
    Path("grid.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    try:
        read_grid_file(Path("grid.yaml"))
    except UserError as error:
        return str(error)
    return ""


def test_whatever_stands_in_a_place_it_is_read_or_refused_in_one_line(here: Path) -> None:
    """Every part of a grid, replaced by a third of all kinds of values."""
    assert said_of(WHOLE) == ""
    told = [
        said_of(replaced(WHOLE, path, value))
        for number, path in enumerate(places(WHOLE))
        for value in ANYTHING[number % 3 :: 3]
    ]
    assert all(text.startswith("grid.yaml") and "\n" not in text for text in told if text)
    assert len(told) / 10 < told.count("") < len(told) / 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "grid.yaml: the file is empty; it needs at least base and axes"),
        ("- a", "grid.yaml: expected `key: value` lines at the top level"),
        ("axes: {a: {b: {}}}", "grid.yaml:1: base is missing"),
        (
            "base: []\naxes: {a: {b: {}}}",
            "grid.yaml:1: base: expected a configuration file or a list of them, got an empty",
        ),
        ("base: bass.yaml\naxes: {a: {b: {}}}", "grid.yaml:1: base: bass.yaml: no such file; did you mean base.yaml?"),
        ("base: [base.yaml, sub/x.yaml]\naxes: {a: {b: {}}}", "base #2: sub/x.yaml: no directory sub"),
        ("a: \x00", "grid.yaml: "),
    ],
)
def test_a_file_that_is_no_grid(here: Path, content: str, message: str) -> None:
    Path("grid.yaml").write_text(content)
    with pytest.raises(UserError) as told:
        read_grid_file(Path("grid.yaml"))
    assert message in str(told.value)


@pytest.mark.parametrize(("name", "message"), [("gird.yaml", "did you mean grid.yaml?"), (".", "is a directory")])
def test_a_file_that_is_not_there(here: Path, name: str, message: str) -> None:
    form(AXES)
    with pytest.raises(UserError, match=message):
        read_grid_file(Path(name))


# Dials --------------------------------------------------------------------------------------------------------------


def test_an_axis_of_a_measures_setting_needs_no_training_of_its_own(here: Path) -> None:
    grid = form("\naxes:\n  temperature: {measure: toyworld_decoded.temperature, values: [0.5, 1]}\n")
    assert list(grid.axes["temperature"]) == ["0.5", "1"]
    layers = grid.layers({"temperature": "0.5"})
    assert [dict(layer.measure) for layer in layers] == [{}, {"toyworld_decoded": {"temperature": 0.5}}]
    assert not any(layer.set for layer in layers)


def test_what_is_wanted_along_dials_is_recorded_as_it_is_written(here: Path) -> None:
    """The names of choices are texts: 1.0 is another one than 1."""
    text = """report:
  baseline: {objective: CE}
  frontiers:
  - dials: [beta]
    quality: toyworld/seen/validity_t1
    diversity: toyworld/seen/distinct_t1
    at: [0.95, baseline, {objective: CE, beta: 8.0e-1, gamma: 2}]
    where: {gamma: 2, objective: [CE, TS2]}
  best:
  - {axis: beta, by: toyworld/seen/validity_t1, choose_on: [0], report_on: [1, 2]}
  - {axis: beta, by: toyworld/seen/validity_t1, columns: [toyworld/unseen/distinct_t1]}
"""
    report = form(MEASURED + text).report
    assert report is not None
    record = report.record()
    assert record["baseline"] == {"objective": "CE"}
    assert record["frontiers"] == [
        {
            "dials": ["beta"],
            "quality": "toyworld/seen/validity_t1",
            "diversity": "toyworld/seen/distinct_t1",
            "at": [0.95, "baseline", {"objective": "CE", "beta": "8.0e-1", "gamma": "2"}],
            "where": {"gamma": ["2"], "objective": ["CE", "TS2"]},
        }
    ]
    assert [(best["choose_on"], best["report_on"], best["columns"]) for best in record["best"]] == [
        ([0], [1, 2], []),
        ([], [], ["toyworld/unseen/distinct_t1"]),
    ]
