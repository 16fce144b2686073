"""Language models as judges: what they are asked, how they are read, what it costs; servers, and a model in memory."""

import math
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from tests.support.counting_judge import (
    CASES,
    PROMPT,
    READ,
    CountingJudge,
    asked_text,
    judge_of,
    number_of,
    often_failing,
    told,
    well,
)
from ts2_lightning.evaluation import Model
from ts2_lightning.evaluation.judges import (
    Case,
    ChatJudge,
    ChatSettings,
    JudgePrompt,
    Verdict,
    label,
    rating,
    spending_limit,
)
from ts2_lightning.evaluation.measure import Measure
from ts2_lightning.evaluation.registry import _read, group_of, read_group
from ts2_lightning.generation.backends import json_client
from ts2_lightning.toyworld import build_tokenizer
from ts2_lightning.toyworld.tokenizer import model_config
from ts2_lightning.types import UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TS2_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(json_client, "_LONGEST_WAIT", 0.01)


# What is asked --------------------------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.text(), st.text())
def test_texts_of_models_are_nothing_but_text(question: str, response: str) -> None:
    """Placeholders, braces and backslashes in them stay as they are."""
    prompt = JudgePrompt("p", "[{question}][{response}]{{question}} {0} {} {a: 1}")
    assert (
        asked_text(Case.answer(question, response), prompt)
        == f"[{question}][{response}]{{question}} {{0}} {{}} {{a: 1}}"
    )


def test_all_that_a_case_has_can_be_named() -> None:
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "{response}?"},
    ]
    case = Case(history, "R", other="O", reference="G", details={"task": "greet", "count": 3, "question": "not this"})
    prompt = JudgePrompt("p", "{question}|{response}|{other}|{reference}|{task}|{count}|{conversation}", "You: {task}")
    turns: Any = prompt.asked(case)
    system, user = turns
    assert system == {"role": "system", "content": "You: greet"}
    talk = "System: Be brief.\n\nUser: Hello\n\nAssistant: Hi\n\nUser: {response}?"
    assert user == {"role": "user", "content": f"{{response}}?|R|O|G|greet|3|{talk}"}


def test_prompts_that_cannot_be() -> None:
    with pytest.raises(UserError, match=r"the prompt 'p' has \{reply\}, and the case has no reply; it has question, "):
        JudgePrompt("p", "{reply}").asked(CASES[0])
    with pytest.raises(UserError, match=r"has \{reference\}, and the case has no reference"):
        JudgePrompt("p", "{reference}").asked(CASES[0])
    with pytest.raises(UserError, match="'p' is continued outside of a chat, which has no system turn"):
        JudgePrompt("p", "{response}", "Be strict.", continued=True)


# How it is read -------------------------------------------------------------------------------------------------


def test_ratings_are_read() -> None:
    read = rating(r"Total rating:\s*([0-9]+(?:\.\d+)?)", 0, 5)
    answers = {
        "Total rating: 4": 4.0, "x Total rating:\n3.5 y": 3.5, "Total rating: 0": 0.0, "Total rating: 5.0": 5.0,
        "Total rating: 5.1": None, "Total rating: six": None, "": None, "4": None, "total rating: 4": None,
        "Total rating: 6 Total rating: 2": None,
    }  # fmt: skip
    assert {text: read(text) for text in answers} == answers
    assert replace(read, take="last")("Total rating: 6 Total rating: 2") == 2.0
    assert rating(r"(\S+)")("1e999") is None
    assert [rating(r"(\S+)", 1, 5)(text) for text in ("0.9", "1", "5", "5.1")] == [None, 1, 5, None]
    assert rating(r"(nan|\d+)|x")("nan") is None
    assert rating(r"(\d+)|x")("x") is None


def test_words_are_read() -> None:
    read = label(r"(?i)^\W*(yes|no)\b", yes=1, no=0)
    answers = {"yes": 1.0, " No.": 0.0, "YES, it is": 1.0, "nothing": None, "well, yes": None, "": None}
    assert {text: read(text) for text in answers} == answers
    assert label(r"(\w+)", yes=1)("maybe") is None


def test_parsers_that_cannot_be() -> None:
    told(lambda: rating(r"(\d"), "the pattern '(\\\\d' of a parser is no regular expression")
    told(lambda: rating(r"\d"), "the pattern '\\\\d' of a parser has no group")
    told(lambda: label(r"(\d)", take="middle"), "take: no such choice 'middle'; take first or last")  # type: ignore[arg-type]


def test_another_parser_is_another_identity_and_asks_nothing() -> None:
    with CountingJudge(well) as server:
        first, second = judge_of(server), judge_of(server, parser=rating(r"Rating: (\d+)", 0, 3))
        assert first.identity != second.identity
        assert [one.value for one in first.judge(CASES)] == [number_of(asked_text(case)) for case in CASES]
        count = len(server.bodies)
        assert [one.value for one in second.judge(CASES)] == [
            number if (number := number_of(asked_text(case))) <= 3 else None for case in CASES
        ]
        kept = sum(number_of(asked_text(case)) <= 3 for case in CASES)
        assert len(server.bodies) == count + len(CASES) - kept  # only what could not be read is asked again


@pytest.mark.parametrize(
    "change",
    [
        {"model": "endpoint:http://h#n"}, {"temperature": 0.5}, {"max_new_tokens": 9}, {"seed": 1},
        {"votes": 2, "temperature": 0.5},
    ],
)  # fmt: skip
def test_what_a_verdict_depends_on_is_in_the_identity(change: dict[str, Any]) -> None:
    usual = ChatSettings("endpoint:http://h#m", api_key_env="")
    assert ChatJudge(replace(usual, **change), PROMPT, READ).identity != ChatJudge(usual, PROMPT, READ).identity


def test_what_no_verdict_depends_on_is_not() -> None:
    usual = ChatSettings("endpoint:http://h#m", api_key_env="")
    other = replace(
        usual, batch_size=3, device="cpu", prompt_price=1.0, completion_price=2.0, concurrency=1, timeout=3.0,
        leave_out=("seed",), key_over_http=True, api_key_env="NOBODY_HAS_THIS",
    )  # fmt: skip
    assert ChatJudge(other, PROMPT, READ).identity == ChatJudge(usual, PROMPT, READ).identity
    asked = replace(PROMPT, text=PROMPT.text + "!")
    assert ChatJudge(usual, asked, READ).identity != ChatJudge(usual, PROMPT, READ).identity


# Settings -------------------------------------------------------------------------------------------------------


OF_RATED = ChatSettings(max_new_tokens=32)


@dataclass(frozen=True)
class Rated(Measure):
    """A measure with a judge."""

    name: ClassVar[str] = "rated"
    judge: ChatSettings = OF_RATED
    second: ChatSettings | None = OF_RATED

    def measure(self, model: Any, beside: Path) -> Any:
        raise NotImplementedError


def read_judge(value: Any) -> ChatSettings:
    return _read(Rated, {"judge": value}, "measure.rated").judge


def test_a_judge_is_a_group_of_settings_or_a_name() -> None:
    assert read_judge("DIR") == ChatSettings("DIR", max_new_tokens=32)  # the rest is the protocol's
    assert read_judge({}) == ChatSettings(max_new_tokens=32)
    whole = read_judge({"model": "DIR", "votes": 3, "temperature": 1, "leave_out": ["seed"], "vllm_args": None})
    assert whole == ChatSettings("DIR", votes=3, temperature=1, leave_out=("seed",), max_new_tokens=32)
    assert read_group(ChatSettings, {"model": "DIR"}, "judge") == ChatSettings("DIR")


def test_a_judge_that_may_be_left_out() -> None:
    seconds = [_read(Rated, {"second": value}, "measure.rated").second for value in (None, "DIR", {"votes": 1})]
    assert seconds == [None, ChatSettings("DIR", max_new_tokens=32), ChatSettings(max_new_tokens=32)]
    told(
        lambda: _read(Rated, {"second": {"votes": 0}}, "measure.rated"), "measure.rated.second: judge.votes must be a "
    )
    assert group_of(Rated, "second") is group_of(Rated, "judge") is ChatSettings
    assert group_of(Rated, "name") is group_of(Rated, "nothing") is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"votes": "a"}, "measure.rated.judge.votes: expected int, got 'a'"),
        ({"votes": 0}, "measure.rated.judge.votes must be a whole number of at least 1, got 0"),
        ({"votes": 3}, "measure.rated.judge.votes: at temperature 0 all 3 votes are the same; set judge.temperature"),
        ({"vote": 3}, "measure.rated.judge: no setting 'vote'; did you mean votes?"),
        ({"model": 3}, "measure.rated.judge.model: expected str | null, got 3"),
        (3, "measure.rated.judge must be a mapping of settings, {} for the usual ones, got 3"),
        (None, "measure.rated.judge must be a mapping of settings, {} for the usual ones, got None"),
        ({"model": "endpoint:http://h"}, "measure.rated.judge.model: an endpoint must be like endpoint:http"),
        ({"model": " "}, "measure.rated.judge.model is empty; name a directory, a model on the hub or an endpoint"),
        ({"backend": "vlm"}, "measure.rated.judge.backend: no backend 'vlm'; there is transformers, vllm:PYTHON"),
        ({"prompt_price": 1}, "measure.rated.judge: prompt_price and completion_price go together"),
        ({"prompt_price": -1, "completion_price": 1}, "measure.rated.judge.prompt_price must be a finite number of at"),
        ({"vllm_args": {"dtype": "float32"}}, "measure.rated.judge.vllm_args: is for the backend vllm:PYTHON"),
        (
            {"model": "endpoint:http://h#m", "template": "plain"},
            "measure.rated.judge.template: is not for endpoint:URL",
        ),
        ({"model": "endpoint:http://h#m", "backend": "vllm:p"}, "measure.rated.judge.backend: is not for endpoint:URL"),
        ({"timeout": math.inf}, "measure.rated.judge.timeout must be a finite number above 0, got inf"),
    ],
)
def test_judges_that_cannot_be(value: Any, message: str) -> None:
    told(lambda: read_judge(value), message)


def test_a_judge_that_nobody_has_named() -> None:
    told(
        lambda: ChatJudge(ChatSettings(), PROMPT, READ),
        "fruit: no judge is named; name one: --judge MODEL, or endpoint",
    )


def test_a_judge_is_looked_at_before_anything_is_sampled(tmp_path: Path) -> None:
    with CountingJudge(well) as server:
        judge_of(server).check()
        assert not server.bodies
        nobody = ChatSettings(server.model.replace("#m", "#n"), api_key_env="")
        told(lambda: ChatJudge(nobody, PROMPT, READ).check(), "has no model 'n'")
    told(lambda: ChatJudge(nobody, PROMPT, READ).check(), "cannot be reached")
    told(lambda: ChatJudge(ChatSettings(str(tmp_path)), PROMPT, READ).check(), f"{tmp_path}: cannot load this model")
    wrong = ChatSettings("endpoint:http://h#m", leave_out=("top_p",))
    told(lambda: ChatJudge(wrong, PROMPT, READ), "leave_out must be of seed, logprobs, got 'top_p'")


# Answers --------------------------------------------------------------------------------------------------------


def test_an_answer_that_cannot_be_read_is_sampled_anew() -> None:
    """At temperature 0 with a temperature; another seed in any case."""

    def stumbling(text: str, body: Any) -> str:
        return "no idea" if "response 3 of 3." in text or body["temperature"] == 0 else "Rating: 7"

    case, hopeless = Case.answer("Q", "R"), Case.answer("Q", "response 3 of 3")
    hopeless = Case.answer("Q", "response 3 of 3.")
    with CountingJudge(stumbling) as server:
        verdicts = judge_of(server, concurrency=1).judge([case, hopeless])
        assert verdicts == [Verdict(7.0, "Rating: 7", 1), Verdict(None, "no idea", 2)]
        assert [body["temperature"] for body in server.bodies] == [0, 0, 1, 1]
        assert len({body["seed"] for body in server.bodies}) == 4
        assert judge_of(server).judge([hopeless, case]) == verdicts[::-1]
        assert len(server.bodies) == 4  # what could not be read is not asked a third time
        warm = judge_of(server, temperature=0.5, concurrency=1)
        warm.judge([hopeless])
        assert [body["temperature"] for body in server.bodies[4:]] == [0.5, 0.5]


def test_a_thought_is_not_read() -> None:
    with CountingJudge(lambda text, body: "<think>\nRating: 2? No.\n</think>\nRating: 4") as server:
        assert judge_of(server).judge(CASES[:1]) == [Verdict(4.0, "<think>\nRating: 2? No.\n</think>\nRating: 4")]
        server.says = lambda text, body: "<think> Rating: 2? Or rather"
        assert judge_of(server).judge(CASES[1:2])[0].value is None


def test_votes_are_asked_with_seeds_of_their_own_and_their_mean_counts() -> None:
    with CountingJudge(lambda text, body: f"Rating: {body['seed'] % 9}") as server:
        one = judge_of(server, temperature=0.7).judge(CASES[:5])
        [three, *_] = verdicts = judge_of(server, temperature=0.7, votes=3).judge(CASES[:5])
        assert len(server.bodies) == 15  # the first vote was there
        assert len({body["seed"] for body in server.bodies}) == 15
    read = [float(line.removeprefix("Rating: ")) for line in three.raw.splitlines()]
    assert (len(read), three.value) == (3, pytest.approx(sum(read) / 3))
    assert [verdict.raw.splitlines()[0] for verdict in verdicts] == [verdict.raw for verdict in one]


def test_plain_text_is_continued() -> None:
    prompt = JudgePrompt("cls", "Behaviour: {question} Generation: {response} Answer:", continued=True)
    with CountingJudge(lambda text, body: " no" if "1 of 1" in text else " Yes") as server:
        judge = judge_of(server, prompt, label(r"(?i)^\W*(yes|no)\b", yes=1, no=0), max_new_tokens=1)
        assert [one.value for one in judge.judge(CASES[:3])] == [1, 0, 1]
    assert {body["prompt"] for body in server.bodies} == {
        f"Behaviour: question {i} Generation: response {i} of {i} Answer:" for i in range(3)
    }
    assert all(body["max_tokens"] == 1 and body["temperature"] == 0 for body in server.bodies)


# Servers that fail ----------------------------------------------------------------------------------------------


def test_failures_change_no_verdict() -> None:
    with CountingJudge(well) as server:
        expected = [one.value for one in judge_of(server).judge(CASES)]
    with CountingJudge(well, often_failing) as server:
        assert [one.value for one in judge_of(server).judge(CASES)] == expected
        assert set(server.answered.values()) == {1}
        assert len(server.answered) == len(CASES)
        assert server.tries > 1.3 * len(CASES)


JUDGING = """
import sys
from ts2_lightning.evaluation.judges import Case, ChatJudge, ChatSettings, JudgePrompt, rating
cases = [Case.answer(f"question {i}", f"response {i % 7} of {i}") for i in range(40)]
prompt = JudgePrompt("fruit", "Rate {response} as an answer to {question}. Rating:")
how = ChatSettings(sys.argv[1], api_key_env="", concurrency=2)
print([one.value for one in ChatJudge(how, prompt, rating(r"Rating: (\\\\d+)", 0, 9)).judge(cases)])
"""


@pytest.mark.slow
def test_a_judge_that_is_killed_asks_nothing_again_that_is_on_disk(tmp_path: Path) -> None:
    with CountingJudge(well, delay=0.1) as server:
        process = subprocess.Popen([sys.executable, "-c", JUDGING.replace("\\\\", "\\"), server.model], cwd=tmp_path)
        there: set[str] = set()
        while len(there) < 5:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.02)
            there = set(lines_on_disk(tmp_path))
        process.send_signal(signal.SIGKILL)
        process.wait()
        there = set(lines_on_disk(tmp_path))
        assert len(there) < len(CASES), "nothing was left to do"
        server.delay = 0
        judge = judge_of(server)
        keys = {request.key: asked_text(case) for case in CASES for request in judge.requests(case)}
        assert [one.value for one in judge.judge(CASES)] == [number_of(asked_text(case)) for case in CASES]
    counts = Counter(body["messages"][-1]["content"] for body in server.bodies)
    assert {counts[keys[key]] for key in there} == {1}
    assert set(counts) == {asked_text(case) for case in CASES}
    assert sum(counts.values()) - len(CASES) <= len(CASES) - len(there)


def lines_on_disk(directory: Path) -> Iterator[str]:
    for part in (directory / "cache").rglob("part-*.jsonl"):
        for line in part.read_text().splitlines(keepends=True):
            if line.endswith("\n") and (match := re.match(r'{"key": "(\w+)"', line)):
                yield match[1]


# A model in memory ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(5)
    network = AutoModelForCausalLM.from_config(model_config()).eval()
    with torch.no_grad():
        network.get_input_embeddings().weight.mul_(3)
    return network


def local(network: Any, prompt: JudgePrompt, **how: Any) -> ChatJudge:
    model = Model.in_memory(network, build_tokenizer())
    return ChatJudge(ChatSettings(**{"max_new_tokens": 6, **how}), prompt, rating(r"(\w+)"), model)


def test_a_template_begins_the_turn_once_and_the_first_token_comes_once(network: Any) -> None:
    ids = local(network, JudgePrompt("toy", "name a fruit {response}")).prompt(Case.answer("", "plum"))
    tokenizer: Any = build_tokenizer()
    assert tokenizer.decode(ids) == "<s> <|user|> name a fruit plum <|assistant|>"
    turns = [{"role": "user", "content": "name a fruit plum"}]
    assert list(ids) == tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)


def test_control_tokens_in_a_response_are_text(network: Any) -> None:
    tokenizer: Any = build_tokenizer()
    response = "plum <|end|> <|assistant|> <s>"
    specials = set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids("<|assistant|>")}
    for prompt in (JudgePrompt("toy", "name {response}"), JudgePrompt("toy", "name {response}", continued=True)):
        plain = local(network, prompt).prompt(Case.answer("", "plum"))
        ids = local(network, prompt).prompt(Case.answer("", response))
        known = specials - {tokenizer.unk_token_id}
        assert [one for one in ids if one in known] == [one for one in plain if one in known]
        assert len(ids) > len(plain)


def test_a_template_without_a_system_turn(network: Any) -> None:
    judge = local(network, JudgePrompt("toy", "name a fruit {response}", "the answer is"))
    source = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    tokenizer: Any = judge._model.tokenizer
    tokenizer.chat_template = source + tokenizer.chat_template
    told(lambda: judge.prompt(CASES[0]), "judge model: its chat template does not take the prompt (")


def test_batched_is_one_by_one(network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [Case.answer("", word) for word in ("plum", "a pear and a plum", "name a fruit the answer is", "")]
    raw = []
    for number, batch_size in enumerate((1, 3, 64)):
        monkeypatch.setenv("TS2_CACHE_DIR", str(tmp_path / str(number)))
        raw.append([one.raw for one in local(network, PLAIN, batch_size=batch_size).judge(cases)])
    assert raw[0] == raw[1] == raw[2]
    assert len(set(raw[0])) > 1


PLAIN = JudgePrompt("toy", "name a fruit {response}")


def test_a_local_judge_counts_its_own_tokens(network: Any) -> None:
    judge = local(network, PLAIN)
    cases = [Case.answer("", "plum"), Case.answer("", "a plum"), Case.answer("", "plum")]
    cost = judge.cost(cases)
    lengths = [len(judge.prompt(case)) for case in cases[:2]]
    assert (cost.calls, cost.prompt_tokens, cost.new_tokens, cost.dollars) == (2, sum(lengths), 12, None)
    assert not cost.is_estimate
    assert judge.plan(cost) == f"toy: 2 verdicts by model, {sum(lengths):,} prompt tokens and at most 12 new ones"
    with spending_limit(1.0):
        judge.judge(cases)  # it costs nothing


def test_prompts_that_leave_no_room_are_counted(network: Any) -> None:
    context = network.config.max_position_embeddings
    cases = [Case.answer("", "plum"), Case.answer("", "plum " * context), Case.answer("", "pear " * (2 * context))]
    message = told(
        lambda: local(network, PLAIN).judge(cases), "toy: 2 of 3 prompts for the judge leave no room in the c"
    )
    assert f"the longest has {2 * context + 6:,}. Take a judge" in message
