"""`judge`, and the options of `evaluate` that say who judges and what it may cost."""

import csv
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.support.canned import Canned, canned_model
from tests.support.counting_judge import CountingJudge, often_failing
from tests.support.judges import write_reward_model
from ts2_lightning.evaluation import check_spec, make_measures
from ts2_lightning.generation.backends import json_client

Log = pytest.LogCaptureFixture

PROTOCOL = """
from dataclasses import dataclass
from typing import ClassVar
from ts2_lightning.evaluation.judges import ChatJudge, ChatSettings, JudgePrompt, rating
from ts2_lightning.evaluation.protocols import DataSet, Item, Sampling
from ts2_lightning.evaluation.protocols.items import Estimate
from ts2_lightning.evaluation.protocols.judged import JudgedProtocol, read_scores

JUDGE = ChatSettings(max_new_tokens=8)

@dataclass(frozen=True)
class Tales(JudgedProtocol):
    name: ClassVar[str] = "tales"
    data_sets: ClassVar = {"tales": DataSet("nobody/tales", "test", 3, "title")}
    samplings: ClassVar = {"paper": Sampling(2, temperature=1.0, max_new_tokens=8)}
    judge: ChatSettings = JUDGE

    def item(self, row, data_set):
        return Item(str(row.number), "Tell of " + row.text("title"), None)

    def make_judge(self):
        prompt = JudgePrompt("tales", "{response} of {question}. Rating:")
        return ChatJudge(self.judge, prompt, rating(r"Rating: (\\d)"))

    def estimate(self, part, answered):
        scores = [score for one in answered for score in read_scores(one)]
        return Estimate({"rating": sum(scores) / len(scores)})
"""


def number_of(text: str) -> int:
    return sum(text.encode()) % 8


def says(text: str, body: Any) -> str:
    if "Verdict:" in text:
        first, second = (text.split(f"[Response {one}]\n")[1].split("\n")[0] for one in "AB")
        return f"Verdict: {'A' if len(first) >= len(second) else 'B'}"
    return f"Rating: {number_of(text)}"


@pytest.fixture
def server(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingJudge]:
    monkeypatch.setattr(json_client, "_LONGEST_WAIT", 0.01)
    monkeypatch.setenv("TS2_CACHE_DIR", str(here / "cache"))
    with CountingJudge(says, often_failing) as judge:
        yield judge


def write_rows(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


# judge ----------------------------------------------------------------------------------------------------------


def judged(server: CountingJudge, *words: str) -> list[str]:
    return ["judge", "--judge", server.model, "--judge_api_key_env=", *words]


def test_a_judge_of_pairs_is_checked_in_both_orders(real: Run, server: CountingJudge, caplog: Log) -> None:
    """It takes the longer response, and of equal ones the first."""
    write_rows("pairs.jsonl", [
        {"instruction": f"Q{i}", "output_1": "a" * first, "output_2": "b" * second, "preference": preference}
        for i, (first, second, preference) in enumerate([(3, 1, 1), (1, 4, 2), (5, 2, 2), (2, 2, "tie"), (2, 2, 1)] * 4)
    ])  # fmt: skip
    done = real(*judged(server, "--check", "pairs.jsonl", "--price=1,2", "--out=out")).done()
    assert "m on 20 pairs" in done.out
    assert "check: 40 verdicts by m, about " in caplog.text
    with open("out/agreement.csv") as stream:
        values = {row["figure"]: row for row in csv.DictReader(stream)}
    expected = {
        "accuracy": 0.6, "accuracy_once": (1 + 1 + 0 + 0 + 0.5) / 5, "accuracy_consistent": 2 / 3, "consistent": 0.6,
        "position_bias": 0.4, "first_place": 0.4, "longer_wins": 1.0, "longer_should": 2 / 3, "length_bias": 1 / 3,
        "unread": 0.0,
    }  # fmt: skip
    numbers = json.loads(Path("out/agreement.json").read_text())["values"]
    assert {name: numbers[name]["value"] for name in expected} == pytest.approx(expected)
    for name, row in values.items():
        assert [float(row[end]) for end in ("low", "high")] == [numbers[name]["low"], numbers[name]["high"]]
    assert "  the longer response wins                    1.000 [1.000, 1.000]  12" in done.out
    assert "20 rows are few" in done.out
    rows = [json.loads(line) for line in Path("out/verdicts.jsonl").read_text().splitlines()]
    assert (rows[2]["label"], rows[2]["verdict"], rows[2]["verdict_swapped"]) == (0.0, 1.0, 1.0)
    assert rows[0]["raw"] == "Verdict: A"
    count = len(server.bodies)
    assert real(*judged(server, "--check", "pairs.jsonl", "--out=out")).done().out == done.out
    assert len(server.bodies) == count
    assert set(server.answered.values()) == {1}


def test_a_judge_of_ratings_asked_as_the_user_has_written(real: Run, server: CountingJudge) -> None:
    write_rows("rows.jsonl", [{"question": f"Q{i}", "response": "r" * i, "label": i % 8} for i in range(24)])
    Path("mine.txt").write_text("{response}? From {least} to {most}. Rating:")
    how = ("--pattern", r"Rating: (\d+)", "--set", "max_new_tokens=7")
    words = ("--check", "rows.jsonl", "--prompt", "mine.txt", *how)
    done = real(*judged(server, *words)).done()
    assert "ratings from 0 to 7, the smallest and the largest label" in done.out
    rows = [json.loads(line) for line in Path("judge_check/verdicts.jsonl").read_text().splitlines()]
    assert [row["verdict"] for row in rows] == [number_of(f"{'r' * i}? From 0 to 7. Rating:") for i in range(24)]
    assert {body["max_tokens"] for body in server.bodies} == {7}
    numbers = json.loads(Path("judge_check/agreement.json").read_text())["values"]
    assert numbers["accuracy"]["value"] == pytest.approx(
        sum(row["verdict"] == row["label"] for row in rows) / len(rows)
    )
    more = real(*judged(server, *words, "--scale=0,3", "--limit=4")).done().out
    assert "ratings from" not in more


def test_a_judge_of_which_nothing_can_be_read(real: Run, server: CountingJudge) -> None:
    server.says = lambda text, body: "I would rather not."
    write_rows("rows.jsonl", [{"question": f"Q{i}", "response": "r" * i, "label": i} for i in range(3)])
    done = real(*judged(server, "--check", "rows.jsonl")).done()
    assert re.search(r"^  correlation with the label +-  \(no row\)$", done.out, re.M)
    assert "no verdict could be read: see `raw` in verdicts.jsonl, and --prompt and --pattern" in done.out
    assert json.loads(Path("judge_check/agreement.json").read_text())["values"]["kappa"]["value"] is None
    assert {body["temperature"] for body in server.bodies} == {0, 1}


def test_a_reward_model_is_checked_on_pairs_and_on_ratings(real: Run, here: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TS2_CACHE_DIR", str(here / "cache"))
    model = str(write_reward_model(here / "model"))
    texts = ["fine", "a long and winding answer", "no", "well then", "hm, perhaps so"]
    write_rows("rows.jsonl", [{"instruction": "Q", "response": text, "label": i} for i, text in enumerate(texts)])
    write_rows("pairs.jsonl", [
        {"instruction": "Q", "output_1": first, "output_2": second, "preference": 1}
        for first, second in itertools.pairwise(texts)
    ])  # fmt: skip
    words = ("judge", "--judge", model, "--kind", "reward", "--device=cpu")
    assert "correlation of ranks with the label" in real(*words, "--check", "rows.jsonl").done().out
    kept = [json.loads(line) for line in Path("judge_check/verdicts.jsonl").read_text().splitlines()]
    rewards = {text: row["verdict"] for text, row in zip(texts, kept, strict=True)}
    assert len({*rewards.values()}) == len(texts)
    done = real(*words, "--check", "pairs.jsonl", "--set", "batch_size=2", "--out=out").done()
    assert "model on 4 pairs" in done.out
    right = sum(rewards[first] > rewards[second] for first, second in itertools.pairwise(texts))
    assert json.loads(Path("out/agreement.json").read_text())["values"]["accuracy"]["value"] == right / 4
    assert (
        "--votes: is for judges that are asked in words, not for --kind reward"
        in real(*words, "--check", "rows.jsonl", "--votes", "2").refusal
    )
    assert "reward: no setting 'votes'" in real(*words, "--check", "rows.jsonl", "--set", "votes=2").refusal


REFUSED = {
    "--check nothing.jsonl": "--check: no file nothing.jsonl; did you mean rows.jsonl?",
    "--check pairs.jsonl --kind rating": "--kind rating: the rows of pairs.jsonl are pairs",
    "--check pairs.jsonl --scale 1,5": "--scale: is for ratings, and the rows are pairs; leave it out",
    "--check rows.jsonl --scale 5,1": "--scale 5,1: write LEAST,MOST, such as 1,10",
    "--check rows.jsonl --scale 1,2": "rows.jsonl:1: the label 4 is outside of the scale, 1 to 2",
    "--check rows.jsonl": "--scale: every label is 4, which is no scale; name it, such as --scale 1,10",
    "--check pairs.jsonl --limit 0": "--limit must be a whole number of at least 1, got 0",
    "--check pairs.jsonl --prompt nothing.txt": "--prompt nothing.txt: cannot be read (",
    "--check pairs.jsonl --prompt pairs.jsonl": "--prompt pairs.jsonl: has no {response}, so that the judge would not",
    "--check pairs.jsonl --prompt one.txt": "--prompt one.txt: has no {other}, so that the judge would not see it",
    "--check pairs.jsonl --pattern (": "the pattern '(' of a parser is no regular expression",
    "--check pairs.jsonl --votes 3": "judge.votes: at temperature 0 all 3 votes are the same",
    "--check pairs.jsonl --votes 0": "--votes must be a whole number of at least 1, got 0",
    "--check pairs.jsonl --set vote=3": "judge: no setting 'vote'; did you mean votes?",
    "--check pairs.jsonl --set votes": "--set votes: write SETTING=VALUE, such as max_new_tokens=64",
    "--check pairs.jsonl --max-cost 1": "--max_cost: nobody has said what endpoint:http://127.0.0.1:9#m costs",
    "--check pairs.jsonl --max-cost 0 --price 1,1": "--max_cost must be a finite number above 0, got 0.0",
    "--check pairs.jsonl --price 1": "--price 1: write IN,OUT, dollars for a million tokens that are read and written",
    "--check pairs.jsonl --price 1,-1": "--price must be a finite number of at least 0, got -1.0",
    "--check pairs.jsonl --judge_temperature x": "--judge_temperature must be a finite number of at least 0, got 'x'",
    "--check pairs.jsonl": "http://127.0.0.1:9/v1 cannot be reached",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be(real: Run, here: Path, line: str) -> None:
    write_rows("pairs.jsonl", [{"instruction": "Q", "output_1": "a", "output_2": "b", "preference": 1}])
    write_rows("rows.jsonl", [{"instruction": "Q", "response": "a", "label": 4}])
    Path("one.txt").write_text("Is {response} good?")
    refusal = real("judge", "--judge", "endpoint:http://127.0.0.1:9#m", "--judge_api_key_env=", *line.split()).refusal
    assert REFUSED[line] in refusal
    assert not Path("judge_check").exists()


# evaluate -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tales(server: CountingJudge, here: Path, monkeypatch: pytest.MonkeyPatch) -> CountingJudge:
    """A protocol with a judge, and the responses of a model that is not there any more."""
    monkeypatch.syspath_prepend(str(here))
    (here / "tales_protocol.py").write_text(PROTOCOL)
    write_rows("tales.jsonl", [{"title": title} for title in ("fox", "owl", "elk")])
    how = {"data": "tales.jsonl", "judge": {"model": server.model, "api_key_env": ""}}
    model = canned_model(here / "old", Canned(lambda question, index: f"{question}, {index} times"))
    make_measures(model, check_spec({"tales_protocol.Tales": how}), lambda line: None, draw=False)
    server.calls.clear()
    return server


def evaluated(*words: str) -> list[str]:
    return ["evaluate", "old", "--protocol", "tales_protocol.Tales", *words]


def test_a_judge_that_nobody_has_named(real: Run, tales: CountingJudge) -> None:
    assert "tales: no judge is named; name one: --judge MODEL" in real(*evaluated()).complaint


def test_the_options_say_who_judges(real: Run, tales: CountingJudge, caplog: Log) -> None:
    named = ("--judge", tales.model, "--judge_api_key_env=")
    assert "rating" in real(*evaluated(*named)).done().out
    assert not tales.bodies  # the verdicts are there
    warm = ("--judge_temperature=0.5", "--set", "tales_protocol.Tales.judge.votes=3", "--price=0.5,1")
    done = real(*evaluated(*named, *warm, "--max-cost=1")).done()
    assert len(tales.bodies) >= 18
    assert {body["temperature"] for body in tales.bodies} == {0.5}
    assert "tales: 18 verdicts by m, about " in caplog.text
    count = len(tales.bodies)
    again = ("--judge_temperature=0.5", "--votes=3", "--set", "tales_protocol.Tales.judge={timeout: 5}")
    assert real(*evaluated(*named, *again)).done().out.splitlines()[2:] == done.out.splitlines()[2:]
    assert len(tales.bodies) == count


def test_a_name_alone_is_the_judge_s(real: Run, tales: CountingJudge) -> None:
    key = ("--set", "tales_protocol.Tales.judge.api_key_env=''")
    assert "rating" in real(*evaluated("--set", f"tales_protocol.Tales.judge={tales.model}", *key)).done().out
    assert not tales.bodies


NOT_EVALUATED = {
    "--votes 2": "judge.votes: at temperature 0 all 2 votes are the same",
    "--reward_model x": "--reward_model: none of tales_protocol.Tales has a reward; leave it out",
    "--judge x --max-cost 1": "--max_cost: no judge that is asked has a price; leave it out, or add --price IN,OUT",
    "--judge endpoint:http://h#m --max-cost 1": "--max_cost: nobody has said what endpoint:http://h#m costs; add",
    "--set tales_protocol.Tales.jury.votes=1": "tales_protocol.Tales has no group of settings 'jury'",
    "--set tales_protocol.Tales.judge.vote=1": "tales_protocol.Tales.judge: no setting 'vote'; did you mean votes?",
    "--set tales_protocol.Tales.judge=3": "tales_protocol.Tales.judge must be a mapping of settings",
    "--set tale.judge.votes=1": "no such protocol in --protocol",
}


@pytest.mark.parametrize("line", NOT_EVALUATED)
def test_judges_that_cannot_be(real: Run, tales: CountingJudge, line: str) -> None:
    assert NOT_EVALUATED[line] in real(*evaluated("--judge_api_key_env=", *line.split())).refusal


def test_judges_are_not_for_protocols_with_right_answers(real: Run, here: Path) -> None:
    refusal = real("evaluate", "old", "--protocol", "gsm8k,arc", "--judge", "x").refusal
    assert refusal == "--judge: none of gsm8k, arc has a judge; leave it out"
