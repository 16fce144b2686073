"""MT-Bench-101: its dialogues, what the judge is asked of each turn, and what follows from the ratings."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.canned import Canned, canned_model
from tests.support.served_judge import ServedJudge
from ts2_lightning.evaluation import check_spec, files_of, make_measures
from ts2_lightning.evaluation.judges import ChatSettings
from ts2_lightning.evaluation.protocols.mtbench101 import (
    FIRST_TURN_SETS_THE_SCENE,
    TASKS,
    MTBench101,
    judge_prompts,
)
from ts2_lightning.evaluation.results import read_result
from ts2_lightning.generation import Response
from ts2_lightning.types import UserError

FILE = "chat/mt_bench_101.jsonl.gz"
NOBODY = ChatSettings(model="endpoint:http://127.0.0.1:9#judge", api_key_env="")
TURNS = {"SI": 620, "IC": 426, "AR": 407, "PI": 354, "CC": 352, "CR": 253, "TS": 249, "CM": 239, "MR": 224, "GR": 218,
         "FR": 123, "SC": 77, "SA": 73}  # fmt: skip


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TS2_CACHE_DIR", str(tmp_path / "cache"))


def dialogue(task: str, id: int, turns: int) -> dict[str, Any]:
    return {"task": task, "id": id, "history": [{"user": f"{task}{id}.{i}?", "bot": f"gold {i}"} for i in range(turns)]}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def measured(out: Path, backend: Canned, **settings: Any) -> Any:
    spec = check_spec({"mtbench101": settings})
    make_measures(canned_model(out, backend), spec, lambda line: None, draw=False)
    [file] = files_of(out, spec).values()
    return read_result(file)


# Dialogues ------------------------------------------------------------------------------------------------------


def test_the_whole_file_has_3615_turns_to_rate(shared_data: Path) -> None:
    items = MTBench101(data=str(shared_data / FILE)).items("mtbench101")
    assert len(items) == MTBench101.data_sets["mtbench101"].rows == 3615
    assert Counter(item.details["task"] for item in items) == TURNS
    assert len({item.details["dialogue"] for item in items}) == 1388
    first = {task: min(item.details["turn"] for item in items if item.details["task"] == task) for task in TASKS}
    assert first == {task: 1 + (task in FIRST_TURN_SETS_THE_SCENE) for task in TASKS}
    assert all(len(item.history) == 2 * (item.details["turn"] - 1) for item in items)


def test_the_judge_is_asked_what_opencompass_asks(shared_data: Path) -> None:
    """The digest is of what its code makes of the whole file at a5acc4b: system turn and user turn of every turn."""
    protocol = MTBench101(data=str(shared_data / FILE), judge=NOBODY)
    judge: Any = protocol.make_judge()
    digest = hashlib.sha256()
    for item in protocol.items("mtbench101"):
        system, user = judge.asks.asked(protocol.case(item, Response("key", "PREDICTION", 1, "stop")))
        digest.update(json.dumps([item.id, system["content"], user["content"]]).encode())
    assert digest.hexdigest() == "c730604a1ccb904eb4e3908a845ded1df6ea701bb737b65bf8a09014e184bfb0"


def test_solutions_are_shown_for_two_tasks(tmp_path: Path) -> None:
    protocol = MTBench101(data=write(tmp_path / "a.jsonl", [dialogue(task, 1, 2) for task in TASKS]), judge=NOBODY)
    judge: Any = protocol.make_judge()
    last = {item.details["task"]: item for item in protocol.items("mtbench101")}
    for task, item in last.items():
        system, user = judge.asks.asked(protocol.case(item, Response("key", "own {x}", 1, "stop")))
        shown = f"\n\n Human: {task}1.0?\n\nAssistant: gold 0\n\n Human: {task}1.1?\n\nAssistant:  own {{x}} \n ***"
        assert user["content"].startswith(f"The dialogue need to be judged is: \n *** \n {shown}")
        assert ("gold 1" in user["content"]) == (task in ("MR", "GR"))
        assert system["content"].startswith(judge_prompts()["judge"] + judge_prompts()["tasks"][task])
    assert "Apache-2.0" in judge_prompts()["licence"]
    assert set(judge_prompts()["tasks"]) == set(TASKS)


# Ratings --------------------------------------------------------------------------------------------------------

RATINGS = {
    "SI1.0": 7, "SI1.1": 3, "SI1.2": 9,  # the lowest is 3
    "SI2.0": 8, "SI2.1": None,  # 8: what cannot be read is left out
    "CM3.1": 6, "CM3.2": 10,  # 6: the first turn is given
    "CM4.1": None,  # nothing to read in the whole dialogue
    "GR5.0": 10, "GR5.1": 5,  # 5
}  # fmt: skip
ROWS = [dialogue("SI", 1, 3), dialogue("SI", 2, 2), dialogue("CM", 3, 3), dialogue("CM", 4, 2), dialogue("GR", 5, 2)]


def turn_of(user: str) -> str:
    """The turn that is rated."""
    return re.findall(r"Human: ([A-Z]{2}\d\.\d)\?", user.partition("The reference solution")[0])[-1]


def rates(system: str, user: str) -> str:
    rating = RATINGS[turn_of(user)]
    return "I will not." if rating is None else f"As item [1] says, 'Rating: [[2]]' is too low.\nRating: [[{rating}]]"


def test_a_dialogue_has_the_lowest_rating_of_its_turns(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", ROWS)
    backend = Canned(lambda question, index: f"my {question}")
    with ServedJudge(rates) as judge:
        result = measured(tmp_path / "out", backend, data=file, judge=judge.settings())
        asked = judge.counts
        values = {name.removeprefix("mtbench101/"): value for name, value in result.values.items()}
        assert [values[task] for task in ("SI", "CM", "GR")] == [(3 + 8) / 2, 6, 5]
        assert values["overall"] == pytest.approx((5.5 + 6 + 5) / 3)
        # Within SI the mean of two draws of 3 and 8 is 3, 5.5 or 8; the other tasks have one dialogue.
        interval = [(5.5 + 6 + 5) / 3, (3 + 6 + 5) / 3, (8 + 6 + 5) / 3]
        assert result.documents["curves"]["overall"] == {"1": pytest.approx(interval)}
        assert values["dialogue"] == pytest.approx((3 + 8 + 6 + 5) / 4)
        assert values["turn"] == pytest.approx((7 + 3 + 9 + 8 + 6 + 10 + 10 + 5) / 8)
        assert (values["tasks"], values["dialogues"], values["questions"]) == (3, 4, 10)
        assert values["judge_unparsed"] == pytest.approx(2 / 10)
        assert result.documents["per_item"]["dialogue"] == {"SI-1-3": 3, "SI-2-2": 8, "CM-3-3": 6, "GR-5-2": 5}
        assert result.documents["per_item"]["SI"] == {"SI-1-3": 3, "SI-2-2": 8}
        assert set(result.documents["per_item"]["dialogue"]) < set(result.documents["asked"][""])
        assert sorted(asked.values()) == [1] * 8 + [2] * 2
        in_code = measured(tmp_path / "out", backend, data=file, judge=judge.settings(), variant="papers_code").values
        assert judge.counts == asked  # the same answers, read otherwise
    assert len(backend.made) == 10
    assert in_code["mtbench101/overall"] == 1  # the first number in brackets
    assert in_code["mtbench101/judge_unparsed"] == pytest.approx(2 / 10)
    assert {body["max_tokens"] for body in judge.asked} == {2048}


@pytest.mark.parametrize(
    ("answer", "ours", "in_code"),
    [
        ("Rating: [[7]]", 7, 7),
        ("Rating: [[ 7.5 ]] ", 7.5, None),
        ("Rating: [[11]]", None, 11),
        ("Rating: [[0]]", None, 0),
        ("First Rating: [[6]], but then Rating: [[4]]", 4, 6),
        ("Score [3] of 10", None, 3),
        ("**Rating: [[9]]**", 9, 9),
        ("Rating: 8", None, None),
        ("", None, None),
    ],
)
def test_ratings_are_read(answer: str, ours: float | None, in_code: float | None) -> None:
    case: Any = None
    judges: Any = [MTBench101(judge=NOBODY, variant=name).make_judge() for name in ("paper", "papers_code")]
    assert [judge.read(answer, case) for judge in judges] == [ours, in_code]


def test_of_several_responses_each_makes_a_dialogue_of_its_own(tmp_path: Path) -> None:
    ratings = {("SI1.0", 0): 9, ("SI1.1", 0): 2, ("SI1.0", 1): 4, ("SI1.1", 1): 8}

    def says(system: str, user: str) -> str:
        return f"Rating: [[{ratings[turn_of(user), int(user.rpartition('sample ')[2][0])]}]]"

    with ServedJudge(says) as judge:
        settings = {"data": write(tmp_path / "rows.jsonl", [dialogue("SI", 1, 2)]), "judge": judge.settings()}
        backend = Canned(lambda question, index: f"sample {index}")
        values = measured(tmp_path / "out", backend, **settings, n=2, temperature=1.0).values
    assert values["mtbench101/overall"] == (2 + 4) / 2


def test_nothing_that_can_be_read_is_no_score(tmp_path: Path) -> None:
    with ServedJudge(lambda system, user: "no") as judge:
        settings = {"data": write(tmp_path / "rows.jsonl", ROWS[:1]), "judge": judge.settings()}
        values = measured(tmp_path / "out", Canned(lambda *_: "own"), **settings).values
    assert "mtbench101/overall" not in values
    assert values["mtbench101/judge_unparsed"] == 1


def test_some_tasks(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", ROWS)
    ids = [item.id for item in MTBench101(data=file, tasks=("CM", "GR")).items("mtbench101")]
    assert ids == ["CM-3-2", "CM-3-3", "CM-4-2", "GR-5-1", "GR-5-2"]
    assert len(MTBench101(data=file, limit=2).items("mtbench101")) == 5
    with pytest.raises(UserError, match=r"^mtbench101\.data: no dialogue of PI among its rows$"):
        MTBench101(data=file, tasks=("PI",)).items("mtbench101")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"task": "XX", "id": 1, "history": []}, "task must be one of CM, SI, AR, "),
        (
            {"task": "CM", "id": 1, "history": [{"user": "a", "bot": "b"}]},
            "history must be a list of turns with user and bot, at least 2; wanted",
        ),
        ({"task": "SI", "id": 1, "history": "text"}, "history must be a list of turns with user and bot, at least 1"),
        ({"task": "SI", "id": 1, "history": [{"user": "a"}]}, "no field 'bot'; wanted are rows with task, id and"),
        ({"task": "SI", "id": 1, "history": ["a"]}, "no field 'user'"),
        ({"task": "SI", "history": [{"user": "a", "bot": "b"}]}, "no field 'id'"),
        ({"task": "SI", "id": 1, "history": [{"user": 1, "bot": "b"}]}, "user must be text, got '1'"),
    ],
)
def test_a_bad_row_is_told_in_one_line(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    file = write(tmp_path / "rows.jsonl", [ROWS[0], row])
    with pytest.raises(UserError) as error:
        MTBench101(data=file).items("mtbench101")
    assert str(error.value).startswith(f"mtbench101.data {file}:2: {said}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tasks": ["CN"]}, "no task 'CN'; there are CM, SI, "),
        ({"tasks": []}, "tasks is empty; name some of CM, "),
        ({"ks": [1]}, "ks must be null for ratings, got (1,)"),
        ({"judge": {"vote": 3}}, "measure.mtbench101.judge: no setting 'vote'; did you mean votes?"),
    ],
)
def test_a_bad_setting_is_told_in_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        check_spec({"mtbench101": settings})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_no_judge_is_told_before_anything_is_sampled(tmp_path: Path) -> None:
    backend = Canned(lambda *_: "own")
    with pytest.raises(UserError, match="mtbench101: no judge is named"):
        measured(tmp_path / "out", backend, data=write(tmp_path / "rows.jsonl", ROWS))
    assert backend.made == []
