"""Every bundled template on every kind of tokenizer: what is learnt is the answers and their ends, and nothing else."""

import json
import re
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import template_tokenizers as kinds
from data_helpers import byte_level_tokenizer, chat
from hypothesis import given, settings
from hypothesis import strategies as st
from make_golden_templates import DIRECTORY, SIMPLE, golden, golden_tokenizer
from template_tokenizers import ANSWERS, CONTROLS, SYSTEM, TOOL
from transformers import PreTrainedTokenizerFast

from ts2_lightning.data.bundled import TEMPLATES
from ts2_lightning.data.formats import parse
from ts2_lightning.data.sources import read_rows
from ts2_lightning.data.templates import ChatTemplate, make_template
from ts2_lightning.toyworld import load_world
from ts2_lightning.types import RowError, UserError

NAMES = list(TEMPLATES)
Messages = list[dict[str, str]]

ODD = [
    " ",
    "  ",
    "\n",
    "\n\n",
    " \n ",
    "\t",
    "\r\n",
    "é☃🙂",
    "ﷺ",
    "e\u0301",
    "42",
    ":)",
    "Hello",
    " there",
    "User:\n",
    "\ue000",
]
DELIMITERS = ["<|/response|>", "<|/response|>\n</s>", " \n<|/input|> \n", "[/INST", "<think>", "</s>", "<|endoftext|>"]
ANY_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="▁"), max_size=6)  # "▁" is SentencePiece's space
ANY = st.lists(ANY_TEXT | st.sampled_from(ODD + DELIMITERS + CONTROLS), max_size=6).map("".join)
ASCII_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=6)
ASCII = st.lists(ASCII_TEXT | st.sampled_from([" ", "\n", "Hello", *DELIMITERS, *CONTROLS]), max_size=6).map("".join)
WORDS = st.lists(st.sampled_from([*load_world().words, " ", "\n", "  "]), max_size=6).map(" ".join)
PROPERTY = settings(max_examples=15, deadline=None, derandomize=True, database=None)


@lru_cache
def template_of(kind: Callable[..., PreTrainedTokenizerFast], name: str, *place: Path) -> ChatTemplate:
    return make_template(name, kind(*place))


def conversations(name: str, contents: st.SearchStrategy[str]) -> st.SearchStrategy[Messages]:
    """Conversations of the turns that a template has: one to three exchanges."""

    def message(role: str) -> st.SearchStrategy[Messages]:
        texts = contents.filter(lambda text: bool(text.strip())) if role == "assistant" else contents
        return texts.map(lambda text: [{"role": role, "content": text}])

    none = st.just([])
    tool = none | st.tuples(message("tool"), message("assistant")).map(joined) if name in TOOL else none
    more = none | message("user") if name == "tofu" else none  # the instruction's input
    exchange = st.tuples(message("user"), more, message("assistant"), tool).map(joined)
    system = none | message("system") if name in SYSTEM else none
    return st.tuples(system, st.lists(exchange, min_size=1, max_size=3).map(joined)).map(joined)


def joined(parts: tuple[Messages, ...] | list[Messages]) -> Messages:
    return [message for part in parts for message in part]


def encode(template: ChatTemplate, messages: Messages) -> tuple[list[int], list[tuple[int, int]]]:
    [encoded] = template.encode([template.render(messages)])
    return encoded.ids, encoded.spans


def text_of(template: ChatTemplate, ids: list[int]) -> str:
    return template.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def learnt(template: ChatTemplate, messages: Messages) -> list[str]:
    """The text of each span: what decoding up to its end has more than decoding up to its start."""
    ids, spans = encode(template, messages)
    return [text_of(template, ids[:end]).removeprefix(text_of(template, ids[:start])) for start, end in spans]


def to_learn(template: ChatTemplate, messages: Messages) -> list[str]:
    answer = ANSWERS[template.name]
    return [answer(m["content"], template.tokenizer.eos_token) for m in messages if m["role"] == "assistant"]


def check_prompt(template: ChatTemplate, messages: Messages) -> None:
    """Generation sees the very tokens that the last answer follows in training."""
    ids, spans = encode(template, messages)
    last = max(place for place, message in enumerate(messages) if message["role"] == "assistant")
    assert template.render_prompt(messages[:last]) == ids[: spans[-1][0]]


def check_ids(template: ChatTemplate, messages: Messages) -> None:
    """Ids are those of transformers where nothing looks like a control token and no white space is kept apart."""
    if any(control in message["content"] for message in messages for control in template._special):
        return
    if any(m["role"] == "assistant" and m["content"][0].isspace() for m in messages):
        return
    batch = template.tokenizer.apply_chat_template(messages, chat_template=template.jinja)
    assert encode(template, messages)[0] == batch["input_ids"]


def check(template: ChatTemplate, messages: Messages, same: Callable[[str, str], bool]) -> None:
    found, expected = learnt(template, messages), to_learn(template, messages)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert same(one, other), f"{one!r} is not {other!r}"
    check_prompt(template, messages)
    check_ids(template, messages)


def equal(found: str, expected: str) -> bool:
    return found == expected


def equal_but_for_a_space_before(found: str, expected: str) -> bool:
    return found in (expected, " " + expected)


def equal_but_for_white_space(found: str, expected: str) -> bool:
    return "".join(found.split()) == "".join(expected.split())


@pytest.mark.parametrize("kind", [kinds.byte_level, kinds.metaspace])
@pytest.mark.parametrize("name", NAMES)
@PROPERTY
@given(data=st.data())
def test_learnt_is_the_answers_and_their_ends(name: str, kind: Callable, data: st.DataObject) -> None:
    check(template_of(kind, name), data.draw(conversations(name, ANY)), equal)


@pytest.mark.parametrize(("name", "kind"), [("phi3", kinds.phi3_like), ("phi4", kinds.phi4_like)])
@PROPERTY
@given(data=st.data())
def test_learnt_where_control_tokens_take_in_white_space(name: str, kind: Callable, data: st.DataObject) -> None:
    check(template_of(kind, name), data.draw(conversations(name, ANY)), equal)


@pytest.mark.parametrize("question", ["why", "why <|im_sep|> \n", " </s><|user|>"])
def test_white_space_taken_in_is_so_whatever_other_turns_say(question: str) -> None:
    template = template_of(kinds.phi4_like, "phi3")
    messages = chat(question, "\n yes \n", "Hello  ", "no  ")
    assert learnt(template, messages) == ["\n yes<|end|>", "no<|end|>"]
    ids, _ = encode(template, messages)
    alone, _ = encode(template, messages[2:])
    assert ids[-len(alone) :] == alone
    check_prompt(template, messages)


@pytest.mark.parametrize("name", NAMES)
@PROPERTY
@given(data=st.data())
def test_learnt_where_a_space_follows_control_tokens(name: str, data: st.DataObject) -> None:
    check(template_of(kinds.prepending, name), data.draw(conversations(name, ANY)), equal_but_for_a_space_before)


@pytest.mark.parametrize("name", NAMES)
@PROPERTY
@given(data=st.data())
def test_learnt_of_the_pretrained_model(name: str, shared_data: Path, data: st.DataObject) -> None:
    template = template_of(kinds.stories, name, shared_data)
    check(template, data.draw(conversations(name, ANY)), equal_but_for_white_space)


@pytest.mark.parametrize(("kind", "contents"), [(kinds.wordpiece, ASCII), (kinds.toyworld, WORDS)])
@pytest.mark.parametrize("name", NAMES)
@PROPERTY
@given(data=st.data())
def test_learnt_words(name: str, kind: Callable, contents: st.SearchStrategy[str], data: st.DataObject) -> None:
    """White space is lost and words may be unknown, so the tokens themselves are compared."""
    template = template_of(kind, name)
    messages = data.draw(conversations(name, contents))
    ids, spans = encode(template, messages)
    [end] = template.end_of_turn_ids
    closing = template.tokenizer.convert_ids_to_tokens(end)
    texts = [answer.removesuffix(closing) for answer in to_learn(template, messages)]
    words = template.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert [ids[start:end] for start, end in spans] == [[*answer, end] for answer in words]
    check_prompt(template, messages)
    check_ids(template, messages)


@pytest.mark.parametrize("name", NAMES)
@PROPERTY
@given(data=st.data())
def test_options_change_the_spans_alone(name: str, data: st.DataObject) -> None:
    messages = data.draw(conversations(name, ANY))
    ids, spans = encode(template_of(kinds.byte_level, name), messages)
    tokenizer = template_of(kinds.byte_level, name).tokenizer
    last = make_template(name, tokenizer, train_on="last")
    assert_last_of(encode(last, messages), ids, spans, tokenizer)
    check_prompt(last, messages)
    check_ids(last, messages)
    open_ended = make_template(name, tokenizer, train_on_end=False)
    assert encode(open_ended, messages) == (ids, [(start, end - 1) for start, end in spans])
    assert {ids[end - 1] for _, end in spans} == set(open_ended.end_of_turn_ids)
    both = make_template(name, tokenizer, "last", False)
    assert_last_of(encode(both, messages), ids, [(start, end - 1) for start, end in spans], tokenizer)


def assert_last_of(encoded: Any, ids: list[int], spans: list[tuple[int, int]], tokenizer: Any) -> None:
    """The last answer's tokens in the same text, in which tokens are cut before other answers if those are learnt."""
    [(start, end)] = encoded[1]
    assert encoded[0][start:end] == ids[slice(*spans[-1])]
    assert tokenizer.decode(encoded[0]) == tokenizer.decode(ids)
    assert len(encoded[0]) - end == len(ids) - spans[-1][1]


PREAMBLE = (  # of TOFU's code; two of its lines end with a space
    "\nBelow is an instruction that describes a task. Write a response that appropriately completes the request. "
    "Input might contain additional information.\n"
)
LAYOUTS = {  # written by hand: the system turn "Be kind.", Hi - Yes, Why? - So.
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYes<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nSo.<|eot_id|>"
    ),
    "chatml": (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes <|im_end|>\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n"
    ),
    "gemma": (
        "<s><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\nYes<end_of_turn>\n"
        "<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\nSo.<end_of_turn>\n"
    ),
    "mistral": "<s>[INST] Be kind.\n\nHi[/INST] Yes</s>[INST] Why?[/INST] So.</s>",
    "mistral_tekken": "<s>[INST]Be kind.\n\nHi[/INST]Yes</s>[INST]Why?[/INST]So.</s>",
    "olmo": ("<s><|system|>\nBe kind.\n<|user|>\nHi\n<|assistant|>\nYes </s>\n<|user|>\nWhy?\n<|assistant|>\nSo.</s>"),
    "phi3": (
        "<|system|>\nBe kind.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nYes <|end|>\n"
        "<|user|>\nWhy?<|end|>\n<|assistant|>\nSo.<|end|>\n"
    ),
    "phi4": (
        "<|im_start|>system<|im_sep|>Be kind.<|im_end|><|im_start|>user<|im_sep|>Hi<|im_end|>"
        "<|im_start|>assistant<|im_sep|>Yes<|im_end|><|im_start|>user<|im_sep|>Why?<|im_end|>"
        "<|im_start|>assistant<|im_sep|>So.<|im_end|>"
    ),
    "tofu": (
        f"<s>{PREAMBLE}Instruction: \n<|instruct|> \nHi \n<|/instruct|> \n\nInput: \n<|input|> \n \n<|/input|> \n\n"
        "Response: \n<|response|>\n Yes \n<|/response|>\n</s>"
        "Instruction: \n<|instruct|> \nWhy? \n<|/instruct|> \n\nInput: \n<|input|> \n \n<|/input|> \n\n"
        "Response: \n<|response|>\n So. \n<|/response|>\n</s>"
    ),
    "plain": "<s>System:\nBe kind.</s>User:\nHi</s>Assistant:\nYes</s>User:\nWhy?</s>Assistant:\nSo.</s>",
}


@pytest.mark.parametrize("name", NAMES)
def test_layouts(name: str) -> None:
    template = template_of(golden_tokenizer, name)
    assert template.render(SIMPLE if name in SYSTEM else SIMPLE[1:]).text == LAYOUTS[name]


@pytest.mark.parametrize("name", NAMES)
def test_golden_ids(name: str) -> None:
    stored = json.loads((DIRECTORY / f"{name}.json").read_text(encoding="utf-8"))
    assert golden(name) == stored
    assert stored[0]["text"] == LAYOUTS[name]
    for row in stored:
        assert golden_tokenizer().decode(row["ids"]) == row["text"]


def test_the_input_of_an_instruction_is_the_second_user_turn() -> None:
    template = template_of(golden_tokenizer, "tofu")
    messages = [
        {"role": "user", "content": "Add.\n"},
        {"role": "user", "content": "1, 2"},
        {"role": "assistant", "content": "3"},
    ]
    assert template.render(messages).text == (
        f"<s>{PREAMBLE}Instruction: \n<|instruct|> \nAdd. \n<|/instruct|> \n\n"
        "Input: \n<|input|> \n1, 2 \n<|/input|> \n\n"
        "Response: \n<|response|>\n 3 \n<|/response|>\n</s>"
    )
    assert learnt(template, messages) == [" 3 \n<|/response|>\n</s>"]


@pytest.mark.parametrize(("name", "layout"), [
    ("llama3", "<|start_header_id|>ipython<|end_header_id|>\n\nblue<|eot_id|>"),
    ("chatml", "<|im_start|>tool\nblue<|im_end|>\n"),
    ("plain", "Tool:\nblue</s>"),
])  # fmt: skip
def test_tool_turns(name: str, layout: str) -> None:
    template = template_of(golden_tokenizer, name)
    messages = [*chat("the sea?", "call(sea)"), {"role": "tool", "content": "blue"}, *chat("", "Blue.")[1:]]
    assert layout in template.render(messages).text
    assert learnt(template, messages) == to_learn(template, messages)
    assert learnt(template, messages)[0].startswith("call(sea)"), "a call is what the assistant writes"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TOOL])
def test_tool_turns_are_refused_where_there_are_none(name: str) -> None:
    messages = [*chat("the sea?", "call(sea)"), {"role": "tool", "content": "blue"}, *chat("", "Blue.")[1:]]
    with pytest.raises(RowError, match=r"refuses messages of the roles .*\(this layout has no tool turns\)") as error:
        template_of(golden_tokenizer, name).render(messages)
    assert error.value.kind == "template"


@pytest.mark.parametrize(
    ("name", "roles", "reason"),
    [
        ("tofu", "system user assistant", "this layout has no system turns"),
        ("tofu", "assistant user assistant", "an answer must follow an instruction"),
        ("tofu", "user assistant assistant", "an answer must follow an instruction"),
        ("tofu", "user user user assistant", "at most two user turns can follow each other"),
        ("gemma", "user system assistant", "a system turn only at the beginning, before a user turn"),
        ("gemma", "system assistant", "a system turn only at the beginning, before a user turn"),
        ("mistral", "system system user assistant", "a system turn only at the beginning, before a user turn"),
    ],
)
def test_turns_without_a_place_are_refused(name: str, roles: str, reason: str) -> None:
    messages = [{"role": role, "content": "x"} for role in roles.split()]
    with pytest.raises(RowError, match=reason):
        template_of(golden_tokenizer, name).render(messages)


@pytest.mark.parametrize("name", [name for name in NAMES if TEMPLATES[name].controls])
def test_control_strings_must_be_tokens(name: str) -> None:
    bare = byte_level_tokenizer()
    absent = [control for control in TEMPLATES[name].controls if control not in bare.get_vocab()]
    if not absent:
        assert make_template(name, bare).name == name
        return
    with pytest.raises(UserError, match=f"needs {re.escape(absent[0])} to be a single token"):
        make_template(name, bare)


@pytest.mark.parametrize("name", [name for name in NAMES if "eos_token" in TEMPLATES[name].jinja])
def test_an_end_of_text_is_needed(name: str) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=kinds.byte_level().backend_tokenizer)
    with pytest.raises(UserError, match=f"template '{name}' closes turns with the end-of-text token"):
        make_template(name, bare)


@pytest.mark.parametrize("kind", [kinds.byte_level, kinds.metaspace, golden_tokenizer])
@pytest.mark.parametrize("name", NAMES)
def test_prompts_for_generation_are_those_of_plain_transformers(name: str, kind: Callable) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the template itself warns where they are not
        template = make_template(name, kind())
    messages = SIMPLE[:-1] if name in SYSTEM else SIMPLE[1:-1]
    batch = template.tokenizer.apply_chat_template(messages, chat_template=template.jinja, add_generation_prompt=True)
    assert template.render_prompt(messages) == batch["input_ids"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file", ["sft/no_robots_test", "chat/oasst1_eval_threads"])
def test_real_rows(name: str, file: str, shared_data: Path) -> None:
    template = template_of(kinds.byte_level, name)
    for row, _ in zip(read_rows(shared_data / f"{file}.jsonl.gz"), range(40), strict=False):
        messages = [message for message in parse(row.fields).messages if name in SYSTEM or message["role"] != "system"]
        check(template, messages, equal)
