"""The arrows between the rooms point one way: the table of docs/architecture.md, held true by reading the imports."""

import ast
import re
from collections.abc import Collection
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ts2_lightning"
NAME = "ts2_lightning"

PAGE = PACKAGE.parent / "docs" / "architecture.md"


def read_table(page: str) -> dict[str, frozenset[str]]:
    """The table of rooms: what each may import. Rooms that every room may import are added to all others."""
    rows = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in page.splitlines()
        if re.match(r"\| `(cli\.py`, `)?ts2_lightning/", line)
    ]
    names = [re.findall(r"ts2_lightning/(\w+)", place)[0] for place, _, _ in rows]
    free = [name for name, (_, what, _) in zip(names, rows, strict=True) if "every room may import it" in what]
    table = {"": frozenset[str]()}  # the package's own __init__ (its version), free to all
    for name, (_, _, below) in zip(names, rows, strict=True):
        table[name] = frozenset([*_listed(below), *(free[: free.index(name)] if name in free else free)])
    return table


def _listed(cell: str) -> list[str]:
    return [word.strip() for word in cell.split(",") if word.strip()]


TABLE = read_table(PAGE.read_text(encoding="utf-8"))

# Third parties that the lower rooms may use: pure tensor functions know neither models nor trainers.
MAY_USE: dict[str, set[str]] = {
    "types": {"torch"},
    "ops": {"torch", "triton"},
    "losses": {"torch"},
    "engines": {"torch", "importlib", "os", "warnings"},  # which way a device takes: what is installed there
    "metrics": {"torch", "torchmetrics", "sacrebleu", "sentence_transformers", "nltk"},
}
STANDARD = {"abc", "collections", "contextlib", "dataclasses", "enum", "functools", "math", "typing", "__future__"}

Import = tuple[str, int]
"""Dotted name and line."""


def room_of(module: str) -> str:
    """The room that a dotted name inside the package belongs to: `ts2_lightning.ops.rows` -> `ops`."""
    return [*module.split("."), ""][1]


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = (NAME, *file.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(part for part in parts if part != "__init__")] = file
    return found


def imports(source: str, module: str, is_package: bool = False) -> list[Import]:
    """Every import of a module, also relative ones, those inside functions, and `import_module("...")`."""
    tree = ast.parse(source)
    found: list[Import] = []
    for node in ast.walk(tree):
        found += [(name, node.lineno) for name in _named(node, module, is_package)]
    return found


def _named(node: ast.AST, module: str, is_package: bool) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = module.split(".")[: len(module.split(".")) - node.level + is_package]
            base = ".".join([*above, base]).rstrip(".")
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and node.args and "import_module" in ast.unparse(node.func):
        return [_beginning(node.args[0])]
    return []


def _beginning(argument: ast.expr) -> str:
    """What is known of a name that is put together: `f"ts2_lightning.{room}"` -> `ts2_lightning.`."""
    if isinstance(argument, ast.JoinedStr):
        argument = argument.values[0]
    return str(argument.value) if isinstance(argument, ast.Constant) else ""


def allowed(name: str, rooms: Collection[str]) -> bool:
    """Whether a dotted name of the package lies in one of the rooms."""
    return any(f"{name}.".startswith(f"{NAME}.{room}.") for room in rooms)


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """What a module imports and must not."""
    room, wrong = room_of(module), []
    for name, line in imports(source, module, is_package):
        top = name.split(".")[0]
        if top == NAME:
            target = room_of(name)
            rooms = {room} | TABLE[room]
            own = target in ("", "__version__", room)
            if not (own or allowed(name, rooms)):
                wrong.append(f"{module}:{line}: {room} must not import {name}")
        elif room in MAY_USE and top and top not in MAY_USE[room] | STANDARD:
            wrong.append(f"{module}:{line}: {room} must not use {name}")
    return wrong


def test_every_room_is_in_the_table() -> None:
    rooms = {room_of(module) for module in modules()}
    assert {"types", "ops", "losses", "engines", "modules", "data", "cli"} <= rooms
    assert rooms == TABLE.keys(), f"docs/architecture.md: {rooms ^ TABLE.keys()}"
    named = {room for below in TABLE.values() for room in below}
    assert named <= rooms, f"docs/architecture.md: no such rooms: {named - rooms}"


@pytest.mark.parametrize("module", modules())
def test_the_table_is_true(module: str) -> None:
    file = modules()[module]
    assert violations(module, file.read_text(encoding="utf-8"), file.name == "__init__.py") == []


def test_the_table_has_no_circle() -> None:
    """Following the arrows never leads back, not even inside a function."""
    order: list[str] = []
    while len(order) < len(TABLE):
        free = [room for room, below in TABLE.items() if room not in order and below <= {*order}]
        assert free, f"a circle among {TABLE.keys() - set(order)}"
        order += free


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("ops.rows", "from ts2_lightning.losses import TS2Loss", "ops must not import ts2_lightning.losses.TS2Loss"),
        ("ops.rows", "from ..losses import TS2Loss", "ops must not import ts2_lightning.losses.TS2Loss"),
        ("ops.rows", "from ts2_lightning import losses", "ops must not import ts2_lightning.losses"),
        ("ops.rows", "import ts2_lightning.cli", "ops must not import ts2_lightning.cli"),
        ("ops.rows", "def f():\n    import ts2_lightning.data", "ops must not import ts2_lightning.data"),
        ("ops.rows", "import transformers", "ops must not use transformers"),
        ("data.x", "from ts2_lightning.losses.ts2 import TS2Loss", "data must not import ts2_lightning.losses"),
        ("metrics.x", "import_module('ts2_lightning.losses')", "metrics must not import ts2_lightning.losses"),
        ("evaluation.x", "from ts2_lightning.export import layout", "evaluation must not import ts2_lightning.export"),
        ("studies.x", "from ts2_lightning.cli import main", "studies must not import ts2_lightning.cli.main"),
        ("studies.x", "def f():\n    import ts2_lightning.cli", "studies must not import ts2_lightning.cli"),
        ("ops.rows", "from ts2_lightning.helpers import x", "ops must not import ts2_lightning.helpers.x"),
        ("modules.x", "from ts2_lightning.callbacks import monitor", "modules must not import ts2_lightning.callbacks"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str, wrong: str) -> None:
    found = violations(f"{NAME}.{module}", source)
    assert len(found) == 1
    assert wrong in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("studies.x", "from ts2_lightning.runs.directory import numbers"),
        ("toyworld.x", "from ts2_lightning.toyworld import load_world"),
        ("toyworld.x", "from ts2_lightning.data.sources import Source"),
        ("losses.x", "from ts2_lightning.ops import LogitRows"),
        ("cli.x", "from ts2_lightning import __version__"),
        ("data.x", "from . import plan"),
    ],
)
def test_a_right_import_is_not(module: str, source: str) -> None:
    assert violations(f"{NAME}.{module}", source) == []
