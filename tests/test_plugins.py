"""What packages add comes in through doors, and no room but its own says the name of the toy world."""

import ast
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ts2_lightning import plugins
from ts2_lightning.data.sources import resolve_sources
from ts2_lightning.data.tokenizer import load_tokenizer
from ts2_lightning.evaluation import Measure, Measured, Model, check_spec, descriptions, registry
from ts2_lightning.types import UserError

PACKAGE = Path(__file__).parents[1] / "ts2_lightning"
ALLOWED = {"plugins.py", "cli/quickstart.py", "cli/commands.py"}
"""Where plug-ins are listed; the command whose subject is the toy world, and its line of help."""


class Mine(Measure):
    """A measure of another package."""

    name = "mine"

    def measure(self, model: Model, beside: Path) -> Measured:
        return Measured({"one": 1.0})


class Rows(plugins.SourceScheme):
    """Rows of another package."""

    title = "mine"

    def check(self, path: str) -> None:
        assert path == "mine:some"

    def resolve(self, path: str) -> Path:
        return Path("/mine.jsonl")

    def identity(self, path: str) -> Any:
        return path


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """An installed package with a plug-in."""
    module = ModuleType("another_package")
    module.measures = lambda: {"mine": Mine}  # type: ignore[attr-defined]
    module.sources = lambda: {"mine": Rows()}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "another_package", module)
    entry = EntryPoint("mine", "another_package", plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry] if group == plugins.GROUP else [])
    forget()
    yield module
    monkeypatch.undo()
    forget()


def forget() -> None:
    for function in (plugins.offered, registry.registered_measures, descriptions.described):
        function.cache_clear()


def test_another_package_adds_measures_and_sources(other: ModuleType) -> None:
    assert list(registry.registered_measures())[:3] == ["toyworld", "toyworld_decoded", "mine"]
    assert check_spec({"mine": {}}).measures == (Mine(),)
    assert resolve_sources(["mine:some"]) == [Path("/mine.jsonl")]


def test_a_name_that_is_taken(other: ModuleType) -> None:
    other.sources = lambda: {"toyworld": Rows()}  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="plug-in another_package: sources toyworld are there already"):
        resolve_sources(["toyworld:train"])


def raises(error: BaseException) -> Any:
    """A door that fails."""
    raise error


@pytest.mark.parametrize(
    ("door", "said"),
    [
        (lambda: raises(RuntimeError("two\nlines")), "RuntimeError: two lines"),
        (lambda: raises(SystemExit(3)), "SystemExit: 3"),
        (lambda: 3, "TypeError: 'int' object is not iterable"),
        (lambda: {"mine": 3}, "TypeError: sources mine must be a SourceScheme"),
    ],
)
def test_a_plug_in_that_fails_is_left_out_and_named(other: ModuleType, door: Any, said: str) -> None:
    other.sources = door  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match=f"^plug-in another_package is left out, .*{said}"):
        assert list(plugins.offered("sources")) == ["toyworld"]
    assert "mine" in registry.registered_measures(), "its other doors are as they were"


def test_a_plug_in_that_cannot_be_imported_is_left_out(other: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "another_package", None)
    with pytest.warns(UserWarning, match="^plug-in another_package is left out, .*ModuleNotFoundError"):
        assert next(iter(registry.registered_measures())) == "toyworld"
    assert "mine" not in registry.registered_measures()


def test_what_the_toy_world_raises_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "import_module", lambda place: raises(ImportError(place)))
    plugins.offered.cache_clear()
    with pytest.raises(ImportError, match=r"ts2_lightning\.toyworld"):
        plugins.offered("sources")


@pytest.mark.parametrize("added", [{"mine": 3}, {"other": Mine}, {"probes": Mine}])
def test_a_plug_ins_measure_has_its_own_name(other: ModuleType, added: dict[str, Any]) -> None:
    other.measures = lambda: added  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=f"^the measure '{next(iter(added))}' of a plug-in must be a subclass"):
        registry.registered_measures()


def test_the_toy_world_comes_through_every_door() -> None:
    assert all("toyworld" in plugins.offered(door) for door in ("sources", "models", "measures", "domains"))
    assert load_tokenizer("toyworld").get_vocab() == load_tokenizer("toyworld?seed=3").get_vocab()


def says_toyworld(file: Path) -> list[int]:
    """Lines of code, not of documentation, that have the name in them."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    said = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""  # documentation, in which an example may be of the toy world
        words = [getattr(node, key, None) for key in ("id", "attr", "module", "name", "value", "arg")]
        if any(
            isinstance(word, str) and "toyworld" in word.lower().replace("_", "").replace(" ", "") for word in words
        ):
            said.append(getattr(node, "lineno", 0))
    return said


def test_no_other_room_says_its_name() -> None:
    files = [file for file in PACKAGE.rglob("*.py") if "toyworld" not in file.relative_to(PACKAGE).parts[0]]
    assert len(files) > 200
    said = {str(file.relative_to(PACKAGE)): says_toyworld(file) for file in files}
    assert {name for name, lines in said.items() if lines} - ALLOWED == set()
    assert says_toyworld(PACKAGE / "plugins.py")  # the test reads
