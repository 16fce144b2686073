"""Protocols on responses that are written here: three stages, each resumed by itself, and the values that follow."""

import gzip
import hashlib
import itertools
import json
import math
import os
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.support.canned import Canned, canned_model
from ts2_lightning.evaluation import Measured, check_spec, files_of, make_measures, registered_measures
from ts2_lightning.evaluation.protocols import Protocol
from ts2_lightning.evaluation.protocols.base import PAPER, PAPERS_CODE
from ts2_lightning.evaluation.protocols.choices import Choices, read_winogrande
from ts2_lightning.evaluation.protocols.data import Row
from ts2_lightning.evaluation.protocols.gsm8k import PROMPT
from ts2_lightning.evaluation.registry import code_digest
from ts2_lightning.evaluation.results import read_result
from ts2_lightning.types import UserError

PROTOCOLS = {name: kind for name, kind in registered_measures().items() if issubclass(kind, Protocol)}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def sums(tmp_path: Path) -> str:
    """Six questions of GSM8K whose answers are 1000, 1001 and so on, written with commas."""
    rows = [{"question": f"What is {i} + 1000?", "answer": f"Add.\n#### {1000 + i:,}"} for i in range(6)]
    return write_rows(tmp_path / "sums.jsonl", rows)


def of_sum(question: str) -> int:
    return int(question.split("What is ")[1].split(" +")[0])


def answer_sums(question: str, index: int) -> str:
    """Question i is right in every (i + 1)-th sample; a fifth of the responses has no answer."""
    i = of_sum(question)
    if (i + index) % 5 == 4:
        return "I do not know..."
    right = index % (i + 1) == 0
    return f"The answer is: ${1000 + i if right else 7 + index % 2:,}.00"


def measured(model: Any, **spec: Any) -> dict[str, float]:
    return make_measures(model, check_spec(spec), lambda line: None, draw=False)


def result_of(model: Any, **spec: Any) -> Any:
    [file] = files_of(model.out, check_spec(spec)).values()
    return read_result(file)


# Values ---------------------------------------------------------------------------------------------------------


def brute_force(right: list[list[bool]], k: int) -> float:
    """At least one of k: over all sets of k samples of every question."""
    return statistics.fmean(
        statistics.fmean(any(subset) for subset in itertools.combinations(of_question, k)) for of_question in right
    )


def vote(answers: list[str | None], gold: str) -> float:
    """The share of the winners of a vote that are right."""
    counts = Counter(answer for answer in answers if answer is not None)
    winners = [answer for answer in counts if counts[answer] == max(counts.values())]
    return (gold in winners) / len(winners) if winners else 0.0


def test_the_values_of_gsm8k_are_those_of_brute_force(tmp_path: Path, sums: str) -> None:
    n, ks = 8, (1, 3, 8)
    model = canned_model(tmp_path / "out", Canned(answer_sums))
    values = measured(model, gsm8k={"data": sums, "n": n, "ks": [*ks]})
    texts = [[answer_sums(f"What is {i} + 1000?", index) for index in range(n)] for i in range(6)]
    answers = [
        [None if "know" in text else text.split("$")[1].replace(".00", "").replace(",", "") for text in row]
        for row in texts
    ]
    right = [[answer == str(1000 + i) for answer in row] for i, row in enumerate(answers)]
    for k in ks:
        assert values[f"gsm8k/pass_at_{k}"] == pytest.approx(brute_force(right, k), abs=1e-12)
        by_vote = [
            statistics.fmean(vote([*some], str(1000 + i)) for some in itertools.combinations(row, k))
            for i, row in enumerate(answers)
        ]
        assert values[f"gsm8k/majority_at_{k}"] == pytest.approx(statistics.fmean(by_vote), abs=1e-12)
    flat = [*itertools.chain(*answers)]
    assert values["gsm8k/unparsed"] == pytest.approx(flat.count(None) / len(flat))
    assert values["gsm8k/truncated"] == values["gsm8k/unparsed"]  # the same responses end in "..."
    assert (values["gsm8k/questions"], values["gsm8k/samples"]) == (6, n)
    share_right = sum(itertools.chain(*right)) / len(flat)
    assert values["gsm8k/accuracy"] == pytest.approx(share_right)
    assert values["gsm8k/accuracy_of_parsed"] == pytest.approx(
        sum(itertools.chain(*right)) / (len(flat) - flat.count(None))
    )
    distinct = statistics.fmean(len({*row} - {None}) for row in answers)
    assert values["gsm8k/distinct_answers"] == pytest.approx(distinct)
    greedy = [answer_sums(f"What is {i} + 1000?", 0) for i in range(6)]
    assert values["gsm8k/greedy/accuracy"] == pytest.approx(sum("know" not in text for text in greedy) / 6)
    assert not any("chance" in name for name in values)  # nobody guesses a number


def test_documents_hold_each_question_and_curves(tmp_path: Path, sums: str) -> None:
    model = canned_model(tmp_path / "out", Canned(answer_sums))
    spec = {"gsm8k": {"data": sums, "n": 4}}
    values = measured(model, **spec)
    result = result_of(model, **spec)
    for name in ("accuracy", "pass_at_4", "majority_at_2", "greedy/accuracy"):
        per_item = result.documents["per_item"][name]
        assert list(per_item) == [str(i) for i in range(6)]
        assert statistics.fmean(per_item.values()) == pytest.approx(values[f"gsm8k/{name}"], abs=1e-5)
    curve = result.documents["curves"]["pass"]
    assert [*curve] == ["1", "2", "4"]
    for k, (mean, low, high) in curve.items():
        assert mean == pytest.approx(values[f"gsm8k/pass_at_{k}"])
        assert low <= mean <= high
        assert high - low > 0.1  # six questions


def test_the_papers_code_reads_and_votes_in_its_own_way(tmp_path: Path) -> None:
    """A comma ends its numbers, half of one is rounded, and a response without an answer has a vote."""
    data = write_rows(tmp_path / "one.jsonl", [{"question": "How much?", "answer": "#### 1,234,567"}])
    texts = ["The answer is: 1,234,567", "?", "?", "The answer is: 1234.4"]
    model = canned_model(tmp_path / "out", Canned(lambda question, index: texts[index]))
    settings: dict[str, Any] = {"data": data, "n": 4, "ks": [4], "greedy": False}
    ours = measured(model, gsm8k=settings)
    theirs = measured(model, gsm8k={**settings, "variant": "papers_code", "top_k": 0})
    assert (ours["gsm8k/accuracy"], theirs["gsm8k/accuracy"]) == (0.25, 0.5)
    assert (ours["gsm8k/majority_at_4"], theirs["gsm8k/majority_at_4"]) == (0.5, 0.5)
    assert (theirs["gsm8k/first_4"], theirs["gsm8k/first_majority_4"]) == (1.0, 1.0)
    assert not any("first" in name for name in ours)
    texts[0] = "?"
    model = canned_model(tmp_path / "other", Canned(lambda question, index: texts[index]))
    assert measured(model, gsm8k={**settings, "variant": "papers_code"})["gsm8k/first_majority_4"] == 0.0


# Three stages, each resumed by itself ---------------------------------------------------------------------------


def test_only_what_is_missing_is_sampled(tmp_path: Path, sums: str) -> None:
    first, more, other = Canned(answer_sums), Canned(answer_sums), Canned(answer_sums)
    out = tmp_path / "out"
    measured(canned_model(out, first), gsm8k={"data": sums, "n": 2, "limit": 3, "greedy": False})
    assert len(first.made) == 6
    values = measured(canned_model(out, more), gsm8k={"data": sums, "n": 4, "greedy": False})
    assert sorted(more.made) == sorted({*made_of(4, 6)} - {*made_of(2, 3)})
    measured(
        canned_model(out, other), gsm8k={"data": sums, "n": 4, "greedy": False, "variant": "papers_code", "top_k": 0}
    )
    assert other.made == []  # another way to score asks nothing
    at_once = measured(
        canned_model(tmp_path / "new", Canned(answer_sums)), gsm8k={"data": sums, "n": 4, "greedy": False}
    )
    assert values == at_once


def made_of(n: int, limit: int) -> Iterator[tuple[str, int, float]]:
    for i in range(limit):
        for index in range(n):
            yield PROMPT.format(question=f"What is {i} + 1000?"), index, 0.6


@pytest.mark.parametrize("stop_after", [0, 1, 7, 23])
def test_a_killed_sampling_goes_on_to_the_same_values(tmp_path: Path, sums: str, stop_after: int) -> None:
    settings = {"data": sums, "n": 4, "greedy": False}
    killed, resumed = Canned(answer_sums, stop_after), Canned(answer_sums)
    with pytest.raises(KeyboardInterrupt):
        measured(canned_model(tmp_path / "out", killed), gsm8k=settings)
    values = measured(canned_model(tmp_path / "out", resumed), gsm8k=settings)
    assert len(killed.made) + len(resumed.made) == 24
    whole = measured(canned_model(tmp_path / "new", Canned(answer_sums)), gsm8k=settings)
    assert values == whole


def test_a_cut_line_of_scores_is_made_again_and_nothing_else(
    tmp_path: Path, sums: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"data": sums, "n": 4, "greedy": False}
    model = canned_model(tmp_path / "out", Canned(answer_sums))
    values = measured(model, gsm8k=settings)
    [scores] = (tmp_path / "out/scores").glob("gsm8k-*.jsonl")
    whole = scores.read_text()
    assert len(whole.splitlines()) == 1 + 24
    assert json.loads(whole.splitlines()[0])["name"] == "gsm8k"
    scores.write_text(whole[:-20])
    for file in (tmp_path / "out/measures").iterdir():
        file.unlink()
    scored: list[str] = []
    score = PROTOCOLS["gsm8k"].score

    def counted(self: Any, item: Any, responses: Any) -> Any:
        scored.extend(one.key for one in responses)
        return score(self, item, responses)

    monkeypatch.setattr(PROTOCOLS["gsm8k"], "score", counted)
    again = Canned(answer_sums)
    assert measured(canned_model(tmp_path / "out", again), gsm8k=settings) == values
    assert (len(scored), again.made) == (1, [])
    lines = [json.loads(line) for line in scores.read_text().splitlines() if line.endswith("}")]
    assert sum("score" in line for line in lines) == 24


def test_another_right_answer_is_scored_anew_without_sampling(tmp_path: Path, sums: str) -> None:
    settings = {"data": sums, "n": 1, "greedy": False}
    before = measured(canned_model(tmp_path / "out", Canned(answer_sums)), gsm8k=settings)
    Path(sums).write_text(Path(sums).read_text().replace("#### 1,000", "#### 999"))
    again = Canned(answer_sums)
    after = measured(canned_model(tmp_path / "out", again), gsm8k=settings)
    assert again.made == []
    assert after["gsm8k/accuracy"] == pytest.approx(before["gsm8k/accuracy"] - 1 / 6)


@pytest.mark.filterwarnings("ignore:.*no responses of")
def test_responses_are_scored_without_their_model(tmp_path: Path, sums: str) -> None:
    spec: dict[str, Any] = {"gsm8k": {"data": sums, "n": 4}}
    model = canned_model(tmp_path / "out", Canned(answer_sums))
    values = measured(model, **spec)
    Path(sums).unlink()  # what was asked lies beside the responses
    stored = replace(model, endpoint=None, responses=tmp_path / "out", out=tmp_path / "elsewhere")
    assert measured(stored, gsm8k={"n": 4}) == values
    assert measured(stored, gsm8k={}) == values  # as many as there are
    fewer = measured(stored, gsm8k={"n": 2})
    assert (fewer["gsm8k/samples"], fewer["gsm8k/questions"]) == (2, 6)
    with pytest.raises(UserError, match=r"no question has 5 responses; the most are 4"):
        measured(stored, gsm8k={"n": 5})
    with pytest.raises(UserError, match=r"no responses of arc; there is gsm8k, gsm8k-greedy$"):
        measured(stored, arc={})
    greedy = next((tmp_path / "out/responses").glob("gsm8k-greedy-*"))
    with pytest.warns(UserWarning, match="no responses of gsm8k; this part is left out"):
        only = measured(replace(stored, responses=greedy), gsm8k={})
    assert only == {name: value for name, value in values.items() if "greedy" in name}


@pytest.mark.parametrize(
    ("head", "items", "said"),
    [
        ({"format": 1}, None, "no responses of gsm8k; there is "),
        ({"format": 1, "name": "gsm8k", "settings": {"decoder": 5}}, None, None),
        (
            {},
            [{"text": "What?", "gold": "4"}],
            r"gsm8k: item 0 in items\.jsonl is no question of a protocol \(question ",
        ),
        ({}, [{"question": "What?", "details": [1]}], r"item 0 in items\.jsonl is no question .*details \[1\]"),
        ({}, [{"question": "What?", "continued": 1}], r"item 0 in items\.jsonl is no question .*continued 1"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*no responses of")
def test_stored_responses_of_somebody_else_are_told(
    tmp_path: Path, sums: str, head: dict[str, Any], items: list[dict[str, Any]] | None, said: str | None
) -> None:
    """Such as those of `generate` to a file that is called as a protocol."""
    model = canned_model(tmp_path / "out", Canned(answer_sums))
    measured(model, gsm8k={"data": sums, "n": 2, "greedy": False})
    [directory] = (tmp_path / "out/responses").iterdir()
    part = directory / "part-00000.jsonl"
    first, *others = part.read_text().split("\n")
    part.write_text("\n".join([json.dumps(head or json.loads(first)), *others]))
    if items is not None:
        write_rows(directory / "items.jsonl", [{"item": str(i), **item} for i, item in enumerate(items)])
    stored = replace(model, endpoint=None, responses=directory, out=tmp_path / "elsewhere")
    if said is None:
        assert measured(stored, gsm8k={})["gsm8k/questions"] == 6
        return
    with pytest.raises(UserError, match=said) as error:
        measured(stored, gsm8k={})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("item", [1]), ("of", None), ("key", 5), ("answer", 5), ("score", "1"), ("score", float("nan")), ("note", {})],
)
def test_a_line_that_is_no_score_is_scored_again(tmp_path: Path, sums: str, field: str, value: Any) -> None:
    spec: dict[str, Any] = {"gsm8k": {"data": sums, "n": 2, "greedy": False}}
    model = canned_model(tmp_path / "out", Canned(answer_sums))
    values = measured(model, **spec)
    [scores] = (tmp_path / "out/scores").iterdir()
    head, first, *others = scores.read_text().splitlines()
    scores.write_text("\n".join([head, json.dumps({**json.loads(first), field: value}), *others, "[" * 99_999]) + "\n")
    for file in files_of(model.out, check_spec(spec)).values():
        file.unlink()
    assert measured(model, **spec) == values
    assert scores.read_text().splitlines()[-1] == first


def test_a_full_disk_at_the_scores_is_an_error_that_names_them(
    tmp_path: Path, sums: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the disk takes a part of the lines: what is not on disk is not counted as scored."""
    model = canned_model(tmp_path / "out", Canned(answer_sums))
    spec: dict[str, Any] = {"gsm8k": {"data": sums, "n": 2, "greedy": False}}
    write = os.write

    def scarce(descriptor: int, text: bytes) -> int:
        return write(descriptor, text[:-70] if b'"score"' in text else text)

    with monkeypatch.context() as patch:
        patch.setattr("ts2_lightning.runs.writing.os.write", scarce)
        with pytest.raises(OSError, match="No space left") as error:
            measured(model, **spec)
    assert Path(error.value.filename).parent == tmp_path / "out/scores"
    assert measured(model, **spec) == measured(canned_model(tmp_path / "other", Canned(answer_sums)), **spec)


@pytest.mark.filterwarnings("ignore:.*no responses of")
def test_equal_questions_are_asked_once_and_count_twice(tmp_path: Path) -> None:
    rows = [{"question": "Same?", "answer": "#### 1"}] * 2 + [{"question": "Same?", "answer": "#### 2"}]
    backend = Canned(lambda question, index: "The answer is: 1")
    model = canned_model(tmp_path / "out", backend)
    spec: dict[str, Any] = {"gsm8k": {"data": write_rows(tmp_path / "rows.jsonl", rows), "n": 2, "greedy": False}}
    values = measured(model, **spec)
    assert len(backend.made) == 2
    assert (values["gsm8k/questions"], values["gsm8k/accuracy"]) == (3, pytest.approx(2 / 3))
    assert measured(replace(model, responses=tmp_path / "out", out=tmp_path / "b"), gsm8k={}) == values


# A protocol of the user's own ------------------------------------------------------------------------------------

OWN = """
from dataclasses import dataclass
from typing import ClassVar
from ts2_lightning.evaluation.protocols import DataSet, Item, Protocol, Sampling, Scored

@dataclass(frozen=True)
class Riddles(Protocol):
    name: ClassVar[str] = "riddles"
    data_sets: ClassVar = {"riddles": DataSet("me/riddles", "test", 10, "riddle and solution")}
    samplings: ClassVar = {"paper": Sampling(2)}
    exact: bool = True

    def item(self, row, data_set):
        return Item(str(row.number), row.text("riddle"), row.text("solution"))

    def score(self, item, responses):
        return SCORES
"""
RIGHT = "[Scored(one.key, one.text, float(one.text == item.gold)) for one in responses]"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module of a name that no other test has."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(scores: str) -> str:
        name = f"own_{hashlib.sha256((scores + str(tmp_path)).encode()).hexdigest()[:12]}"
        (tmp_path / f"{name}.py").write_text(OWN.replace("SCORES", scores))
        return f"{name}.Riddles"

    return write


def test_a_users_protocol_is_a_class_in_a_file(tmp_path: Path, own: Callable[[str], str]) -> None:
    data = write_rows(
        tmp_path / "riddles.jsonl", [{"riddle": "?", "solution": "egg"}, {"riddle": "!", "solution": "fog"}]
    )
    name = own(RIGHT)
    backend = Canned(lambda question, index: "egg")
    spec: dict[str, Any] = {name: {"data": data}}
    values = measured(canned_model(tmp_path / "out", backend), **spec)
    assert (values["riddles/accuracy"], values["riddles/pass_at_2"], values["riddles/samples"]) == (0.5, 0.5, 2)
    module = sys.modules[name.removesuffix(".Riddles")]
    Path(str(module.__file__)).write_text(OWN.replace("SCORES", RIGHT.replace("== item.gold", "!= item.gold")))
    sys.modules.pop(module.__name__)
    # The file has changed: what was scored by the other one does not count, and nothing is sampled again.
    again = Canned(lambda question, index: "egg")
    code_digest.cache_clear()
    module.__loader__.exec_module(module)  # type: ignore[union-attr]
    sys.modules[module.__name__] = module
    spec = {name: {"data": data}}
    assert measured(canned_model(tmp_path / "out", again), **spec)["riddles/accuracy"] == 0.5
    assert again.made == []
    assert len([*(tmp_path / "out/scores").iterdir()]) == 2


def test_a_users_settings_are_part_of_how_it_scores(tmp_path: Path, own: Callable[[str], str]) -> None:
    """Its class need not say so: scores under another setting are others, of the same responses."""
    data = write_rows(tmp_path / "riddles.jsonl", [{"riddle": "?", "solution": "egg"}])
    name = own(RIGHT.replace("one.text == item.gold", "self.exact"))
    backend = Canned(lambda question, index: "egg")
    for exact in (True, False):
        model = canned_model(tmp_path / "out", backend)
        assert measured(model, **{name: {"data": data, "exact": exact}})["riddles/accuracy"] == exact
    assert len(backend.made) == 2


def test_questions_of_one_name_are_told(tmp_path: Path, own: Callable[[str], str]) -> None:
    """Each would have the responses to the other."""
    rows = [{"riddle": "?", "solution": "egg"}, {"riddle": "!", "solution": "fog"}]
    data, name = write_rows(tmp_path / "riddles.jsonl", rows), own(RIGHT)
    file = tmp_path / f"{name.removesuffix('.Riddles')}.py"
    file.write_text(file.read_text().replace("str(row.number)", "'same'"))
    with pytest.raises(UserError, match=r"^riddles\.data: two problems are called 'same'; their ids must differ$"):
        measured(canned_model(tmp_path / "out", Canned(lambda question, index: "egg")), **{name: {"data": data}})


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ("[]", "item 0: none for the response"),
        (RIGHT.replace("one.key", "'other'"), "item 0: none for the response"),
        (RIGHT.replace("float(one.text == item.gold)", "float('nan')"), "item 0: Scored"),
        ("[1.0 for one in responses]", "item 0: 1.0"),
        (RIGHT.replace("one.text,", "3,"), "item 0: Scored"),
    ],
)
def test_scores_that_are_none_are_told_in_one_line(
    tmp_path: Path, own: Callable[[str], str], scores: str, said: str
) -> None:
    data = write_rows(tmp_path / "riddles.jsonl", [{"riddle": "?", "solution": "egg"}])
    with pytest.raises(
        UserError, match=r"^riddles: `score` must return a Scored for each response, in a list \("
    ) as error:
        measured(canned_model(tmp_path / "out", Canned(lambda question, index: "egg")), **{own(scores): {"data": data}})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


# Settings and rows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"gsm8k": {"variant": "papre"}}, "measure.gsm8k: no variant 'papre'; did you mean paper?"),
        ({"maths": {"variant": PAPERS_CODE}}, "measure.maths: no variant 'papers_code'; there is paper"),
        (
            {"gsm8k": {"n": 4, "ks": [1, 5]}},
            "measure.gsm8k: ks must be a whole number of at least 1 and at most 4 or null, got 5",
        ),
        (
            {"gsm8k": {"ks": [0]}},
            "measure.gsm8k: ks must be a whole number of at least 1 and at most 16 or null, got 0",
        ),
        ({"gsm8k": {"n": 0}}, "measure.gsm8k: n must be a whole number of at least 1 or null, got 0"),
        (
            {"gsm8k": {"top_p": 1.5}},
            "measure.gsm8k: top_p must be a finite number above 0 and at most 1 or null, got 1.5",
        ),
        (
            {"arc": {"n": 4}},
            "measure.arc: at temperature 0 all 4 samples are the same; set n to 1, or another temperature",
        ),
        ({"openllm": {"data": "rows.jsonl"}}, "measure.openllm: data must say which file is which: {arc: FILE, ...}"),
        ({"openllm": {"data": {"mmul": "x"}}}, "measure.openllm: no data set 'mmul'; did you mean mmlu?"),
        (
            {"openllm": {"sets": ["boolq"]}},
            "measure.openllm: no data set 'boolq'; there is arc, hellaswag, winogrande, ",
        ),
        ({"gsm8k": {"ks": []}}, "measure.gsm8k: ks is empty; name numbers of samples such as [1, 4], or null for "),
        ({"openllm": {"sets": []}}, "measure.openllm: sets is empty; name some of arc, "),
        (
            {"maths": {"temperatures": []}},
            "measure.maths: temperatures must be different numbers, at least one, got []",
        ),
        ({"maths": {"temperatures": [1, 0]}}, "measure.maths: at temperature 0 all 16 samples are the same; "),
        ({"maths": {"temperatures": [-1]}}, "measure.maths: temperatures must be a finite number above 0 or 0 for "),
        ({"gsm8k": {"samples": 4}}, "measure.gsm8k: no setting 'samples'; there are data, sets, limit, n, ks, "),
    ],
)
def test_a_setting_that_cannot_be_is_told(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        check_spec(spec)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [{"question": "?"}],
            r"gsm8k\.data .*rows\.jsonl:1: no field 'answer'; wanted are rows with question, and answer",
        ),
        ([{"question": 3, "answer": "#### 3"}], r"rows\.jsonl:1: question must be text, got '3'; wanted are rows with"),
        (
            [{"question": "\ud83d?", "answer": "#### 3"}],
            r"rows\.jsonl:1: question has half a character, '.ud83d'; want",
        ),
        ([{"question": "?", "answer": "3"}], r"rows\.jsonl:1: answer '3': no number behind ####"),
        (
            [],
            r"^gsm8k\.data: no rows in .*rows\.jsonl; wanted are rows with question, and answer that ends in '#### 1",
        ),
    ],
)
def test_a_row_that_is_no_question_is_told_before_anything_is_sampled(
    tmp_path: Path, rows: list[dict[str, Any]], said: str
) -> None:
    backend = Canned(answer_sums)
    data = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=said) as error:
        measured(canned_model(tmp_path / "out", backend), gsm8k={"data": data})
    assert backend.made == []
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("protocol", "row"),
    [
        ("mmlu", {"question": "Which?", "choices": ["a", "b\ud83d"], "answer": 0}),
        ("arc", {"question": "Which?", "choices": {"text": ["\udc00", "b"], "label": ["A", "B"]}, "answerKey": "A"}),
        ("arc", {"query": "Which?", "choices": ["a", "\ud83d"], "gold": 0}),
    ],
)
def test_half_a_character_in_a_list_is_told_with_file_and_line(
    tmp_path: Path, protocol: str, row: dict[str, Any]
) -> None:
    backend = Canned(answer_sums)
    rows = [{**row, "choices": json.loads(json.dumps(row["choices"]).replace("\\ud83d", "").replace("\\udc00", "c"))}]
    data = write_rows(tmp_path / "rows.jsonl", [*rows, row])
    with pytest.raises(UserError, match=r"rows\.jsonl:2: it has half a character, '.u(d83d|dc00)'; want") as error:
        measured(canned_model(tmp_path / "out", backend), **{protocol: {"data": data}})
    assert backend.made == []
    assert "\n" not in str(error.value)


def test_data_that_is_not_there_is_one_line_with_the_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("huggingface_hub.constants", "datasets.config"):  # which have read the environment long ago
        monkeypatch.setattr(f"{library}.HF_HUB_OFFLINE", True)
    model = canned_model(tmp_path / "out", Canned(answer_sums))
    with pytest.raises(UserError, match=r"no file .*nowhere\.jsonl.*; wanted are rows with question, and answer"):
        measured(model, gsm8k={"data": str(tmp_path / "nowhere.jsonl")})
    with pytest.raises(
        UserError, match=r"^gsm8k\.data: .*openai/gsm8k.*; or name a file of rows with question, and"
    ) as error:
        measured(model, gsm8k={})
    assert "\n" not in str(error.value)


def test_a_table_with_commas_is_read_with_its_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text('\ufeffquestion,answer\n"One, two?","Yes.\n#### 2"\n', encoding="utf-8")
    kind = PROTOCOLS["gsm8k"](data=str(file))
    [item] = kind.items("gsm8k")
    assert (item.id, item.gold, "Question: One, two?" in item.question) == ("0", "2", True)
    file.write_text("question,answer\nonly one\n")
    with pytest.raises(UserError, match=r"rows\.csv:2: a row of 2 columns was expected"):
        kind.items("gsm8k")


# Choices --------------------------------------------------------------------------------------------------------


def items_of(shared_data: Path, protocol: str, data_set: str, file: str, **settings: Any) -> list[Any]:
    data = {data_set: str(shared_data / "eval" / file)}
    kind = PROTOCOLS[protocol]
    return kind(data=data if len(kind.data_sets) > 1 else data[data_set], **settings).items(data_set)


CHOICE_FILES = [
    ("arc", "arc_challenge_test.jsonl.gz", 1172, 4),
    ("hellaswag", "hellaswag_val_1000.jsonl.gz", 1000, 4),
    ("winogrande", "winogrande_val.jsonl.gz", 1267, 2),
    ("mmlu", "mmlu_val.jsonl.gz", 1531, 4),
    ("truthfulqa", "truthfulqa.csv", 817, 5),
]


@pytest.mark.parametrize(("data_set", "file", "rows", "choices"), CHOICE_FILES)
def test_real_rows_with_choices_are_read(shared_data: Path, data_set: str, file: str, rows: int, choices: int) -> None:
    items = items_of(shared_data, "openllm", data_set, file)
    assert len(items) == rows
    assert len({item.id for item in items}) == rows
    kind = PROTOCOLS["openllm"]()
    for item in items:
        texts = item.details["choices"]
        assert 2 <= len(texts) <= choices
        assert item.gold in "ABCDE"[: len(texts)]
        assert f"\n{item.gold}. {texts['ABCDE'.index(item.gold)]}".rstrip() in item.question
        assert kind.chance(item) == 1 / len(texts)
    places = Counter("ABCDE".index(item.gold) for item in items)
    assert max(places.values()) < 0.65 * rows  # no place has most of the right choices


def test_truthfulqa_is_shuffled_by_its_content(shared_data: Path) -> None:
    ours = items_of(shared_data, "openllm", "truthfulqa", "truthfulqa.csv")
    again = items_of(shared_data, "openllm", "truthfulqa", "truthfulqa.csv", limit=9, seed=3)
    theirs = items_of(shared_data, "openllm", "truthfulqa", "truthfulqa.csv", variant=PAPERS_CODE)
    assert ours[:9] == again
    assert {item.gold for item in theirs} == {"A"}
    for mine, their in zip(ours, theirs, strict=True):
        assert sorted(mine.details["choices"]) == sorted(their.details["choices"])
        right = mine.details["choices"]["ABCDE".index(mine.gold)]
        assert right == their.details["choices"][0]
    five = [item for item in ours if len(item.details["choices"]) == 5]
    places = Counter(item.gold for item in five)
    expected = len(five) / 5
    assert sum((places[letter] - expected) ** 2 / expected for letter in "ABCDE") < 18.5  # chi-squared, p = 0.001


def test_winogrande_is_put_together_again(shared_data: Path) -> None:
    with gzip.open(shared_data / "eval/winogrande_val.jsonl.gz", "rt") as stream:
        rows = [json.loads(line) for line in stream]
    for number, row in enumerate(rows):
        read = read_winogrande(Row(number, "here", row))
        for context, option in zip(row["context_options"], read.texts, strict=True):
            assert read.question.replace("_", option, 1) == f"{context} {row['continuation']}"
        assert len({*read.texts}) == 2
        assert all(read.texts)
    published = {"sentence": "Sarah ... so _ got easy cases.", "option1": "Sarah", "option2": "Maria", "answer": "2"}
    assert read_winogrande(Row(0, "here", published)) == Choices(
        "Sarah ... so _ got easy cases.", ("Sarah", "Maria"), 1
    )


ARC_ROW = {
    "question": "Which?",
    "choices": {"text": ["gold", "iron", "zinc"], "label": ["1", "2", "3"]},
    "answerKey": "2",
}


def test_arc_is_read_as_the_hub_has_it(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "arc.jsonl", [ARC_ROW])
    [ours] = PROTOCOLS["arc"](data=data).items("arc")
    assert (ours.gold, ours.continued) == ("B", False)
    assert ours.question == (
        "Answer the following multiple choice question. Your response should be of the following format: 'Answer: "
        "$LETTER' (without quotes) where LETTER is one of choice labels.\n\nWhich?\n\nA) gold\nB) iron\nC) zinc"
    )
    [theirs] = PROTOCOLS["arc"](data=data, variant=PAPERS_CODE).items("arc")
    assert (theirs.gold, theirs.continued) == ("2", True)
    assert theirs.question.endswith("<|/input|> \n\nResponse: \n<|response|>\n")
    assert "<|instruct|> \nAnswer the following" in theirs.question
    assert "1) gold\n2) iron\n3) zinc \n<|/instruct|>" in theirs.question


def test_the_articles_a_is_a_choice_in_the_papers_code_alone(tmp_path: Path) -> None:
    data = {"arc": write_rows(tmp_path / "arc.jsonl", [ARC_ROW])}
    backend = Canned(lambda question, index: "The answer is: B. This is a good choice.")
    settings: dict[str, Any] = {"data": data, "sets": ["arc"], "n": 2}
    ours = measured(canned_model(tmp_path / "out", backend), openllm=settings)
    theirs = measured(canned_model(tmp_path / "out", backend), openllm={**settings, "variant": PAPERS_CODE})
    assert (ours["openllm/arc/accuracy"], theirs["openllm/arc/accuracy"]) == (1.0, 0.0)
    assert ours["openllm/arc/chance"] == pytest.approx(1 / 3)
    assert ours["openllm/arc/chance_at_2"] == pytest.approx(5 / 9)
    assert len(backend.made) == 2  # both variants ask the same


def test_the_mean_of_the_sets_is_given_beside_them(tmp_path: Path) -> None:
    rows = [{"sentence": "_ is.", "option1": "It", "option2": "He", "answer": str(1 + i % 2)} for i in range(4)]
    data = {
        "arc": write_rows(tmp_path / "arc.jsonl", [ARC_ROW]),
        "winogrande": write_rows(tmp_path / "winogrande.jsonl", rows),
    }
    backend = Canned(lambda question, index: "The answer is: B")
    values = measured(
        canned_model(tmp_path / "out", backend), openllm={"data": data, "sets": ["arc", "winogrande"], "n": 2}
    )
    assert values["openllm/winogrande/accuracy"] == 0.5
    assert values["openllm/accuracy"] == pytest.approx((1 + 0.5) / 2)
    assert values["openllm/pass_at_2"] == pytest.approx((1 + 0.5) / 2)
    assert "openllm/questions" not in values


def test_ours_reads_what_stands_beside_every_score(tmp_path: Path) -> None:
    """Of four responses one is cut off, one has no answer, two have, one of which is right."""
    texts = ["The answer is: B", "I think so...", "The answer is: C", "none"]
    backend = Canned(lambda question, index: texts[index])
    data = {"arc": write_rows(tmp_path / "arc.jsonl", [ARC_ROW])}
    values = measured(canned_model(tmp_path / "out", backend), openllm={"data": data, "sets": ["arc"], "n": 4})
    beside = {name: values[f"openllm/arc/{name}"] for name in ("questions", "samples", "unparsed", "truncated")}
    assert beside == {"questions": 1, "samples": 4, "unparsed": 0.5, "truncated": 0.25}
    assert (values["openllm/arc/accuracy"], values["openllm/arc/accuracy_of_parsed"]) == (0.25, 0.5)


# Mathematics ----------------------------------------------------------------------------------------------------


def test_coverage_of_mathematics(tmp_path: Path) -> None:
    pytest.importorskip("math_verify", reason="the extra `math` is not installed")
    data = {
        "math500": write_rows(tmp_path / "math.jsonl", [{"problem": "Half?", "answer": "\\frac{1}{2}"}]),
        "minerva": write_rows(tmp_path / "minerva.jsonl", [{"question": "Energy?", "answer": "4.5e33"}]),
    }
    texts = {
        "Half?": ["so \\boxed{0.5}", "it is \\frac{1}{2}", "\\boxed{2}", "\\boxed{1/2}"],
        "Energy?": ["\\boxed{4.49 \\times 10^{33} \\text{ erg}}", "4.5e33", "\\boxed{4.6e33}", "no"],
    }
    backend = Canned(lambda question, index: texts[question.partition("\n")[0]][index])
    settings: dict[str, Any] = {"data": data, "sets": ["math500", "minerva"], "n": 4, "temperatures": [1.0, 0.3]}
    values = measured(canned_model(tmp_path / "out", backend), maths=settings)
    assert len(backend.made) == 16
    for t in ("1", "0.3"):
        assert values[f"maths/math500_t{t}/accuracy"] == 0.5
        assert values[f"maths/math500_t{t}/unparsed"] == 0.25
        assert values[f"maths/minerva_t{t}/accuracy"] == 0.25
        assert values[f"maths/minerva_t{t}/pass_at_4"] == 1.0
    loose = measured(canned_model(tmp_path / "out", backend), maths={**settings, "unboxed_number": True})
    assert len(backend.made) == 16
    assert loose["maths/minerva_t1/accuracy"] == 0.5
    one = measured(canned_model(tmp_path / "out", backend), maths={**settings, "temperature": 0.3})
    assert one["maths/math500/accuracy"] == 0.5
    assert len(backend.made) == 16


def test_problems_of_mathematics_are_read(shared_data: Path) -> None:
    items = items_of(shared_data, "maths", "math500", "math500.jsonl.gz")
    assert len(items) == 500
    assert items[0].gold == "\\left( 3, \\frac{\\pi}{2} \\right)"
    assert items[0].question.endswith("\nPlease reason step by step, and put your final answer within \\boxed{}.")


def test_every_right_answer_of_gsm8k_is_read(shared_data: Path) -> None:
    items = items_of(shared_data, "gsm8k", "gsm8k", "gsm8k_test_0000_1018.jsonl.gz")
    assert len(items) == 1019
    with gzip.open(shared_data / "eval/gsm8k_test_0000_1018.jsonl.gz", "rt") as stream:
        golds = [json.loads(line)["answer"].split("#### ")[1].replace(",", "") for line in stream]
    assert [item.gold for item in items] == [str(Fraction(gold)) for gold in golds]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_says_what_it_is(name: str) -> None:
    """What `protocols` shows is there, and the default settings are those of the paper's variant."""
    kind = PROTOCOLS[name]
    assert kind.source
    assert kind.prompt
    assert next(iter(kind.samplings)) == PAPER
    for variant in kind.samplings:
        protocol = kind(variant=variant)
        protocol.check()
        json.dumps(protocol.plain_settings())
        assert protocol.plain_settings()["n"] == kind.samplings[variant].n
        assert "batch_size" not in protocol.plain_settings()
    assert math.prod(data.rows for data in kind.data_sets.values()) > 0
    assert isinstance(Measured({}), tuple)
