"""What reward models and the classifier of pairs are asked, to the token; and the rules that need no model."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.support.errors import refused
from tests.support.judges import LLAMA_3, edit_json, write_reward_model
from ts2_lightning.evaluation.judges import (
    Case,
    Equivalence,
    EquivalenceSettings,
    RewardModel,
    RewardSettings,
    Unigram,
    Verdict,
    make_equivalence,
)
from ts2_lightning.evaluation.judges.equivalence import rouge_1, same_words
from ts2_lightning.evaluation.judges.reward import SAID

pytestmark = pytest.mark.usefixtures("judge_cache")
CASE = Case.answer("Name a fruit.", "A plum.\n")
CHAT = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nName a fruit.<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA plum.<|eot_id|>"
)
HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n"
FEW = settings(derandomize=True, deadline=None, max_examples=60)


def decoded(judge: Any, case: Case) -> str:
    text: str = judge.tokenizer.decode(judge.prompt(case))
    return text


# Reward models --------------------------------------------------------------------------------------------------


def test_the_models_format_is_the_chat_with_one_token_that_begins_it(reward_dir: Path) -> None:
    judge = RewardModel(RewardSettings(str(reward_dir)))
    assert decoded(judge, CASE) == CHAT
    tokenizer: Any = AutoTokenizer.from_pretrained(reward_dir)
    turns = [*CASE.messages, {"role": "assistant", "content": CASE.response}]
    assert list(judge.prompt(CASE)) == list(tokenizer.apply_chat_template(turns, return_dict=False))
    # RLHFlow's documented way: the template's text without what begins it, which the tokenizer adds again.
    text = tokenizer.apply_chat_template(turns, tokenize=False).replace(tokenizer.bos_token, "")
    assert list(judge.prompt(CASE)) == tokenizer(text)["input_ids"]


def test_what_begins_a_text_comes_once_whoever_writes_it(tmp_path: Path) -> None:
    plain = write_reward_model(tmp_path / "plain", template=LLAMA_3.replace("{{ bos_token }}", ""))
    assert decoded(RewardModel(RewardSettings(str(plain))), CASE) == CHAT
    tokenizer = plain / "tokenizer.json"
    edit_json(tokenizer, post_processor={"type": "Sequence", "processors": []})
    assert decoded(RewardModel(RewardSettings(str(plain))), CASE) == CHAT.removeprefix("<|begin_of_text|>")


def test_the_papers_codes_format_ends_with_a_header_and_has_the_whole_prompt(reward_dir: Path) -> None:
    judge = RewardModel(RewardSettings(str(reward_dir), "papers_code"))
    assert decoded(judge, CASE) == CHAT + HEADER  # of an answer out of a file
    said = Case(CASE.messages, CASE.response, details={SAID: "system\n\nToday.Name a fruit."})
    assert decoded(judge, said) == CHAT.replace("Name", "system\n\nToday.Name") + HEADER
    model = AutoModelForSequenceClassification.from_pretrained(reward_dir).eval()
    hidden = model.model(input_ids=torch.tensor([judge.prompt(said)])).last_hidden_state
    [verdict] = judge.judge([said])
    assert verdict.value == pytest.approx(model.score(hidden)[0, -1, 0].item(), abs=1e-5)  # behind the header
    [plain] = RewardModel(RewardSettings(str(reward_dir))).judge([said])
    assert plain.value != pytest.approx(verdict.value, abs=1e-3)


def test_several_turns_are_shown(reward_dir: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, *CASE.messages]
    text = decoded(RewardModel(RewardSettings(str(reward_dir))), Case(turns, CASE.response))
    assert text.count("<|start_header_id|>") == 4
    assert text.count("<|begin_of_text|>") == 1


def test_verdicts_are_kept_under_what_they_depend_on(reward_dir: Path, tmp_path: Path) -> None:
    def identity(**changes: Any) -> Any:
        return RewardModel(RewardSettings(str(reward_dir), **changes)).identity

    assert identity() == identity(device="cpu", batch_size=3) == identity(format="model")
    assert identity() != identity(format="papers_code")
    assert identity() != identity(max_tokens=8)
    moved = Path(shutil.copytree(reward_dir, tmp_path / "moved"))  # with the times of its files
    assert RewardModel(RewardSettings(str(moved))).identity == identity()
    edit_json(moved / "config.json", pad_token_id=3)
    assert RewardModel(RewardSettings(str(moved))).identity != identity()


def test_a_reward_model_without_a_template_is_refused(tmp_path: Path) -> None:
    bare = write_reward_model(tmp_path / "bare", template=None)
    with refused("bare: its tokenizer has no chat template, in which it is asked"):
        RewardModel(RewardSettings(str(bare))).check()
    failing = write_reward_model(tmp_path / "failing", template="{{ raise_exception('no users here') }}")
    with refused(r"failing: its chat template fails on turns of user, assistant \(no users here\)"):
        RewardModel(RewardSettings(str(failing))).check()
    template = "{% for i in range(100000) %}{{ 'a' * 99999 }}{% endfor %}"
    endless = write_reward_model(tmp_path / "endless", template=template)
    with refused("endless: its chat template fails"):
        RewardModel(RewardSettings(str(endless))).check()


def test_settings_that_cannot_be_are_refused() -> None:
    with refused("reward.format: no format 'code'; there is model, papers_code"):
        RewardSettings("m", "code")  # type: ignore[arg-type]
    with refused("reward.model is empty"):
        RewardSettings("")
    with refused("reward.model endpoint:http://localhost:1#m: no server gives rewards; name a directory"):
        RewardSettings("endpoint:http://localhost:1#m")
    with refused("equivalence.model is empty"):
        EquivalenceSettings("")


def test_an_answer_of_somebody_else_is_told(reward_dir: Path, judge_cache: Path) -> None:
    judge = RewardModel(RewardSettings(str(reward_dir), device="cpu"))
    judge.judge([CASE])
    [part] = judge_cache.glob("judges/*/responses/*/part-*.jsonl")
    text = part.read_text()
    part.write_text(text.replace('"text": "[', '"text": "[[').replace(']", "tokens"', ']]", "tokens"'))
    with refused(r"a judge's answer on disk is '\[\[.*, and no list of 1; remove its file"):
        RewardModel(RewardSettings(str(reward_dir), device="cpu")).judge([CASE])


# Pairs ----------------------------------------------------------------------------------------------------------


def pair(first: str, second: str) -> Case:
    return Case((), first, other=second)


def test_a_pair_is_asked_with_its_exact_tokens(similarity_dir: Path) -> None:
    judge = Equivalence(EquivalenceSettings(str(similarity_dir)))
    tokenizer: Any = AutoTokenizer.from_pretrained(similarity_dir)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    long, short = "one two three four five six " * 10, "a text of more than five words"
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (long, short))
    assert len(first) > 128
    assert list(judge.prompt(pair(long, short))) == [cls, *first[:128], sep, *second, sep]
    assert list(judge.prompt(pair(short, long))) == [cls, *second, sep, *first[:128], sep]


def test_the_probability_of_a_pair_is_that_of_the_model(similarity_dir: Path) -> None:
    judge = Equivalence(EquivalenceSettings(str(similarity_dir), device="cpu"))
    cases = [pair("the cat sat on the mat today", other) for other in ("a dog", "it rained cats and dogs all day")]
    model = AutoModelForSequenceClassification.from_pretrained(similarity_dir).eval()
    for case, verdict in zip(cases, judge.judge(cases), strict=True):
        ids = list(judge.prompt(case))
        first = ids.index(judge.tokenizer.sep_token_id) + 1
        types = torch.tensor([[0] * first + [1] * (len(ids) - first)])
        logits = model(input_ids=torch.tensor([ids]), token_type_ids=types).logits
        assert verdict.value == pytest.approx(logits.softmax(-1)[0, 1].item(), abs=1e-5)
    assert judge.threshold == 0.102
    assert judge.read("[1000.0, -1000.0]", cases[0]) == pytest.approx(0, abs=1e-300)
    assert judge.read("[-1000.0, 1000.0]", cases[0]) == 1


def test_short_pairs_are_compared_by_words_and_the_model_is_not_asked(similarity_dir: Path) -> None:
    judge = Equivalence(EquivalenceSettings(str(similarity_dir), device="cpu"))
    cases = [pair("Blue", " blue "), pair("red", "blue"), pair("", "")]
    assert judge.judge(cases) == [Verdict(1.0, "true"), Verdict(0.0, "false"), Verdict(1.0, "true")]
    assert judge._backend is None
    long = pair("one two three four five six", "red")
    assert judge.cost([*cases, long]).calls == 1
    mixed = judge.judge([cases[1], long, cases[0]])
    assert [mixed[0].value, mixed[2].value] == [0, 1]
    assert judge.cost([*cases, long]).calls == 0


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("a b c d e", "a b", False),  # 4 < 5
        ("a b c d", "a b", True),  # 4 >= 4
        ("a b c d e", "c b a", True),
        ("a a a a", "a", False),  # common words are different ones
        ("A  B\n", "b a", True),
        ("a.", "a", False),  # signs stay
        ("a b c d e f", "a", None),
        ("a", "a b c d e f", None),
        ("", "a", False),
    ],
)
def test_five_words_are_short(first: str, second: str, same: bool | None) -> None:
    assert same_words(first, second) is same


def test_another_threshold_asks_nothing_again(similarity_dir: Path) -> None:
    usual = Equivalence(EquivalenceSettings(str(similarity_dir)))
    other = Equivalence(EquivalenceSettings(str(similarity_dir), threshold=0.5))
    assert other.threshold == 0.5
    assert usual.directory == other.directory


def test_a_tokenizer_without_its_control_tokens_is_refused(similarity_dir: Path, reward_dir: Path) -> None:
    judge = Equivalence(EquivalenceSettings(str(similarity_dir), str(reward_dir)))
    with refused(r"this tokenizer has no \[CLS\] or no \[SEP\], which part two texts; name another with"):
        judge.check()
    Equivalence(EquivalenceSettings(str(similarity_dir))).check()
    paper = Equivalence(EquivalenceSettings())
    assert paper.model_identity == ["yimingzhang/deberta-v3-large-generation-similarity", "microsoft/deberta-v3-large"]


# Words ----------------------------------------------------------------------------------------------------------


def by_hand(first: str, second: str) -> float:
    """ROUGE-1's F1 as rouge-score defines it: each word of one text takes away one of the other's."""

    def words(text: str) -> list[str]:
        kept = "".join(letter if letter in "abcdefghijklmnopqrstuvwxyz0123456789" else " " for letter in text.lower())
        return kept.split()

    ours, theirs = words(first), words(second)
    left, common = list(theirs), 0
    for word in ours:
        if word in left:
            left.remove(word)
            common += 1
    precision, recall = common / max(len(ours), 1), common / max(len(theirs), 1)
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


TEXTS = st.text(alphabet=st.sampled_from([*"abAB01 .,-é\n", "İ"]), max_size=20)


@FEW
@given(TEXTS, TEXTS)
def test_rouge_1_is_its_definition(first: str, second: str) -> None:
    assert rouge_1(first, second) == pytest.approx(by_hand(first, second), abs=1e-12)
    assert rouge_1(first, second) == rouge_1(second, first)


def test_rouge_1_by_hand() -> None:
    assert rouge_1("The cat, the hat.", "the CAT sat") == pytest.approx(2 * 2 / (4 + 3))
    assert rouge_1("don't", "don t") == 1
    assert rouge_1("", "") == rouge_1("é", "é") == 0


def test_the_rule_that_needs_no_model_has_a_name() -> None:
    judge = make_equivalence(EquivalenceSettings("unigram"))
    assert isinstance(judge, Unigram)
    assert judge.threshold == 0.458
    judge.check()
    assert judge.cost([pair("a", "b")]).calls == 0
    assert judge.judge([pair("a cat", "a dog"), pair("", "")]) == [Verdict(0.5), Verdict(0.0)]
    assert make_equivalence(EquivalenceSettings("unigram", threshold=0.9)).threshold == 0.9
    assert math.isclose(judge.judge([pair("a b c", "a b d")])[0].value or 0, 2 / 3)
