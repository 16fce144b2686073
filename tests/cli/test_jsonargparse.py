"""What the command line needs of jsonargparse's private parts; each test says what a version that changes it breaks."""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import pytest
from lightning.pytorch.callbacks import Timer

from ts2_lightning.cli.errors.parser import (
    KEY,
    MESSAGES,
    SUBTYPES,
    Parser,
    ParserMessage,
    annotation_of,
    arguments_of,
    require_nothing,
)

VERSION = f"jsonargparse {jsonargparse.__version__}"


class Shape(ABC):
    """Abstract class that a setting names a subclass of."""

    @abstractmethod
    def area(self) -> float: ...


class Square(Shape):
    def __init__(self, alpha: float = 1.0, side: int = 2) -> None:
        self.alpha, self.side = alpha, side

    def area(self) -> float:
        return self.alpha * self.side**2


class Circle(Shape):
    def __init__(self, alpha: float = 0.5) -> None:
        self.alpha = alpha

    def area(self) -> float:
        return self.alpha


class Needy(Square):
    def __init__(self, beta: int) -> None:
        self.beta = beta


@dataclass
class Paper:
    path: str
    kind: Literal["plain", "ruled"] = "plain"


class Frame(Square):
    def __init__(self, paper: Paper | None = None) -> None:
        self.paper = paper


class Drawing:
    def __init__(
        self,
        paper: Paper,
        shape: Shape,
        maybe: Shape | None = None,
        size: int = 1,
        number: int | None = None,
        source: str | Paper | dict[str, str] | None = None,
    ) -> None:
        self.settings = (paper, shape, maybe, size, number, source)


def parser() -> Parser:
    """A parser of the same make as that of `fit`."""
    outer, inner = Parser(parser_mode="omegaconf+"), Parser(parser_mode="omegaconf+")
    inner.add_argument("-c", "--config", action="config")
    inner.add_class_arguments(Drawing, "drawing", sub_configs=True)
    outer.add_subcommands(required=True).add_subcommand("fit", inner)
    return outer


def read(*options: str) -> Any:
    """The settings that a command line is read as."""
    return parser().parse_args(["fit", "--drawing.paper.path", "p", "--drawing.shape", "Square", *options]).fit


def said(*options: str) -> str:
    """What the parser says of a wrong command line."""
    with pytest.raises(ParserMessage) as raised:
        read(*options)
    return raised.value.message


WRONG: list[tuple[str, tuple[str, ...], dict[str, str]]] = [
    ("unrecognized", ("--nothing", "1"), {"rest": "--nothing 1"}),
    ("unknown parameter", ("--drawing.shape.alpah", "1"), {"path": f"{__name__}.Square", "parameter": "alpah"}),
    ("missing parameter", ("--drawing.shape", "Needy"), {"path": f"{__name__}.Needy", "names": "beta"}),
    ("unknown key", ("-c", "key.yaml"), {"key": "drawing.sizes"}),
    ("unknown key", ("-c", "group.yaml"), {"key": "drawing.paper.pth"}),
    ("no import path", ("--drawing.shape", "Squar"), {"word": "Squar"}),
    ("null for a class", ("--drawing.shape", "null"), {}),
    ("wrong class", ("-c", "list.yaml"), {"path": "collections.OrderedDict", "base": "Shape"}),
    ("abstract class", ("--drawing.shape", "Shape"), {}),
    ("failed import", ("--drawing.shape", "nowhere.X"), {"path": "nowhere.X", "reason": "No module named 'nowhere'"}),
    ("failed import", ("--drawing.maybe", "abc.X"), {"path": "abc.X", "reason": "module 'abc' has no attribute 'X'"}),
    ("no such fragment", ("--drawing.paper", "none.yaml"), {"value": "none.yaml"}),
    ("wrong value", ("--drawing.size", "x"), {"type": "<class 'int'>", "value": "x"}),
    ("wrong value", ("--drawing.paper.kind", "x"), {"type": "typing.Literal['plain', 'ruled']", "value": "x"}),
    ("none of a union", ("--drawing.number", "x"), {"type": "<class 'int'>, <class 'NoneType'>", "value": "x"}),
    ("needs a value", ("--drawing.size",), {"option": "--drawing.size", "reason": "expected one argument"}),
]


@pytest.fixture(autouse=True)
def files(here: Path) -> None:
    Path("key.yaml").write_text("drawing: {sizes: 3}\n")
    Path("group.yaml").write_text("drawing: {paper: {path: x, pth: y}}\n")
    Path("list.yaml").write_text("drawing: {shape: {class_path: collections.OrderedDict}}\n")


@pytest.mark.parametrize(("name", "options", "parts"), WRONG, ids=[f"{name}: {' '.join(o)}" for name, o, _ in WRONG])
def test_a_message_is_taken_apart(name: str, options: tuple[str, ...], parts: dict[str, str]) -> None:
    message = said(*options)
    match = re.search(MESSAGES[name], message)
    assert match, f"{VERSION} no longer says of '{' '.join(options)}' what MESSAGES[{name!r}] looks for, but: {message}"
    assert {key: value for key, value in match.groupdict().items() if value is not None} == parts, message
    first = next(other for other, pattern in MESSAGES.items() if re.search(pattern, message))
    assert first == name, (
        f"{VERSION} says of '{' '.join(options)}' what MESSAGES[{first!r}] takes for its own: {message}"
    )


def test_every_message_is_provoked() -> None:
    assert {name for name, _, _ in WRONG} | {"required"} == MESSAGES.keys()


def test_a_message_about_a_required_setting() -> None:
    with pytest.raises(ParserMessage) as raised:
        parser().parse_args(["fit"])
    match = re.search(MESSAGES["required"], raised.value.message)
    assert match, f"{VERSION} no longer names the settings that are required"
    assert match["names"].split(", ") == ["fit.drawing.paper.path", "fit.drawing.shape"]


def test_a_message_names_its_setting_and_the_classes_of_a_union() -> None:
    message = said("--drawing.maybe", "Squar")
    assert re.findall(KEY, message) == ["drawing.maybe"], f"{VERSION} no longer names the setting: {message}"
    assert re.findall(SUBTYPES, message) == ["Shape"], f"{VERSION} no longer lists the classes of a union: {message}"


def test_a_class_that_replaces_another_starts_from_its_own_defaults() -> None:
    shape = read("--drawing.shape.alpha", "7", "--drawing.shape", "Circle").drawing.shape
    assert shape.init_args.as_dict() == {"alpha": 0.5}, (
        f"{VERSION} no longer asks discard_init_args_on_class_path_change which settings outlive a change of class: "
        "TS2's alpha, a weight, becomes entmax's order"
    )
    same = read("--drawing.shape.alpha", "7", "--drawing.shape", f"{__name__}.Square").drawing.shape
    assert same.init_args.alpha == 7, "a class that is named again keeps its settings"


def test_only_yaml_is_read_as_settings() -> None:
    for name in ("fragment.yaml", "rows.jsonl"):
        Path(name).write_text('{"prompt": "a"}\n')
    assert read("--drawing.source", "fragment.yaml").drawing.source["prompt"] == "a"
    assert read("--drawing.source", "rows.jsonl").drawing.source == "rows.jsonl", (
        f"{VERSION} no longer asks parse_value_or_config which files are settings: a file of one row is taken for them"
    )


def test_the_arguments_of_a_parser() -> None:
    inner = Parser()
    inner.add_class_arguments(Drawing, "drawing")
    arguments = {argument.dest: argument for argument in arguments_of(inner)}
    assert {"drawing.paper.path", "drawing.shape", "drawing.size"} <= arguments.keys(), (
        f"{VERSION} no longer lists a parser's arguments in _actions by their dotted names"
    )
    assert annotation_of(arguments["drawing.shape"]) is Shape, f"{VERSION} no longer keeps an annotation as _typehint"
    with pytest.raises(ParserMessage):
        inner.parse_args([])
    require_nothing(inner)
    assert inner.parse_args([]).drawing.size == 1, f"{VERSION} no longer asks an argument whether it is required"


def test_the_default_of_a_setting() -> None:
    inner = Parser()
    inner.add_class_arguments(Drawing, "drawing")
    assert inner.get_default("drawing.maybe") is None
    with pytest.raises(KeyError):
        inner.get_default("drawing.nothing")


def test_a_member_of_an_enum_can_be_written() -> None:
    inner = Parser()
    inner.add_class_arguments(Timer, "timer")
    assert "interval: step" in inner.dump(inner.parse_args([]))
