"""What is wanted, what is known of values, and what is kept on disk; `tests/cli/test_measure.py` makes measures."""

import hashlib
import importlib
import json
import math
import pickle
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config

from ts2_lightning.evaluation import (
    Model,
    Spec,
    check_spec,
    describe,
    described,
    described_by,
    files_of,
    make_measures,
    place_of,
    registered_measures,
)
from ts2_lightning.evaluation import model as model_file
from ts2_lightning.evaluation.measure import Measured
from ts2_lightning.evaluation.measures.probes import Probes
from ts2_lightning.evaluation.results import kept_values, read_result, write_result
from ts2_lightning.types import SettingError, UserError
from ts2_lightning.values import Value


def test_a_spec_is_read() -> None:
    spec = check_spec(
        {
            "cost": None,
            "toyworld": {},
            "decoding": "sparsemax",
            "validation": {"rows": [{"path": "hub:some/set", "split": "test"}, "b.jsonl"], "limit": "7"},
            "probes": False,
            "diversity": True,
        }
    )
    assert (spec.decoding, spec.template) == ("sparsemax", "auto")
    assert [measure.name for measure in spec.measures] == ["toyworld", "validation", "diversity", "cost"]
    settings = asdict(spec.measures[1])
    assert settings["limit"] == 7
    assert settings["rows"][0]["path"] == "hub:some/set"
    assert settings["rows"][1] == "b.jsonl"
    assert json.loads(json.dumps(settings)) == settings
    assert check_spec({}) == Spec()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"toyworl": {}}, "grid: no measure 'toyworl'; did you mean toyworld?"),
        ({"speed": {}}, f"grid: no measure 'speed'; there are {', '.join(registered_measures())}"),
        ({"decoding": "sparsmax"}, "grid.decoding: no decoding 'sparsmax'; did you mean sparsemax?"),
        ({"decoding": ["softmax"]}, "grid.decoding: no decoding ['softmax']"),
        ({"interpolate": "half"}, "grid.interpolate must be a finite number of at least 0 and at most 1, got 'half'"),
        ({"interpolate": 1.01}, "grid.interpolate must be a finite number of at least 0 and at most 1, got 1.01"),
        ({"template": 3}, "grid.template must be the name of a chat template, got 3"),
        ({"validation": {"limt": 3}}, "grid.validation: no setting 'limt'; did you mean limit?"),
        ({"toyworld": {"limit": 3}}, "grid.toyworld: no setting 'limit'; there are none"),
        ({"validation": {"limit": "many"}}, "grid.validation.limit: expected int | null, got 'many'"),
        ({"validation": {"limit": 0}}, "grid.validation: limit must be a whole number of at least 1 or null, got 0"),
        ({"validation": {"logit_scale": 0}}, "grid.validation: logit_scale must be a finite number above 0, got 0"),
        ({"validation": {"rows": 3}}, "grid.validation.rows: expected"),
        ({"validation": [1]}, "grid.validation must be a mapping of settings"),
        ({"probes": {"kinds": ["tails"]}}, "grid.probes.kinds: expected list["),
        ({"probes": {"kinds": []}}, "grid.probes: kinds: name some of micro, macro, tail, tspd"),
        ({"probes": {"temperature": -1}}, "grid.probes: temperature must be"),
        ({"diversity": {"samples": 1}}, "grid.diversity: samples must be a whole number of at least 2, got 1"),
        ({"diversity": {"temperature": 0}}, "grid.diversity: temperature must be a finite number above 0, got 0"),
        ({"diversity": {"top_p": 1.5}}, "grid.diversity: top_p must be"),
        (["toyworld"], "grid must be a mapping such as {validation: {}, cost: {}}, got ['toyworld']"),
    ],
)
def test_one_line_says_what_is_wrong(spec: object, said: str) -> None:
    with pytest.raises(UserError) as error:
        check_spec(spec, "grid")  # type: ignore[arg-type]
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


OWN = """
from dataclasses import dataclass
from typing import ClassVar
from ts2_lightning.evaluation import Measure, Measured
from ts2_lightning.values import Value

@dataclass(frozen=True)
class Own(Measure):
    name: ClassVar[str] = "own"
    size: int = 1
    def measure(self, model, beside):
        return Measured({"a": 1.0})

class Undecorated(Own):
    size: int = 2

@dataclass(frozen=True)
class Needs(Own):
    of: str = None
    def __post_init__(self):
        if self.of is None:
            raise RuntimeError("of what?")

class Abstract(Measure):
    name = "own"

class Nameless(Measure):
    def measure(self, model, beside): ...

class Elsewhere(Nameless):
    name = "../own"

class Logged(Nameless):
    name = "val"

class Ours(Nameless):
    name = "probes"

class Undescribed(Nameless):
    name, values = "own", ("a",)

class Twice(Own):
    values = (Value("a", "one"), Value("a", "another"))

@dataclass(frozen=True)
class Required(Nameless):
    name: ClassVar[str] = "own"
    x: int
    def measure(self, model, beside): ...
"""


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module of the user's own, with `OWN` in it."""
    name = f"own_measures_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(OWN)
    for file, text in (("broken", "x = = 1"), ("raises", "1 / 0"), ("leaves", "raise SystemExit(3)")):
        (tmp_path / f"{name}_{file}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("measure", "settings", "said"),
    [
        ("{}_broken.Own", {}, "grid: measure {}_broken.Own cannot be imported (SyntaxError: "),
        ("{}_raises.Own", {}, "grid: measure {}_raises.Own cannot be imported (ZeroDivisionError: division by zero)"),
        ("{}_leaves.Own", {}, "grid: measure {}_leaves.Own cannot be imported (SystemExit: 3)"),
        ("{}.Abstract", {}, "grid: {}.Abstract: it lacks the method measure"),
        ("{}.Nameless", {}, "grid: {}.Nameless: `name` must be letters, digits, _ and -"),
        ("{}.Elsewhere", {}, "grid: {}.Elsewhere: `name` must be letters, digits, _ and -"),
        ("{}.Logged", {}, "grid: {}.Logged: `name` must be letters, digits, _ and -"),
        ("{}.Ours", {}, "grid: {}.Ours: there is a measure called 'probes' already"),
        ("{}.Undescribed", {}, "grid: {}.Undescribed: `values` must be a tuple of ts2_lightning.values.Value"),
        ("{}.Twice", {}, "grid: {}.Twice: two of its `values` have one name: a, a"),
        ("{}.Undecorated", {}, "grid: {}.Undecorated: write @dataclass(frozen=True) above the class"),
        ("{}.Required", {}, "grid.{}.Required: it needs x, which has no default"),
        ("{}.Own", {"size": "a"}, "grid.{}.Own.size: expected int, got 'a'"),
        ("{}.Needs", {}, "grid.{}.Needs: these settings cannot be taken (RuntimeError: of what?)"),
    ],
)
def test_one_line_says_what_is_wrong_with_a_class(own_file: str, measure: str, settings: object, said: str) -> None:
    with pytest.raises(UserError) as error:
        check_spec({measure.format(own_file): settings}, "grid")
    assert str(error.value).startswith(said.format(own_file))


def test_two_measures_of_one_name(own_file: str) -> None:
    with pytest.raises(UserError, match="grid: two measures are called 'own'"):
        check_spec({f"{own_file}.Own": {}, f"{own_file}.Needs": {"of": "b"}}, "grid")
    one = check_spec({f"{own_file}.Own": {}, f"{own_file}.Needs": False}, "grid").measures
    assert [measure.name for measure in one] == ["own"]


def test_a_class_that_has_changed_is_made_again(own_file: str, tmp_path: Path) -> None:
    model = Model("m", "identity", lambda: "m", tmp_path)
    lines: list[str] = []
    for number, code in ((1.0, OWN), (1.0, OWN), (2.0, OWN.replace('"a": 1.0', '"a": 2.00'))):
        sys.modules.pop(own_file, None)
        (tmp_path / f"{own_file}.py").write_text(code)
        importlib.invalidate_caches()
        assert make_measures(model, check_spec({f"{own_file}.Own": {}}), lines.append) == {"own/a": number}
    assert ["kept" in line for line in lines] == [False, True, False]


def test_values_of_weights_between_lie_apart(own_file: str, tmp_path: Path) -> None:
    spec = check_spec({f"{own_file}.Own": {}, "interpolate": 0.25})
    model = Model("m", "identity", lambda: "m", tmp_path)
    with pytest.raises(UserError, match=r"measure\.interpolate is 0\.25, and m has the weights at 1$"):
        make_measures(model, spec, print)
    make_measures(replace(model, interpolate=0.25), spec, lambda _: None)
    make_measures(model, replace(spec, interpolate=1.0), lambda _: None)
    [between] = (tmp_path / "measures").glob("interpolate-0.25/own-*.json")
    assert [file.name for file in (tmp_path / "measures").glob("*.json")] == [between.name]


@pytest.mark.parametrize("hook", ["check_model", "inputs", "measure", "draw"])
def test_an_error_in_the_code_of_a_users_measure_is_told_with_its_line(
    own_file: str, tmp_path: Path, hook: str
) -> None:
    file = tmp_path / f"{own_file}.py"
    helper = "def helper():\n    return [[].pop() for _ in 'a']  # here\n"
    file.write_text(f"{OWN}\n{helper}\nclass Failing(Own):\n    def {hook}(self, *_):\n        helper()\n")
    [line] = [number for number, text in enumerate(file.read_text().splitlines(), 1) if text.endswith("# here")]
    with pytest.raises(UserError) as error:
        make_measures(Model("m", "identity", lambda: "m", tmp_path), check_spec({f"{own_file}.Failing": {}}), print)
    assert str(error.value) == f"own: {file}, line {line}: IndexError: pop from empty list"


def test_an_error_in_a_measure_of_ours_is_not_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: Any) -> Measured:
        raise IndexError("of ours")

    spec = check_spec({"cost": {}})
    monkeypatch.setattr(type(spec.measures[0]), "measure", measure)
    monkeypatch.setattr(type(spec.measures[0]), "check_model", lambda *_: None)
    monkeypatch.setattr(type(spec.measures[0]), "inputs", lambda *_: None)
    with pytest.raises(IndexError, match="of ours"):
        make_measures(Model("m", "identity", lambda: "m", tmp_path), spec, print)


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (None, r"own: `measure` must return Measured\({NAME: NUMBER}\), got None"),
        ({"a": 1.0}, r"own: `measure` must return Measured\({NAME: NUMBER}\), got {'a': 1.0}"),
        (Measured({"a": "one"}), "own: `measure` must return numbers; 'a' is 'one'"),  # type: ignore[dict-item]
        (Measured({"a": torch.ones(2)}), "own: `measure` must return numbers; 'a' is 'tensor"),  # type: ignore[dict-item]
        (Measured({"a": 1.0}, {"b": object()}), "own: `measure` must return documents of plain values"),
    ],
)
def test_one_line_says_what_a_measure_must_return(own_file: str, tmp_path: Path, measured: Any, said: str) -> None:
    spec = check_spec({f"{own_file}.Own": {}})
    [own] = spec.measures
    with pytest.raises(UserError, match=f"^{said}"):
        write_result(tmp_path / "measures" / "own-1", spec, own, "key", measured)
    assert not list((tmp_path / "measures").glob("*"))


@pytest.mark.parametrize(
    ("changes", "file"),
    [
        ({"values": {"validation/cross_entropy": 0.0}}, "own-1.json"),
        ({"values": {"own/a": math.nan}}, "own-1.json"),
        ({"values": {"own/a": 10**400}}, "own-1.json"),
        ({"name": "val", "values": {"val/cross_entropy": 0.0}}, "val-1.json"),
        ({"name": None}, "own-1.json"),
        ({}, "other-1.json"),
        ({"described": [{"name": "a", "title": "a\n| b"}]}, "own-1.json"),
        ({"described": [{"name": "a", "title": "\x1b[31mred"}]}, "own-1.json"),
        ({"described": [{"name": "a", "title": "a", "shown": "yes"}]}, "own-1.json"),
        ("[" * 100_000, "own-1.json"),
    ],
)
def test_a_file_that_measure_cannot_have_written_is_made_again(tmp_path: Path, changes: Any, file: str) -> None:
    document = {"name": "own", "decoding": "softmax", "template": "auto", "settings": {}, "key": "k"}
    whole = {**document, "values": {"own/a": 1.0}, "described": [{"name": "a", "title": "a"}]}
    (tmp_path / "own-2.json").write_text(json.dumps(whole))
    assert kept_values(tmp_path / "own-2.json", "k") == {"own/a": 1.0}
    place = tmp_path / file
    place.write_text(changes if isinstance(changes, str) else json.dumps(whole | changes))
    assert kept_values(place, "k") is None
    with pytest.raises(UserError, match=f"^{place}: not what `measure` writes"):
        read_result(place)


def test_whoever_asks_says_whose_descriptions_count(own_file: str, tmp_path: Path) -> None:
    (tmp_path / f"{own_file}.py").write_text(
        OWN.replace("    size: int = 1", '    values: ClassVar = (Value("a", "of the class"),)\n    size: int = 1', 1)
    )
    of_class = described_by(check_spec({f"{own_file}.Own": {}}).measures)
    document = {"decoding": "softmax", "template": "auto", "settings": {}, "key": "k", "values": {}}
    described_in_file = [{"name": "a", "title": "of the file"}, {"name": "accuracy", "title": "of the file"}]
    in_files = {}
    for name in ("own", "toyworld"):
        file = tmp_path / f"{name}-1.json"
        file.write_text(json.dumps({**document, "name": name, "described": described_in_file}))
        in_files[name] = read_result(file).described
    assert list(in_files["own"]) == ["own/a", "own/accuracy"]
    assert describe("own/a", of_class).title == "of the class"
    assert describe("own/a", in_files["own"]).title == "of the file"
    assert describe("own/a").title == "own/a", "nothing that was read before is remembered"
    assert describe("toyworld/accuracy", in_files["toyworld"]) == describe("toyworld/accuracy")


def test_the_data_rooms_errors_name_the_settings_of_who_asks() -> None:
    read = model_file._of_option
    error = SettingError(
        "data.validation.chat", ": rows.jsonl:3: data.validation is too long; set ", "data.max_length", " to 3"
    )
    assert str(error) == "data.validation.chat: rows.jsonl:3: data.validation is too long; set data.max_length to 3"
    said = "probes.rows.chat: rows.jsonl:3: data.validation is too long; set probes.max_length to 3"
    assert str(read("probes.rows", error)) == said, "the text of a row stays as it is"
    assert str(read("--rows", SettingError("data.validationed", ": none"))) == "data.validationed: none"
    assert str(read("--rows", UserError("no file rows.jsonl"))) == "--rows: no file rows.jsonl"
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)


def test_a_value_that_an_older_version_called_otherwise_is_read(tmp_path: Path) -> None:
    document = {"name": "diversity", "decoding": "softmax", "template": "auto", "settings": {}, "key": "k"}
    file = tmp_path / "diversity-1.json"
    file.write_text(json.dumps({**document, "values": {"diversity/self_bleu": 12.5, "diversity/ngram": 3.0}}))
    assert read_result(file).values == {"diversity/self_bleu_diversity": 12.5, "diversity/ngram": 3.0}


def test_a_setting_that_came_later_does_not_hide_what_was_measured_before() -> None:
    plain, asked = Probes(), Probes(questions="prompts.jsonl")
    before = {name: value for name, value in asdict(plain).items() if name not in ("questions", "opening")}
    text = json.dumps({"decoding": "softmax", "template": "auto", "settings": before}, sort_keys=True)
    name = f"probes-{hashlib.sha256(text.encode()).hexdigest()[:8]}"  # as version 0.1 filed it
    assert place_of(Path("run"), Spec(measures=(plain,)), plain) == Path("run/measures", name)
    assert place_of(Path("run"), Spec(measures=(asked,)), asked).name != name


@pytest.mark.parametrize("changed", [{"format": "999999999"}, {"format": ".3"}, {"better": "more"}, {"title": 3}])
def test_a_description_that_cannot_be(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"description of a value|format must be like"):
        Value(**{"name": "a", "title": "a", **changed})


def test_columns() -> None:
    assert all(name == value.name for name, value in described().items())
    titles = [value.title for value in described().values()]
    assert len(set(titles)) == len(titles)  # or a table has two columns that nobody can tell apart
    assert {name.partition("/")[0] for name in described()} == set(registered_measures())
    better = {
        name: described()[f"toyworld/seen/{name}"].better for name in ("validity_t1", "outside_plausible", "entropy")
    }
    assert better == {"validity_t1": "higher", "outside_plausible": "lower", "entropy": None}
    assert all(format(0.5, value.format) for value in described().values())
    own = describe("mine/new")
    assert (own.title, own.better, own.format, own.shown) == ("mine/new", None, ".4g", False)
    of_set = describe("validation/chat/perplexity")
    assert (of_set.title, of_set.better, of_set.shown) == ("perplexity, chat", "lower", False)


def test_files_follow_from_what_was_asked_for(tmp_path: Path) -> None:
    asked = [
        {"diversity": {}},
        {"diversity": {"limit": 3}},
        {"diversity": {}, "decoding": "entmax"},
        {"diversity": {}, "template": "plain"},
        {"diversity": None, "cost": {}},
        {"diversity": {"limit": None}},
    ]
    places = [place_of(tmp_path, spec, spec.measures[0]).name for spec in map(check_spec, asked)]
    assert len(set(places[:4])) == 4
    assert places[4] == places[5] == places[0]
    assert all(place.startswith("diversity-") and len(place) == len("diversity-") + 8 for place in places)


def test_what_does_not_depend_on_the_decoding_is_made_once(tmp_path: Path) -> None:
    every = {**dict.fromkeys(registered_measures()), "lm_eval": {"tasks": ["arc_challenge"]}}
    soft, sparse = (files_of(tmp_path, check_spec({**every, "decoding": name})) for name in ("softmax", "sparsemax"))
    assert soft.keys() == sparse.keys() == registered_measures().keys()
    assert {name for name in registered_measures() if soft[name] == sparse[name]} == {"validation", "cost", "lm_eval"}
    spec = check_spec({"validation": {}, "decoding": "sparsemax"})
    place = place_of(tmp_path, spec, spec.measures[0])
    write_result(place, spec, spec.measures[0], "key", Measured({"entropy": 1.0}))
    assert place.with_suffix(".json") == soft["validation"]
    assert read_result(soft["validation"]).decoding is None


def test_results_are_kept_under_their_key(tmp_path: Path) -> None:
    spec = check_spec({"toyworld": {}})
    [measure] = spec.measures
    place = place_of(tmp_path, spec, measure)
    file = place.with_suffix(".json")
    assert kept_values(file, "key") is None
    found = Measured({"accuracy": 0.5, "seen/distinct_matched": math.nan, "odd": math.inf}, {"tail": {"top1": [1]}})
    assert write_result(place, spec, measure, "key", found) == {"toyworld/accuracy": 0.5}
    assert kept_values(file, "key") == {"toyworld/accuracy": 0.5}
    assert kept_values(file, "another") is None
    document = json.loads(file.read_text())
    assert document["documents"] == {"tail": {"top1": [1]}}
    assert (document["name"], document["decoding"], document["settings"]) == ("toyworld", "softmax", {})
    assert [file.name for file in place.parent.iterdir()] == [f"{place.name}.json"]
    read = read_result(file)
    assert (read.name, read.decoding, read.template, read.settings) == ("toyworld", "softmax", "auto", {})
    assert (read.values, read.documents) == ({"toyworld/accuracy": 0.5}, {"tail": {"top1": [1]}})
    assert read.changed == file.stat().st_mtime_ns
    for damaged in ('{"key": "key", "val', "[]", json.dumps({**document, "values": {"a": None}})):
        file.write_text(damaged)
        assert kept_values(file, "key") is None, "made again"
        with pytest.raises(UserError, match=f"^{file}: not what `measure` writes"):
            read_result(file)


def test_the_key_knows_a_tokenizer_and_a_template_that_are_not_the_models_own(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    files = [tmp_path / "tokenizer/tokenizer.json", tmp_path / "mine.jinja"]
    for file in files:
        file.write_text("before")
    data = {
        "tokenizer": str(tmp_path / "tokenizer"), "template": str(files[1]), "validation": "toyworld:validation",
        "max_length": 128,
    }  # fmt: skip
    named = Model("named", [], str, tmp_path, data=data)
    asked = Model("asked", [], str, tmp_path, run=tmp_path, data=data, template=str(files[1]))
    of_run = Model("of run", [], str, tmp_path, run=tmp_path, data=data)
    hub = Model("hub", [], str, tmp_path, data={"tokenizer": "some/tokenizer"})

    def identities() -> list[dict[str, Any]]:
        return [t.row_identity("rows", t.validation_data("rows", None)) for t in (named, asked, of_run)]

    before = identities()
    assert identities() == before
    files[0].write_text("another one")
    tokenizer = identities()
    assert [a == b for a, b in zip(before, tokenizer, strict=True)] == [False, True, True]
    files[1].write_text("another one")
    assert [a == b for a, b in zip(tokenizer, identities(), strict=True)] == [False, False, True]
    assert hub.asked_with == ["some/tokenizer"]
    [toyworld] = check_spec({"toyworld": {}}).measures
    assert (toyworld.inputs(of_run), toyworld.inputs(hub)) == (None, ["some/tokenizer"])


def test_the_key_has_the_length_that_null_stands_for(tmp_path: Path) -> None:
    def length(positions: int, max_length: int | None) -> int:
        GPT2Config(n_positions=positions).save_pretrained(tmp_path / "model")
        data = {"validation": "toyworld:validation", "max_length": max_length}
        model = Model("model", [], lambda: str(tmp_path / "model"), tmp_path, data=data)
        return model.row_identity("rows", model.validation_data("rows", None))["max_length"]

    assert [length(64, None), length(4096, None), length(64, 32)] == [64, 2048, 32]
