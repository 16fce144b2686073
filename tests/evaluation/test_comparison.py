"""Models compared: which is ahead, at which questions they differ most, and what is shown of them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from tests.support.canned import Canned, canned_model
from ts2_lightning.evaluation import check_spec, make_measures
from ts2_lightning.evaluation.comparison import (
    Entrant,
    Pair,
    Way,
    as_csv,
    as_text,
    compare_all,
    contrasts_of,
    draw_forest,
    protocol_of,
    remarks,
    sections_of,
    ways_of,
)
from ts2_lightning.evaluation.protocols import DataSet, Item, Protocol, Row, Sampling, Scored, right_answer_values
from ts2_lightning.evaluation.protocols.gsm8k import GSM8K
from ts2_lightning.evaluation.results import Result
from ts2_lightning.generation import Response
from ts2_lightning.pages import Chart, Table, Texts
from ts2_lightning.values import Value

ENTRANTS = [Entrant(name, name, Path(name)) for name in ("one", "other", "third")]


def result(values: Mapping[str, Sequence[float]], better: str | None = "higher", name: str = "mine") -> Result:
    """A result of a user's protocol, whose questions are numbered."""
    ids = [str(i) for i in range(max(map(len, values.values())))]
    per_item = {value: dict(zip(ids, numbers, strict=False)) for value, numbers in values.items()}
    described = {f"{name}/{value}": Value(f"{name}/{value}", value, "", better, ".3f", True) for value in values}  # type: ignore[arg-type]
    documents = {"per_item": per_item, "asked": {"": {id: id for id in ids}}, "curves": {}}
    return Result(name, "softmax", "auto", {"n": 1}, {}, documents, described, "key", 0)


def way(*results: Result | None) -> Way:
    described = {name: value for one in results if one is not None for name, value in one.described.items()}
    return Way("mine", "mine", results, described)


@pytest.mark.parametrize(("better", "ahead"), [("higher", 1), ("lower", 0), (None, None)])
def test_which_model_is_ahead_follows_from_the_value(better: str | None, ahead: int | None) -> None:
    worse = [0.01 * i for i in range(20)]
    more = [number + 0.5 for number in worse]
    [pair] = compare_all([way(result({"v": worse}, better), result({"v": more}, better))])
    assert (pair.is_sure, pair.ahead) == (True, ahead)
    assert pair.p == pair.corrected == pytest.approx(2**-19)
    last = as_text([pair], ENTRANTS).splitlines()[-1].split()[-1]
    assert last == ("differ" if better is None else ENTRANTS[ahead or 0].title)


def test_what_could_be_chance_has_nobody_ahead() -> None:
    """Five p values of 0.03125 are no longer below 0.05 once corrected, and one by itself is."""
    names = [f"v{i}" for i in range(5)]
    few = {name: [0.0] * 6 for name in names}, {name: [1.0] * 6 for name in names}
    pairs = compare_all([way(*map(result, few))])
    assert [pair.p for pair in pairs] == pytest.approx([0.03125] * 5)
    assert [pair.corrected for pair in pairs] == pytest.approx([5 * 0.03125] * 5)
    assert {pair.ahead for pair in pairs} == {None}
    [alone] = compare_all([way(*map(result, few))], names=["v3"])
    assert (alone.corrected, alone.ahead) == (pytest.approx(0.03125), 1)


def test_main_values_are_compared_unless_others_are_named() -> None:
    both = result({"accuracy": [1, 0], "pass_at_2": [1, 1], "pass_at_8": [1, 1], "length": [3, 4]})
    assert [pair.name for pair in compare_all([way(both, both)])] == ["accuracy", "pass_at_8"]
    ratings = result({"rating": [3, 4], "diversity": [1, 2]})
    assert [pair.name for pair in compare_all([way(ratings, ratings)])] == ["rating", "diversity"]
    neutral = result({"words": [3, 4], "lines": [1, 2]}, better=None)
    assert [pair.name for pair in compare_all([way(neutral, neutral)])] == ["words"]
    assert [pair.name for pair in compare_all([way(both, both)], names=["all"])] == [*both.documents["per_item"]]


def test_one_question_and_none_have_no_interval(tmp_path: Path) -> None:
    single, other = result({"v": [0.25]}), result({"v": [0.75]})
    elsewhere = result({"v": [0.75]})
    elsewhere.documents["asked"][""]["0"] = "another question"
    pairs = compare_all([way(single, other, elsewhere)])
    assert [len(pair.common.before) for pair in pairs] == [1, 0]
    assert (pairs[0].p, pairs[1].difference) == (1.0, None)
    assert math.isnan(pairs[1].corrected)
    assert "corrected for the 1 comparison shown here" in " ".join(remarks(pairs))
    lines = as_csv(pairs, ENTRANTS).splitlines()
    assert lines[1].startswith("mine,,v,higher,one,other,0.25,0.75,0.5,,,1.0,1.0,exact,1,1,1")
    assert lines[2].startswith("mine,,v,higher,one,third,,,,,,,,exact,0,1,1")
    [table, chart] = sections_of(pairs, ENTRANTS, [], [])
    assert isinstance(table, Table)
    assert {len(row) for row in (table.head, table.hints, *table.rows, *(table.shown or ()))} == {len(table.head)}
    assert isinstance(chart, Chart)
    assert [(one.name, one.y, one.low, one.high) for one in chart.series] == [("other minus one", [0.5], [0.5], [0.5])]
    png, svg = draw_forest(pairs, ENTRANTS, tmp_path / "forest")
    assert len(Image.open(png).convert("RGB").getcolors(1 << 24) or ()) > 5
    assert all(said in svg.read_text() for said in (">other<", ">minus one (better →)<"))
    of_each = compare_all([way(single, other, result({"v": [0.5]}))], all_pairs=True)
    _, svg = draw_forest(of_each, ENTRANTS, tmp_path / "every two")
    assert all(said in svg.read_text() for said in (">third − other<", ">difference (better →)<"))
    assert draw_forest(pairs[1:], ENTRANTS, tmp_path / "none") == []


# Questions ----------------------------------------------------------------------------------------------------------


def test_charts_of_one_protocol_are_told_apart() -> None:
    """Values of another scale have a chart of their own; the page lists charts by their titles."""
    results = [result({"quality": [i, 3.0], "diversity": [0.5, 0.5 * i], "words": [2.0, 1.0 + i]}) for i in (1, 2, 4)]
    wider = {"mine/quality": Value("mine/quality", "quality", "", "higher", ".1f", True)}
    results = [replace(one, described={**one.described, **wider}) for one in results]
    charts = sections_of(compare_all([way(*results)]), ENTRANTS, [], [])[1:]
    assert [chart.title for chart in charts] == [
        "mine: differences, quality ↑",
        "mine: differences, diversity ↑, words ↑",
    ]
    [alone] = sections_of(compare_all([way(*results)], names=["words"]), ENTRANTS, [], [])[1:]
    assert alone.title == "mine: differences"


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Entrant]:
    """Two models; the second is right in all samples of questions 2 and 4, and in half of those of 3."""
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"{i} + {i}?", "answer": f"#### {2 * i}"} for i in range(6)]
    Path("sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, shares in (("one", {}), ("other", {2: 4, 3: 2, 4: 4})):

        def answer(question: str, index: int, shares: Mapping[int, int] = shares) -> str:
            number = int(question.rpartition("Question: ")[2].split(" +")[0])
            right = index < shares.get(number, 0)
            return f"The answer is: {2 * number}" if right else f"Perhaps, {index}..."

        spec = check_spec({"gsm8k": {"data": "sums.jsonl", "n": 4, "greedy": False}})
        make_measures(canned_model(Path(name), Canned(answer), name), spec, lambda line: None, draw=False)
    return ENTRANTS[:2]


def compared(entrants: Sequence[Entrant]) -> list[Pair]:
    ways, notes = ways_of(entrants)
    assert notes == []
    return compare_all(ways)


def test_questions_that_differ_most_come_with_texts_and_scores(measured: list[Entrant]) -> None:
    contrasts, notes = contrasts_of(compared(measured), measured, 10, {})
    assert notes == []
    assert [(one.id, one.difference) for one in contrasts] == [("2", 1.0), ("4", 1.0), ("3", 0.5)], "and no other"
    first = contrasts[0]
    assert first.item is not None
    assert "2 + 2?" in first.item.question
    assert [texts.value for texts in first.texts] == [0.0, 1.0]
    for texts, right in zip(first.texts, (False, True), strict=True):
        assert [response.text for response, _ in texts.responses] == [
            "The answer is: 4" if right else f"Perhaps, {index}..." for index in range(4)
        ]
        assert [None if scored is None else scored.score for _, scored in texts.responses] == [float(right)] * 4
    assert [one.id for one in contrasts_of(compared(measured), measured, 1, {})[0]] == ["2"]
    assert contrasts_of(compared(measured), measured, 0, {}) == ([], [])


def test_the_page_shows_them_side_by_side(measured: list[Entrant]) -> None:
    pairs = compared(measured)
    contrasts, _ = contrasts_of(pairs, measured, 2, {})
    section = sections_of(pairs, measured, contrasts, ["A note."])[-1]
    assert isinstance(section, Texts)
    assert section.title == "gsm8k: where the models differ most"
    assert "By gsm8k accuracy ↑" in section.notes[0]
    item = section.items[0]
    assert item.heading.startswith("2: other minus one +1.000\n")
    assert item.heading.endswith("Right: 4")
    assert [name for name, _ in item.columns] == ["one: 0.000", "other: 1.000"]
    assert item.columns[0][1][0] == ("Perhaps, 0...", "score 0 · no answer read · cut off")
    assert item.columns[1][1][0] == ("The answer is: 4", "score 1 · answer 4")


def test_texts_that_stay_in_their_files_are_not_shown(measured: list[Entrant], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GSM8K, "texts_stay", True, raising=False)
    pairs = compared(measured)
    contrasts, notes = contrasts_of(pairs, measured, 10, {})
    assert contrasts == []
    assert notes == ["gsm8k: its texts stay in their files, DIR/responses"]
    assert len(pairs) == 2, "their differences are shown"


def test_responses_that_are_gone_are_said(measured: list[Entrant]) -> None:
    [store] = Path("one/responses").iterdir()
    store.rename("elsewhere")
    contrasts, notes = contrasts_of(compared(measured), measured, 1, {})
    [contrast] = contrasts
    assert contrast.item is not None
    assert [len(texts.responses) for texts in contrast.texts] == [0, 4]
    assert notes == ["one: no texts of gsm8k are shown (one has no responses of it)"]


@dataclass(frozen=True)
class Riddles(Protocol):
    """A user's protocol, whose class nobody has registered."""

    name: ClassVar[str] = "riddles"
    values: ClassVar = right_answer_values()
    data_sets: ClassVar = {"riddles": DataSet("me/riddles", "test", 2, "riddle and solution")}
    samplings: ClassVar = {"paper": Sampling(n=2, temperature=1.0)}

    def item(self, row: Row, data_set: str) -> Item:
        return Item(str(row.number), row.text("riddle"), row.text("solution"))

    def score(self, item: Item, responses: Sequence[Response]) -> list[Scored]:
        return [Scored(one.key, one.text, float(one.text == item.gold)) for one in responses]


def test_a_protocol_of_a_users_own_shows_texts_once_its_class_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether its texts may be shown, its class says."""
    monkeypatch.chdir(tmp_path)
    Path("riddles.jsonl").write_text('{"riddle": "What is red?", "solution": "blood"}\n')
    mine = f"{__name__}.Riddles"
    for name, said in (("one", "wine"), ("other", "blood")):
        spec = check_spec({mine: {"data": "riddles.jsonl"}})
        make_measures(canned_model(Path(name), Canned(lambda *_, said=said: said), name), spec, lambda line: None)
    pairs = compared(ENTRANTS[:2])
    assert [pair.title for pair in pairs] == ["riddles accuracy", "riddles pass@2"]
    contrasts, notes = contrasts_of(pairs, ENTRANTS[:2], 3, {})
    assert contrasts == []
    assert notes == ["riddles: no texts are shown, since its class is not at hand; name it with --protocol"]
    contrasts, notes = contrasts_of(pairs, ENTRANTS[:2], 3, {"riddles": mine})
    assert notes == []
    assert [response.text for texts in contrasts[0].texts for response, _ in texts.responses] == ["wine"] * 2 + [
        "blood"
    ] * 2


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"temperatures": (0.3,)}])
def test_the_parts_of_a_result_are_those_it_was_measured_with(settings: dict[str, Any]) -> None:
    """A result says of a setting that was left out what it stands for, which does not mean the same for maths."""
    [maths] = check_spec({"maths": settings}).measures
    assert isinstance(maths, Protocol)
    stored = Result("maths", "softmax", "auto", maths.plain_settings(), {}, {}, {}, "key", 0)
    for part in maths.parts():
        again = protocol_of(stored, part.label, {})
        assert again is not None
        assert part in again.parts()
    assert protocol_of(stored, "nowhere", {}) is None
