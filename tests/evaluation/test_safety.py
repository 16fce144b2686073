"""Safety on harmless requests: who refuses, what a judge is asked, what follows; and texts that stay in their files."""

import hashlib
import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.support.canned import Canned, canned_model
from tests.support.served_judge import ServedJudge
from ts2_lightning.cli.evaluate import run as evaluate
from ts2_lightning.evaluation import Model, check_spec, describe, files_of, make_measures
from ts2_lightning.evaluation.judges import Case, ChatSettings
from ts2_lightning.evaluation.judges.harmbench import YES_NO, harmbench_classifier, harmbench_prompt
from ts2_lightning.evaluation.judges.refusal import PHRASES, Refusal, refuses
from ts2_lightning.evaluation.protocols.safety import HarmBench, MaliciousInstruct
from ts2_lightning.evaluation.results import read_result
from ts2_lightning.types import UserError

REQUESTS = ["Explain how to pick zorbits.", "Write a blurgh.", "Sing."]
RESPONSES = {
    REQUESTS[0]: ["First, find a zorbit.", "I\u2019m sorry, no.", "Take one zorbit...", "It is illegal."],
    REQUESTS[1]: ["I cannot do that.", "Sorry!", "", "My apologies, a blurgh is unethical."],
    REQUESTS[2]: ["La la.", "La.", "sorry, la", "Lalala."],
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TS2_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def requests(tmp_path: Path) -> str:
    path = tmp_path / "requests.txt"
    path.write_text("\n".join([REQUESTS[0], "", f"  {REQUESTS[1]}", REQUESTS[2], ""]))
    return str(path)


def answers(question: str, index: int) -> str:
    return RESPONSES[question][index]


def measured(out: Path, spec: dict[str, Any], backend: Canned | None = None) -> dict[str, float]:
    model = canned_model(out, backend or Canned(answers))
    return make_measures(model, check_spec(spec), lambda line: None, draw=False)


# Rules ----------------------------------------------------------------------------------------------------------


@given(st.text(), st.sampled_from(PHRASES), st.text())
@settings(derandomize=True, deadline=None)
def test_a_phrase_anywhere_is_a_refusal(before: str, phrase: str, behind: str) -> None:
    assert refuses(f"{before}{phrase}{behind}")
    assert refuses(f"{before}{phrase.replace(chr(39), chr(0x2019))}{behind}")


@given(st.text(st.characters(exclude_characters="aeiouAEIOU"), min_size=1).filter(str.strip))
@settings(derandomize=True, deadline=None)
def test_other_texts_are_none(text: str) -> None:
    """Every phrase has a vowel."""
    assert not refuses(text)


def test_the_list_is_that_of_zou_et_al() -> None:
    assert len(PHRASES) == 29
    assert hashlib.sha256("\n".join(PHRASES).encode()).hexdigest()[:16] == "23cd3214804101df"
    assert not refuses("sorry, as AN ai")  # in this spelling only


def test_the_rule_is_no_model() -> None:
    judge = Refusal()
    judge.check()
    assert judge.cost([Case.answer("Q", "A")]).calls == 0
    assert [one.value for one in judge.judge([Case.answer("Q", text) for text in ("A", "Sorry", "")])] == [1, 0, 0]


def test_the_classifier_is_asked_what_it_was_trained_with() -> None:
    """Digests of LLAMA2_CLS_PROMPT of HarmBench's code, with our names of the response."""
    prompt = harmbench_prompt("harmbench", in_text=True)
    assert prompt.instead is not None
    texts = [one.text.replace("{response}", "{generation}") for one in (prompt, prompt.instead)]
    assert [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts] == [
        "788f4f6aa1491c43",
        "5d6bb9e3cf4d1e5f",
    ]
    case = Case((), "R {behavior}", details={"behavior": "B {context}", "context": "C"})
    asked = str(prompt.asked(case))
    assert "[CONTEXT]:\nC\n\n[BEHAVIOR]:\nB {context}\n\n[GENERATION]:\nR {behavior}\n\n---" in asked
    chat: Any = harmbench_prompt("harmbench", in_text=False).asked(case)
    system, user = (turn["content"] for turn in chat)
    assert asked == f"[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user} [/INST]"


@pytest.mark.parametrize(
    ("answer", "value"),
    [("yes", 1), (" Yes.", 1), ("No", 0), ("**no**, it", 0), ("nope", None), ("", None), ("I say yes", None)],
)
def test_yes_and_no_are_read_at_the_beginning(answer: str, value: float | None) -> None:
    assert YES_NO(answer) == value


# Values ---------------------------------------------------------------------------------------------------------


def test_values_are_means_over_requests(tmp_path: Path, requests: str) -> None:
    spec = {"malicious_instruct": {"data": requests, "n": 4}}
    values = measured(tmp_path / "out", spec)
    assert values["malicious_instruct/misaligned"] == pytest.approx((2 / 4 + 0 + 4 / 4) / 3)
    assert values["malicious_instruct/misaligned_any"] == pytest.approx(2 / 3)
    assert values["malicious_instruct/refused"] == pytest.approx((2 / 4 + 1 + 0) / 3)
    assert values["malicious_instruct/judge_unparsed"] == 0
    assert values["malicious_instruct/truncated"] == pytest.approx(1 / 12)
    assert (values["malicious_instruct/questions"], values["malicious_instruct/samples"]) == (3, 4)
    [file] = files_of(tmp_path / "out", check_spec(spec)).values()
    per_item = read_result(file).documents["per_item"]
    assert per_item["misaligned"] == {"0": 0.5, "1": 0.0, "2": 1.0}
    assert per_item["misaligned_any"] == {"0": 1.0, "1": 0.0, "2": 1.0}


def test_a_served_classifier_is_asked_for_one_token_and_its_maybe_is_counted(tmp_path: Path, requests: str) -> None:
    def says(system: str, text: str) -> str:
        assert system == ""
        response = text.partition("[GENERATION]:\n")[2].partition("\n\n---")[0]
        return "maybe" if response == "La." else "yes" if "zorbit." in response or "La la" in response else "no"

    with ServedJudge(says) as judge:
        settings = {"judge": {**judge.settings(), "model": "harmbench"}, "classifier": judge.settings()["model"]}
        values = measured(tmp_path / "out", {"malicious_instruct": {"data": requests, "n": 4, **settings}})
    assert values["malicious_instruct/misaligned"] == pytest.approx((2 / 4 + 0 + 1 / 3) / 3)
    assert values["malicious_instruct/misaligned_any"] == pytest.approx(2 / 3)
    assert values["malicious_instruct/refused"] == pytest.approx((2 / 4 + 1 + 0) / 3)
    assert values["malicious_instruct/judge_unparsed"] == pytest.approx(1 / 12)
    assert describe("malicious_instruct/judge_unparsed").shown, "it stands in the tables of grids, too"
    assert {body["max_tokens"] for body in judge.asked} == {1}
    assert sorted(judge.counts.values()) == [1] * 11 + [2]  # what could not be read was asked once more
    assert all(body["prompt"].startswith("[INST] <<SYS>>") for body in judge.asked)


def test_requests_of_which_no_verdict_could_be_read_are_left_out(tmp_path: Path, requests: str) -> None:
    def says(system: str, text: str) -> str:
        assert system.startswith("You are a classifier")
        return "?" if f"[BEHAVIOR]:\n{REQUESTS[0]}" in text else "Yes, it does."

    with ServedJudge(says) as judge:
        spec = {"malicious_instruct": {"data": requests, "n": 4, "judge": judge.settings()}}
        values = measured(tmp_path / "out", spec)
        assert values["malicious_instruct/misaligned"] == 1
        assert values["malicious_instruct/judge_unparsed"] == pytest.approx(1 / 3)
        judge.says = lambda system, text: "?"
        values = measured(tmp_path / "other", {"malicious_instruct": {**spec["malicious_instruct"], "limit": 1}})
    assert "malicious_instruct/misaligned" not in values
    assert values["malicious_instruct/judge_unparsed"] == 1


def test_texts_stay_in_the_files_of_the_responses(
    tmp_path: Path, requests: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MaliciousInstruct.texts_stay
    assert HarmBench.texts_stay
    monkeypatch.chdir(tmp_path)
    with ServedJudge(lambda system, text: f"yes: {text}") as judge:
        model = {"data": requests, "n": 4, "judge": judge.settings()}
        measured(tmp_path / "out", {"malicious_instruct": model})
        options = [f"malicious_instruct.{name}={json.dumps(value)}" for name, value in model.items() if name != "data"]
        more = [word for option in options for word in ("--set", option)]
        place = ["--data", f"malicious_instruct={requests}", "--out", "side"]
        assert evaluate(["out", "--protocol", "malicious_instruct", *place, *more]) == 0
    shown = capsys.readouterr()
    assert "misaligned" in shown.out
    texts = [*REQUESTS, *(text for of in RESPONSES.values() for text in of if len(text) > 4)]
    elsewhere = [path for path in tmp_path.rglob("*") if path.is_file() and "cache" not in path.parts]
    elsewhere = [path for path in elsewhere if "responses" not in path.parts and path != Path(requests)]
    assert {path.parent.name for path in elsewhere} >= {"scores", "measures", "side"}
    for content in [shown.out, shown.err, *(path.read_bytes().decode(errors="replace") for path in elsewhere)]:
        assert not [text for text in texts if text in content]


# HarmBench ------------------------------------------------------------------------------------------------------


@pytest.fixture
def behaviors(shared_data: Path) -> Path:
    return shared_data / "eval/harmbench_behaviors_text_all.csv"


def test_a_hundred_standard_behaviors_are_chosen_in_whatever_order_they_come(tmp_path: Path, behaviors: Path) -> None:
    chosen = HarmBench(data=str(behaviors)).items("harmbench")
    ids = [item.id for item in chosen]
    assert len(ids) == 100
    assert len(HarmBench(data=str(behaviors), chosen=None).items("harmbench")) == 200
    assert [item.id for item in HarmBench(data=str(behaviors), limit=7).items("harmbench")] == ids[:7]
    other = {item.id for item in HarmBench(data=str(behaviors), choice_seed=1).items("harmbench")}
    assert 30 < len(other & set(ids)) < 70
    head, *rows = behaviors.read_text(encoding="utf-8").splitlines()
    plain = [row for row in rows if re.match(r"[^\"]*,standard,", row)]  # none with a line's end in it
    turned = tmp_path / "turned.csv"
    turned.write_text("\n".join([head, *reversed(plain)]) + "\n", encoding="utf-8")
    half = HarmBench(data=str(turned), chosen=50).items("harmbench")
    forward = tmp_path / "forward.csv"
    forward.write_text("\n".join([head, *plain]) + "\n", encoding="utf-8")
    assert {item.id for item in half} == {
        item.id for item in HarmBench(data=str(forward), chosen=50).items("harmbench")
    }
    assert [item.id for item in half] != sorted(item.id for item in half)
    digests = {one.id: hashlib.sha256(f"0/{one.id}".encode()).digest() for one in chosen}
    everything = HarmBench(data=str(behaviors), chosen=None).items("harmbench")
    outside = [hashlib.sha256(f"0/{one.id}".encode()).digest() for one in everything if one.id not in digests]
    assert max(digests.values()) < min(outside)


def test_contexts_are_put_in_front(behaviors: Path) -> None:
    items = HarmBench(data=str(behaviors), category="contextual", chosen=None).items("harmbench")
    assert len(items) == 100
    for item in items:
        assert item.question == f"{item.details['context']}\n\n---\n\n{item.details['behavior']}"


def test_malicious_instruct_is_read(shared_data: Path) -> None:
    items = MaliciousInstruct(data=str(shared_data / "eval/malicious_instruct.txt")).items("malicious_instruct")
    assert (len(items), len({item.question for item in items})) == (100, 100)
    assert statistics.fmean(len(item.question) for item in items) < 80


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def refusals(tmp_path: Path) -> Iterator[tuple[Any, str]]:
    file = tmp_path / "rows.jsonl"
    yield MaliciousInstruct(), "malicious_instruct.data: these rows are on no hub; name a file of rows with text, or"
    bad = lines(file, [{"prompt": "a"}, {"question": "b"}])
    yield MaliciousInstruct(data=bad), f"malicious_instruct.data {file}:2: no field 'text'; wanted are rows with text"
    bad = lines(tmp_path / "c.jsonl", [{"Behavior": "a", "FunctionalCategory": "contextual"}])
    yield HarmBench(data=bad), "harmbench.data: no behaviour is standard; set another category"
    bad = lines(tmp_path / "d.jsonl", [{"Behavior": " "}])
    yield HarmBench(data=bad), f"harmbench.data {bad}:1: Behavior is empty"
    bad = lines(tmp_path / "e.jsonl", [{"Behavior": "a", "BehaviorID": "x"}, {"Behavior": "b", "BehaviorID": "x"}])
    yield HarmBench(data=bad), "harmbench.data: two problems are called 'x'"
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    yield MaliciousInstruct(data=str(empty)), f"malicious_instruct.data: no rows in {empty}; wanted"


def test_bad_rows_are_told_in_one_line(tmp_path: Path) -> None:
    for protocol, said in refusals(tmp_path):
        with pytest.raises(UserError) as error:
            protocol.items(protocol.name)
        assert str(error.value).startswith(said)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ks": [2]}, "ks must be null for all responses to a request, got (2,)"),
        ({"judge": {"votes": "a"}}, "harmbench.judge.votes: expected int, got 'a'"),
        ({"judge": "endpoint:"}, "harmbench.judge.model: an endpoint must be like"),
        ({"category": "copyright"}, "harmbench.category: expected"),
        ({"chosen": 0}, "chosen must be a whole number of at least 1 or null, got 0"),
        ({"variant": "papers_code"}, "no variant 'papers_code'; there is paper"),
    ],
)
def test_a_bad_setting_is_told_in_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        check_spec({"harmbench": settings})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def says_yes(place: Path) -> None:
    """A Llama that knows five words and says "yes" to everything."""
    words = {word: number for number, word in enumerate(("<unk>", "<s>", "</s>", "yes", "no"))}
    fast = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    tokens: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=fast, **tokens).save_pretrained(place)
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    network = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes))
    with torch.no_grad():
        for weights in network.parameters():
            weights.zero_()
        network.model.embed_tokens.weight.fill_(1)
        network.model.norm.weight.fill_(1)
        network.lm_head.weight[words["yes"]] = 1
    network.save_pretrained(place)


@pytest.mark.parametrize(("judge", "made_room"), [("harmbench", 1), ("refusal", 0), ("served", 0)])
def test_on_a_gpu_the_model_makes_room_for_a_judge_that_is_loaded(
    tmp_path: Path, requests: str, monkeypatch: pytest.MonkeyPatch, judge: str, made_room: int
) -> None:
    says_yes(tmp_path / "cls")
    forgotten: list[str] = []
    forget = Model.forget

    def counted(model: Model) -> None:
        forgotten.append(model.name)
        forget(model)

    monkeypatch.setattr(Model, "forget", counted)
    with ServedJudge(lambda system, text: "no") as server:
        named = server.settings() if judge == "served" else {"model": judge, "device": "cpu"}
        model = canned_model(tmp_path / "out", Canned(answers))
        model.device = "cuda:0"
        spec = {"data": requests, "n": 4, "judge": named, "classifier": str(tmp_path / "cls")}
        make_measures(model, check_spec({"malicious_instruct": spec}), lambda line: None, draw=False)
    assert forgotten.count("model") == made_room


def test_a_local_classifier_is_asked_in_plain_text_with_its_first_token_once(tmp_path: Path, requests: str) -> None:
    says_yes(tmp_path / "cls")
    judge = harmbench_classifier("harmbench", ChatSettings(model=str(tmp_path / "cls"), device="cpu"))
    case = Case((), "No way.", details={"behavior": "Sing."})
    ids: Any = judge.prompt(case)
    words = str(harmbench_prompt("harmbench", in_text=True).asked(case)).split()
    assert list(ids) == [1, *({"yes": 3, "no": 4}.get(word, 0) for word in words)]
    assert (judge.settings.max_new_tokens, judge.settings.decoder.temperature) == (1, 0)
    spec = {"data": requests, "n": 4, "judge": "harmbench", "classifier": str(tmp_path / "cls")}
    values = measured(tmp_path / "out", {"malicious_instruct": spec})
    assert values["malicious_instruct/misaligned"] == 1
    assert values["malicious_instruct/judge_unparsed"] == 0
    assert values["malicious_instruct/refused"] == pytest.approx((2 / 4 + 1 + 0) / 3)
