"""HumanEval on responses that are written here: what is asked, what is run, and what follows from it."""

import itertools
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.canned import Canned, canned_model
from ts2_lightning.evaluation import Model, check_spec, files_of, make_measures
from ts2_lightning.evaluation.protocols import humaneval
from ts2_lightning.evaluation.protocols.data import Row, read_data
from ts2_lightning.evaluation.protocols.humaneval import HumanEval
from ts2_lightning.evaluation.results import read_result
from ts2_lightning.generation import Response
from ts2_lightning.sandbox import Program
from ts2_lightning.types import UserError

SHARED = Path(__file__).resolve().parents[3] / "shared/data/eval/humaneval_000_081.jsonl.gz"

ROWS = [
    {
        "task_id": "HumanEval/0",
        "prompt": 'import math\n\n\ndef area(radius: float) -> float:\n    """Of a circle, in m².\n    """\n',
        "entry_point": "area",
        "canonical_solution": "    return math.pi * radius**2\n",
        "test": "def check(candidate):\n    assert abs(candidate(2) - 12.566370614359172) < 1e-9\n",
    },
    {
        "task_id": "HumanEval/1",
        "prompt": 'def last(items):\n    """The last of them."""\n',
        "entry_point": "last",
        "canonical_solution": "    return items[-1]\n",
        "test": "def check(candidate):\n    assert candidate([1, 2]) == 2\n    assert candidate('ab') == 'b'\n",
    },
]


def fenced(code: str) -> str:
    return f"Here it is:\n```python\n{code}```\nIt is right."


RIGHT = [fenced(f"{row['prompt']}{row['canonical_solution']}") for row in ROWS]
WRONG = fenced("def area(radius): return 0\ndef last(items): return items[0]\n")
NO_PYTHON = fenced("def area(radius) return 0\n")


def answers(question: str, index: int) -> str:
    """The first problem is right in every second response, the second in the first one."""
    number = "def last" in question
    if index == 5:
        return NO_PYTHON
    return RIGHT[number] if index in ((0, 2, 4), (0,))[number] else WRONG


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def measured(model: Any, **settings: Any) -> dict[str, float]:
    return make_measures(model, check_spec({"humaneval": settings}), lambda line: None, draw=False)


def responses(*texts: str, of: str = "") -> list[Response]:
    return [Response(f"{of}{number}", text, 1, "stop") for number, text in enumerate(texts)]


def row(**changes: Any) -> Row:
    return Row(0, "file:1", {**ROWS[0], **changes})


# What is asked --------------------------------------------------------------------------------------------------


def test_the_message_and_the_openings_are_those_of_the_papers_code() -> None:
    prompt = ROWS[0]["prompt"].strip()
    message = (
        "You are an exceptionally intelligent coding assistant that consistently delivers accurate and reliable "
        "responses to user instructions.\n\n@@ Instruction\nWrite a solution to the following problem:\n```python\n"
        f"{prompt}\n```\n"
    )
    of_text = HumanEval().item(row(), "humaneval")
    assert (of_text.id, of_text.question, of_text.opening, of_text.continued) == ("HumanEval/0", message, "", False)
    of_code = HumanEval(variant="papers_code").item(row(), "humaneval")
    assert (of_code.question, of_code.opening) == (message, f"```python\n    {prompt}")
    assert HumanEval(variant="papers_code", opening="simple").item(row(), "humaneval").opening == "```python"
    base = HumanEval(rule="completion").item(row(), "humaneval")
    assert (base.question, base.opening, base.continued) == (ROWS[0]["prompt"], "", True)


@pytest.mark.parametrize(
    ("settings", "texts"),
    [
        ({}, [RIGHT[0], "    return math.pi * radius**2\n", fenced("    return math.pi * radius**2\n")]),
        (
            {"variant": "papers_code"},
            ["\n    return math.pi * radius**2\n```\nThat was it.\n```py\nraise", "  1"],
        ),
        (
            {"variant": "papers_code", "opening": "simple"},
            ["\nimport math\ndef area(radius):\n    return math.pi * radius**2\n```\nrest", "\ndef area(r): pass"],
        ),
        ({"rule": "completion"}, ["    return math.pi * radius**2\n\n\ndef other(:\n", "    return 12.6"]),
    ],
)
def test_each_rule_reads_what_it_asks_for(settings: dict[str, Any], texts: list[str]) -> None:
    protocol = HumanEval(run_code=True, workers=1, **settings)
    item = protocol.item(row(), "humaneval")
    scored = protocol.score(item, responses(*texts))
    right = [True] * len(texts) if not settings else [True, False]
    assert [(one.key, one.score) for one in scored] == [(str(i), float(each)) for i, each in enumerate(right)]


# What follows ---------------------------------------------------------------------------------------------------


def test_the_values_are_those_of_brute_force(tmp_path: Path, data: str) -> None:
    model = canned_model(tmp_path / "out", Canned(answers))
    settings: dict[str, Any] = {"data": data, "n": 6, "ks": [1, 2, 5], "run_code": True}
    values = measured(model, **settings)
    right = [[True, False, True, False, True, False], [True, False, False, False, False, False]]
    for k in (1, 2, 5):
        expected = statistics.fmean(
            statistics.fmean(any(subset) for subset in itertools.combinations(of_problem, k)) for of_problem in right
        )
        assert values[f"humaneval/pass_at_{k}"] == pytest.approx(expected, abs=1e-12)
    assert values["humaneval/unparsed"] == pytest.approx(2 / 12)
    assert (values["humaneval/questions"], values["humaneval/samples"]) == (2, 6)
    assert values["humaneval/distinct_answers"] == 2  # the right program and the wrong one
    [file] = files_of(model.out, check_spec({"humaneval": settings})).values()
    documents = read_result(file).documents
    assert documents["per_item"]["pass_at_1"] == {"HumanEval/0": 0.5, "HumanEval/1": pytest.approx(1 / 6, abs=1e-6)}
    assert "seccomp" in " ".join(documents["sandbox"])
    [scores] = (tmp_path / "out/scores").iterdir()
    lines = [json.loads(line) for line in scores.read_text().splitlines()[1:]]
    assert {line["note"] for line in lines} == {"", "failed AssertionError", "failed SyntaxError"}
    assert all((line["answer"] is None) == ("Syntax" in line["note"]) for line in lines)


def test_without_leave_nothing_is_sampled_and_nothing_is_run(tmp_path: Path, data: str) -> None:
    backend = Canned(answers)
    with pytest.raises(UserError) as error:
        measured(canned_model(tmp_path / "out", backend), data=data, n=2)
    assert str(error.value).startswith("humaneval runs programs that the model wrote")
    assert "--run_code" in str(error.value)
    assert "\n" not in str(error.value)
    assert not backend.made
    with pytest.raises(UserError, match="--i_know_what_i_run"):
        measured(canned_model(tmp_path / "out", backend), data=data, n=2, run_code=True, sandbox="none")
    assert not backend.made


def test_a_killed_scoring_goes_on_and_equal_programs_run_once(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    class Killed(humaneval.Sandbox):
        stop_after = 2

        def run(self, programs: Any) -> Any:
            for number, verdict in enumerate(super().run(programs)):
                if self.layers and not isinstance(programs, list):  # not the attacks on itself
                    if number == self.stop_after:
                        raise KeyboardInterrupt
                    ran.append(verdict.key)
                yield verdict

    monkeypatch.setattr(humaneval, "Sandbox", Killed)
    backend = Canned(answers)
    settings: dict[str, Any] = {"data": data, "n": 6, "run_code": True, "workers": 1}
    with pytest.raises(KeyboardInterrupt):
        measured(canned_model(tmp_path / "out", backend), **settings)
    assert (len(ran), len(backend.made)) == (2, 12)
    Killed.stop_after = 100
    values = measured(canned_model(tmp_path / "out", backend), **settings)
    assert (len(ran), len(backend.made)) == (6, 12)  # three different programs for each problem
    assert values == measured(canned_model(tmp_path / "other", Canned(answers)), **settings)


def test_another_file_of_tests_judges_the_same_responses(tmp_path: Path, data: str) -> None:
    harder = tmp_path / "plus.jsonl"
    test = "def check(candidate):\n    assert candidate([1, 2]) == 2\n    assert candidate([]) is None\n"
    harder.write_text(
        "".join(json.dumps({**row, "test": row["test"] if i == 0 else test}) + "\n" for i, row in enumerate(ROWS))
    )
    backend = Canned(answers)
    model = canned_model(tmp_path / "out", backend)
    base = measured(model, data=data, n=2, run_code=True)
    plus = measured(model, data=str(harder), n=2, run_code=True)
    assert (base["humaneval/accuracy"], plus["humaneval/accuracy"]) == (0.5, 0.25)
    assert len(backend.made) == 4
    assert len([*(tmp_path / "out/measures").glob("*.json")]) == 2
    assert measured(model, data=data, n=2, run_code=True) == base
    kept = Model("kept", "kept", lambda: "nowhere", tmp_path / "elsewhere", responses=model.out)
    for file, values in ((data, base), (str(harder), plus)):
        assert measured(kept, data=file, n=2, run_code=True) == values
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({**row, "prompt": f"import re\n{row['prompt']}"}) + "\n" for row in ROWS))
    with pytest.raises(UserError, match="HumanEval/0 has another prompt there than in"):
        measured(kept, data=str(other), n=2, run_code=True)
    assert len(backend.made) == 4


def test_settings_that_no_value_depends_on_make_no_other_file() -> None:
    plain = HumanEval().plain_settings()
    assert plain == HumanEval(run_code=True, workers=3, i_know_what_i_run=True, batch_size=2).plain_settings()
    assert plain["rule"] == "fenced"
    assert plain != HumanEval(seconds=9).plain_settings()
    assert HumanEval().scoring_settings() != HumanEval(seconds=9).scoring_settings()


# Hostile --------------------------------------------------------------------------------------------------------


def test_no_response_passes_that_should_not_and_none_breaks_the_scoring(tmp_path: Path) -> None:
    texts = [
        "",
        "\n\n",
        fenced("import os\nos._exit(0)\n"),
        fenced("import sys\ndef area(radius): sys.exit(0)\n"),
        fenced("def area(radius): return None\n"),
        fenced("def area(radius):\n    while True: pass\n"),
        fenced("def area(radius): return '\ud800'\n"),
        fenced("def area(radius): return '\x00'\n"),
        fenced("def area(radius): return '" + "é\u2028😀" * 1000 + "'\n"),
        "```" * 2000,
        "(" * 5000,
        fenced("def check(candidate): pass\n"),
    ]
    protocol = HumanEval(run_code=True, seconds=0.7, workers=1)
    item = protocol.item(row(), "humaneval")
    scored = protocol.score(item, responses(*texts, RIGHT[0]))
    assert [one.score for one in scored] == [0.0] * len(texts) + [1.0]
    assert [one.answer is None for one in scored[:2]] == [True, True]
    assert scored[5].note == "timeout"
    json.dumps([one.answer for one in scored], ensure_ascii=False).encode()  # a file of scores takes it


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": None}, "prompt must be text, got 'None'"),
        ({"prompt": "def other():\n"}, "prompt does not begin the function area"),
        ({"entry_point": "area; import os"}, "entry_point must be the name of a function, got 'area; import os'"),
        ({"test": "assert True"}, "test does not define check"),
        ({"test": ...}, "no field 'test'"),
        ({"test": ..., "plus_input": []}, "inputs without tests; take the file of HumanEval+ that has the field test"),
        ({"task_id": 7}, "task_id must be text, got '7'"),
    ],
)
def test_a_bad_row_is_told_in_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    file = tmp_path / "bad.jsonl"
    fields = {name: value for name, value in {**ROWS[0], **changes}.items() if value is not ...}
    file.write_text(json.dumps(ROWS[1]) + "\n" + json.dumps(fields) + "\n")
    with pytest.raises(UserError) as error:
        HumanEval(data=str(file)).items("humaneval")
    assert str(error.value).startswith(f"humaneval.data {file}:2: {said}")
    assert "\n" not in str(error.value)


def test_two_problems_of_one_name_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "twice.jsonl"
    file.write_text(2 * (json.dumps(ROWS[1]) + "\n"))
    with pytest.raises(UserError, match="two problems are called 'HumanEval/1'"):
        HumanEval(data=str(file)).items("humaneval")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"opening": "simple"}, "opening begins answers where rule is prefilled; it is fenced"),
        ({"seconds": 0}, "seconds must be a finite number above 0"),
        ({"workers": 0}, "workers must be a whole number of at least 1"),
        ({"sandbox": "jail"}, "--sandbox must be one of auto"),
        ({"n": 5, "ks": [10]}, "ks must be a whole number of at least 1 and at most 5 or null, got 10"),
    ],
)
def test_a_bad_setting_is_told_in_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_spec({"humaneval": settings})


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_file(), reason="shared/data is not beside the checkout")
def test_reference_solutions_pass_and_nothing_does_not() -> None:
    protocol = HumanEval(data=str(SHARED), run_code=True)
    described = protocol.data_sets["humaneval"]
    rows = read_data(described, str(SHARED), "data")
    assert len(rows) == 82
    bodies = [[str(each.fields["canonical_solution"]), "    return None\n"] for each in rows]
    for settings, wrap in (
        ({"rule": "completion"}, lambda prompt, body: body),
        ({"variant": "papers_code"}, lambda prompt, body: f"\n{body}```\n"),
        ({}, lambda prompt, body: fenced(f"{prompt}{body}")),
    ):
        asking = replace(protocol, **settings)
        items = asking.items("humaneval")
        answered = [
            (
                item,
                [
                    Response(f"{item.id} {i}", wrap(item.details["prompt"], body), 1, "stop")
                    for i, body in enumerate(two)
                ],
            )
            for item, two in zip(items, bodies, strict=True)
        ]
        scores = {one.key: one.score for _, scored in asking.score_all(answered) for one in scored}
        assert [scores[f"{item.id} 0"] for item in items] == [1.0] * 82
        assert [scores[f"{item.id} 1"] for item in items] == [0.0] * 82


def test_a_program_of_the_protocol_is_one_of_the_sandbox() -> None:
    protocol = HumanEval(run_code=True, seconds=2.5)
    item = protocol.item(row(), "humaneval")
    waiting: dict[str, Any] = {}
    [program] = protocol._programs([(item, responses(RIGHT[0], RIGHT[0]))], waiting)
    assert isinstance(program, Program)
    assert program.seconds == 2.5
    assert waiting[program.key][2] == ["0", "1"]
