"""docs/tour.md and docs/glossary.md keep up with the code: every stop is there, every word is used."""

import ast
import re
from pathlib import Path

import pytest

from tests.test_layers import TABLE

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
TOUR = (DOCS / "tour.md").read_text(encoding="utf-8")
STOP = re.compile(r"^(\d+)\. `([\w/]+\.py):([\w.]+)`", re.M)


def walks() -> dict[str, str]:
    """Title -> text of each walk."""
    _, *parts = re.split(r"^## (.*)\n", TOUR, flags=re.M)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def definitions(file: Path) -> set[str]:
    """The classes, functions and methods that a file defines: `Class.method` for the last."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


@pytest.mark.parametrize("title", walks())
def test_every_stop_of_a_walk_is_there(title: str) -> None:
    text = walks()[title]
    stops = STOP.findall(text)
    gone = [
        f"{file}:{name}"
        for _, file, name in stops
        if not (ROOT / "ts2_lightning" / file).is_file() or name not in definitions(ROOT / "ts2_lightning" / file)
    ]
    assert gone == [], "docs/tour.md names what is not there"
    assert [int(number) for number, _, _ in stops] == list(range(1, len(stops) + 1))
    assert len(stops) == len(re.findall(r"^\d+\. ", text, re.M)), "a stop begins with `path:function`"
    assert f"{len(stops)} stops in {len({file for _, file, _ in stops})} files" in text


def test_there_are_three_walks() -> None:
    assert len(walks()) == 3


def test_the_picture_of_the_house_has_its_rooms() -> None:
    """Each folder of the package once; what it may import is on its line or below."""
    lines = [re.split(r"\s{2,}", line)[0].split(", ") for line in TOUR.split("```")[1].strip().splitlines()]
    height = {room: number for number, rooms in enumerate(lines) for room in rooms}
    folders = {file.parent.name for file in (ROOT / "ts2_lightning").glob("*/__init__.py")}
    assert sorted(room for rooms in lines for room in rooms) == sorted(folders)
    wrong = [(room, below) for room in folders for below in TABLE[room] & folders if height[below] < height[room]]
    assert wrong == []


def test_the_glossary_has_few_words_and_each_is_used() -> None:
    page = (DOCS / "glossary.md").read_text(encoding="utf-8")
    words = re.findall(r"^- \*\*([^*]+)\*\*: \S", page, re.M)
    assert len(words) == len(re.findall(r"^- ", page, re.M))
    assert 40 <= len(words) <= 60
    assert words == sorted(set(words), key=str.lower)
    pages = [ROOT / "README.md", *(file for file in DOCS.glob("*.md") if file.name != "glossary.md")]
    text = " ".join(" ".join(file.read_text(encoding="utf-8").split()) for file in pages)
    assert [word for word in words if not re.search(rf"\b{re.escape(word)}", text, re.I)] == []
    for name in ("README.md", "docs/tour.md"):
        assert "glossary.md)" in (ROOT / name).read_text(encoding="utf-8"), name
