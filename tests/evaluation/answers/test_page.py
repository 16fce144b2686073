"""The examples on the page of answers are true."""

import re
from fractions import Fraction
from pathlib import Path

from ts2_lightning.evaluation.answers.code import RULES
from ts2_lightning.evaluation.answers.letters import read_letter, ts2_papers_code
from ts2_lightning.evaluation.answers.numbers import read_number
from ts2_lightning.generation.exports import TOOLS

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "answers.md").read_text(encoding="utf-8")


def rows(section: str) -> list[tuple[str, str]]:
    """First code span and second cell of the rows of a section's table."""
    body = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(.+?)` \| (.+?) \|", body, re.M)


def test_letters() -> None:
    examples = rows("Letters")
    assert len(examples) == 8
    assert [(text, read_letter(text, 4) or "none") for text, _ in examples] == examples
    assert ts2_papers_code(examples[0][0], []) == "A"


def test_numbers() -> None:
    examples = rows("Numbers")
    assert len(examples) == 9
    read = [(text, read_number(text)) for text, _ in examples]
    assert read == [(text, None if said == "none" else Fraction(said)) for text, said in examples]


def test_rules_and_tools() -> None:
    assert {name for name, _ in rows("Code")} == set(RULES)
    tools = dict(rows("Responses for other tools"))
    assert tools.keys() == TOOLS.keys()
    assert all(f"`{tool.file}`" in tools[name] for name, tool in TOOLS.items())
