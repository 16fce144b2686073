"""What becomes of each field of a row: nothing that a row says is dropped in silence."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from data_helpers import byte_level_tokenizer, write_jsonl
from thinking_templates import GPT_OSS, QWEN3
from transformers import PreTrainedTokenizerFast

from ts2_lightning.data import SFTData, formats
from ts2_lightning.data.bundled import TEMPLATES
from ts2_lightning.data.formats import FORMATS, Conversation, TokenRow, get_format, parse
from ts2_lightning.data.formats.fields import QUESTION_FIELDS, ROW, TOKENS, TURN, Fate, Field, by_name, markdown
from ts2_lightning.data.templates import ChatTemplate, make_template
from ts2_lightning.types import RowError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"
USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "get_time", "arguments": {"zone": "CET"}}}

# A row of each format that has turns or texts, and the texts that come before its answer "a".
FILLED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "messages": ({"messages": [USER, ANSWER]}, ["q"]),
    "sharegpt": ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, ["q"]),
    "sharegpt_chosen": (
        {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": 1},
        ["q"],
    ),
    "lima": ({"conversations": ["q", "a"]}, ["q"]),
    "prompt_completion": ({"prompt": "q", "completion": "a"}, ["q"]),
    "prompt_response": ({"prompt": [USER], "response": [ANSWER]}, ["q"]),
    "alpaca": ({"instruction": "q", "output": "a"}, ["q"]),
    "dolly": ({"instruction": "q", "response": "a"}, ["q"]),
    "gsm8k": ({"question": "q", "answer": "a"}, ["q"]),
    "guanaco": ({"text": "### Human: q ### Assistant: a"}, ["q"]),
    "mt_bench_101": ({"history": [{"user": "p", "bot": "o"}, {"user": "q", "bot": "a"}]}, ["p", "o", "q"]),
}


def conversation(fields: dict, *format: Any) -> Conversation:
    found = parse(fields, *format)
    assert isinstance(found, Conversation)
    return found


# The page ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("title", "table"), [("A row", ROW), ("A turn", TURN), ("A row of tokens", TOKENS)])
def test_the_page_has_the_tables(title: str, table: tuple[Field, ...]) -> None:
    section = PAGE.read_text(encoding="utf-8").split(f"\n### {title}\n")[1].split("\n#")[0]
    assert [line for line in section.splitlines() if line.startswith("| `")] == markdown(table)


def test_the_page_has_the_formats_and_the_fields_of_a_question() -> None:
    text = PAGE.read_text(encoding="utf-8")
    section = text.split("\n## Formats\n")[1].split("\n## ")[0]
    tables = [re.findall(r"^\| `.*\|$", where, re.MULTILINE) for where in (section, formats.__doc__ or "")]
    assert tables[0] == tables[1]
    assert len(tables[0]) == len(FORMATS)
    assert ", ".join(f"`{name}`" for name in QUESTION_FIELDS) in text


def test_no_field_has_two_fates() -> None:
    for table in (ROW, TURN, TOKENS):
        names = [name for field in table for name in field.names]
        assert len(names) == len(set(names))


# Masks -------------------------------------------------------------------------------------------------------------

SAYS_NO = [("weight", 0), ("weight", 0.0), ("loss_weight", 0), ("loss_scale", 0), ("train", False), ("training", False),
           ("trainable", 0), ("loss", False), ("mask", True), ("masked", 1)]  # fmt: skip
SAYS_YES = [("weight", 1), ("weight", 1.0), ("weight", True), ("train", True), ("mask", False), ("masked", 0),
            ("weight", None), ("train", None)]  # fmt: skip


def learnt(template: ChatTemplate, fields: dict) -> list[str]:
    encoded = template.encode(template.unroll(parse(fields)).renderings)  # type: ignore[arg-type]
    return [template.tokenizer.decode(e.ids[start:end]) for e in encoded for start, end in e.spans]


def two_answers(key: str, first: dict, second: dict) -> dict:
    who, says, names = ("role", "content", ("user", "assistant")) if key == "messages" else (
        "from", "value", ("human", "gpt"),
    )  # fmt: skip
    ask = {who: names[0], says: "q"}
    return {key: [ask, {who: names[1], says: "bad", **first}, ask, {who: names[1], says: "good", **second}]}


@pytest.mark.parametrize("key", ["messages", "conversations"])
@pytest.mark.parametrize("no", SAYS_NO)
@pytest.mark.parametrize("yes", [*SAYS_YES, ("id", 7)])
def test_a_turn_that_is_not_to_be_learnt_is_read_and_not_learnt(
    key: str, no: tuple[str, Any], yes: tuple[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    template = make_template("chatml", tokenizer)
    assert learnt(template, two_answers(key, dict([no]), dict([yes]))) == ["good<|im_end|>"]
    assert learnt(template, two_answers(key, dict([yes]), dict([no]))) == ["bad<|im_end|>"]
    whole = template.render(parse(two_answers(key, {}, {})))  # type: ignore[arg-type]
    assert template.render(parse(two_answers(key, dict([no]), dict([yes])))).text == whole.text  # type: ignore[arg-type]


def test_the_last_turn_alone_is_learnt_unless_it_is_masked(tokenizer: PreTrainedTokenizerFast) -> None:
    template = make_template("chatml", tokenizer, train_on="last")
    assert learnt(template, two_answers("messages", {"weight": 1}, {})) == ["good<|im_end|>"]
    with pytest.raises(RowError, match="the last turn of the assistant is marked as not to be learnt") as error:
        learnt(template, two_answers("messages", {}, {"weight": 0}))
    assert error.value.kind == "no supervised token"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"weight": 0.5}, r"message 2 \(assistant\): weight is 0.5: a turn is learnt \(1\) or not \(0\); for a factor"),
        ({"weight": "0"}, "weight is '0': a turn is learnt"),
        ({"weight": -1}, "weight is -1: a turn"),
        ({"train": "no"}, "train must be true or false, got 'no'"),
        ({"masked": 2}, "masked must be true or false, got 2"),
        ({"weight": 1, "train": False}, "weight and train say different things of whether it is learnt"),
        ({"train_detail": [{"begin_offset": 0}]}, "train_detail is .*: a turn is learnt whole or not at all"),
        ({"eot": False}, "eot is False: every turn has its end"),
        ({"ipython": True}, "ipython is True: write the call as tool_calls"),
        ({"refusal": "I cannot."}, "refusal is 'I cannot.': write it as content"),
        ({"images": ["a.png"]}, "images is .*: only text is learnt"),
        ({"content": [{"type": "image_url", "image_url": "x"}]}, r"content\[0\] must be a text, got"),
        ({"content": [{"type": "text", "text": "a", "train": False}]}, r"content\[0\] has .*train.* would be lost"),
        ({"content": [{"type": ["text"], "text": "a"}]}, r"content\[0\] must be a text, got"),
        ({"content": [3]}, r"content\[0\] must be a text, got 3"),
        ({"value": "b"}, "different content and value"),
        ({"from": "human"}, "different role and from"),
        ({"reasoning": "x", "thinking": "y"}, "different reasoning and thinking"),
        ({"reasoning": ["x"]}, "its thought must be a string"),
    ],
)
def test_turns_that_say_what_is_not_done_are_refused(fields: dict, reason: str) -> None:
    with pytest.raises(RowError, match=reason) as error:
        parse({"messages": [USER, {**ANSWER, **fields}]})
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "fields", [{"weight": 1}, {"train": True}, {"masked": False}, {"reasoning": "x"}, {"tool_calls": [CALL]}]
)
def test_only_the_assistant_learns_thinks_and_calls(fields: dict) -> None:
    with pytest.raises(RowError, match=r"message 1 \(user\).* only .*the assistant"):
        parse({"messages": [{**USER, **fields}, ANSWER]})
    for harmless in ({"weight": 0}, {"train": False}, {"masked": True}, {"tool_calls": []}, {"reasoning": ""}):
        assert parse({"messages": [{**USER, **harmless}, ANSWER]}) == parse({"messages": [USER, ANSWER]})


@pytest.mark.parametrize("empty", [None, "", [], {}])
@pytest.mark.parametrize(("place", "table"), [("row", ROW), ("turn", TURN), ("tokens", TOKENS)])
def test_what_is_null_or_empty_says_nothing(place: str, table: tuple[Field, ...], empty: Any) -> None:
    names = [name for name in by_name(table) if name not in ("role", "content", "input_ids", "labels", "weight")]
    more = {name: empty for name in names if by_name(table)[name].fate is not Fate.MASK or empty is None}
    if place == "tokens":
        assert parse({"input_ids": [1, 2], **more}) == TokenRow([1, 2], [1, 2])
    elif place == "row":
        assert parse({"messages": [USER, ANSWER], **more}) == parse({"messages": [USER, ANSWER]})
    else:
        more = {name: value for name, value in more.items() if name not in ("from", "value") or value is None}
        assert parse({"messages": [USER, {**more, **ANSWER}]}) == parse({"messages": [USER, ANSWER]})


# Texts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["system", "system_prompt"])
@pytest.mark.parametrize("format", FILLED)
def test_a_system_text_is_a_system_turn(format: str, name: str) -> None:
    row, texts = FILLED[format]
    found = conversation({**row, name: "Be kind."})
    assert found.messages[0] == {"role": "system", "content": "Be kind."}
    assert [message["content"] for message in found.messages] == ["Be kind.", *texts, "a"]
    assert not set(found.unused) & {"system", "system_prompt"}
    assert [message["content"] for message in conversation(row).messages] == [*texts, "a"]


def test_two_system_texts() -> None:
    system = {"role": "system", "content": "s"}
    assert len(conversation({"messages": [system, USER, ANSWER], "system": "s"}).messages) == 3
    assert len(conversation({"messages": [USER, ANSWER], "system": "s", "system_prompt": "s"}).messages) == 3
    with pytest.raises(RowError, match="system and the system turn of the messages differ; remove one"):
        parse({"messages": [system, USER, ANSWER], "system": "t"})
    with pytest.raises(RowError, match="different system and system_prompt"):
        parse({"messages": [USER, ANSWER], "system": "s", "system_prompt": "t"})


def test_turns_in_other_words() -> None:
    row = {
        "conversations": [
            {"role": "developer", "content": "s"},
            {"role": "human", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "?"}]},
            {"from": "model", "value": ["a", "!"]},
            {"role": "function", "content": "t", "name": "f"},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "b"}]},
        ]
    }
    assert conversation(row).messages == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q?"},
        {"role": "assistant", "content": "a!"},
        {"role": "tool", "content": "t", "name": "f"},
        {"role": "assistant", "content": "b", "reasoning_content": "hm"},
    ]
    assert conversation({"messages": row["conversations"]}) == conversation(row)


@pytest.mark.parametrize("name", [name for name, (_, texts) in FILLED.items() if FORMATS[name].asks])
@pytest.mark.parametrize("field", QUESTION_FIELDS)
def test_a_part_of_a_question_is_used_or_refused(name: str, field: str) -> None:
    row, _ = FILLED[name]
    value: Any = [["q0", "a0"]] if field == "history" else "the text that it is about"
    if field in FORMATS[name].reads:  # type: ignore[operator]
        found = conversation({**row, field: value})
        assert "the text that it is about" in found.messages[0]["content"] or len(found.messages) == 4
        assert not found.unused
    else:
        with pytest.raises(RowError, match=f"{field}: the row's format does not read it, so that the answer would be"):
            parse({**row, field: value}, get_format(name))


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("format", FILLED)
def test_a_thought_beside_an_answer_is_its_thought(format: str, name: str) -> None:
    """In a row of a question and an answer; turns have their own. In the rows of GSM8K nothing else may be."""
    row, _ = FILLED[format]
    if format == "gsm8k":
        with pytest.raises(RowError, match="no format fits"):
            parse({**row, name: "hm"})
        return
    found = conversation({**row, name: "hm"})
    assert (found.messages[-1].get("reasoning_content") == "hm") == FORMATS[format].asks
    assert (name in found.unused) != FORMATS[format].asks
    assert "reasoning_content" not in conversation({**row, name: ""}).messages[-1]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"images": ["a.png"]}, "only text is learnt"),
        ({"chat_template": "{{ x }}"}, "name it with data.template"),
        ({"label": False}, "label is False: the answer is a bad one"),
        ({"kto_tag": False}, "the answer is a bad one"),
        ({"mask": "Assistant"}, "say at each turn whether it is learnt"),
        ({"tools": "sum"}, "tools must be a list of objects, got 'sum'; write"),
        ({"tools": [3]}, "tools must be a list of objects"),
        ({"tools": [TIME], "functions": [TIME]}, "both tools and functions"),
        ({"tools": [{"name": "f", "x": float("inf")}]}, "tools: inf is no number of JSON"),
        ({"tools": [{"name": "f", "x": object()}]}, "tools must be plain JSON, got <object"),
        ({"tools": [{"name": "\ud800"}]}, "half of a surrogate pair"),
        ({"tools": [{"name": "x" * 2_000_000}]}, "tools has more than 1,048,576 characters"),
        ({"chat_template_kwargs": ["x"]}, "chat_template_kwargs must be an object of template arguments"),
        ({"chat_template_kwargs": {"messages": []}}, "'messages' is no name of an argument"),
        ({"chat_template_kwargs": {"bos_token": "x"}}, "'bos_token' is no name of an argument"),
        ({"chat_template_kwargs": {"a b": 1}}, "'a b' is no name of an argument"),
    ],
)
def test_rows_that_say_what_is_not_done_are_refused(fields: dict, reason: str) -> None:
    with pytest.raises(RowError, match=reason) as error:
        parse({"messages": [USER, ANSWER], **fields})
    assert "\n" not in str(error.value)


def test_deep_values_are_refused() -> None:
    deep: Any = {}
    for _ in range(100):
        deep = {"a": deep}
    with pytest.raises(RowError, match="tools is nested more than 32 times"):
        parse({"messages": [USER, ANSWER], "tools": [deep | {"name": "f"}]})


def test_what_is_not_used_is_listed() -> None:
    turns = [USER | {"id": 1}, ANSWER | {"id": 2, "model": "x"}]
    found = conversation({"messages": turns, "prompt": "q", "label": 1, "source": "web", "meta": {}, "score": 0})
    assert found.unused == ("prompt", "score", "source", "turns.id", "turns.model")
    with_label = conversation({"messages": [USER, ANSWER], "mask": "User", "id": "7"})
    assert with_label.unused == ("id",)


def test_a_function_of_the_user_decides_alone() -> None:
    def mine(fields: Any) -> Any:
        return Conversation([USER, {**ANSWER, "weight": 1, "trained": True, "odd": 1}], tools=[{"name": "f"}])  # type: ignore[list-item]

    found = conversation({"system": "s", "tools": "no JSON", "images": [1]}, mine)
    assert found.messages == [USER, {**ANSWER, "trained": True}]
    assert found.tools == [{"type": "function", "function": {"name": "f"}}]
    assert found.unused == ("turns.odd",)


# Functions, calls, arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tools", [[TIME], json.dumps([TIME]), TIME["function"], [TIME | {"x": None}]])
def test_functions_reach_the_template(tools: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    template = ChatTemplate("qwen3", QWEN3, tokenizer)
    for name in ("tools", "functions"):
        found = conversation({"messages": [USER, ANSWER], name: tools})
        text = template.render(found).text
        assert text.startswith(f"<|im_start|>system\n{json.dumps([TIME])}<|im_end|>")
        assert text == tokenizer.apply_chat_template(found.messages, tools=[TIME], chat_template=QWEN3, tokenize=False)
        [encoded] = template.encode([template.render(found)])
        assert encoded.ids[: encoded.spans[0][0]] == template.render_prompt(
            Conversation(found.messages[:1], found.tools), thoughts=False
        )


@pytest.mark.parametrize("nothing", [None, [], "", "[]", "null", " "])
def test_no_functions_are_none(nothing: Any) -> None:
    assert conversation({"messages": [USER, ANSWER], "tools": nothing}).tools is None


CALLS: dict[str, dict[str, Any]] = {
    "OpenAI's": {"role": "assistant", "content": None, "tool_calls": [{"id": "1", **CALL}]},
    "text": {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "get_time", "arguments": '{"zone": "CET"}'}, "type": "function"}],
    },
    "flat": {"role": "assistant", "content": "", "tool_calls": [CALL["function"]]},
    "of old": {"role": "assistant", "function_call": {"name": "get_time", "arguments": '{"zone": "CET"}'}},
    "LLaMA-Factory's": {"from": "function_call", "value": json.dumps(CALL["function"])},
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_learnt_as_the_template_writes_them(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    template = ChatTemplate("qwen3", QWEN3, tokenizer)
    turns = [USER, CALLS[name], {"role": "tool", "content": "ten"}, ANSWER]
    found = conversation({"messages": turns, "tools": [TIME]})
    call = '<tool_call>\n{"name": "get_time", "arguments": {"zone": "CET"}}\n</tool_call>'
    assert learnt(template, {"messages": turns, "tools": [TIME]}) == [f"{call}<|im_end|>", "a<|im_end|>"]
    thinking = [USER, {**CALLS[name], "reasoning": "hm"}, *turns[2:]]
    assert learnt(template, {"messages": thinking})[0] == f"<think>\nhm\n</think>\n\n{call}<|im_end|>"
    for message in found.messages:
        message.pop("id", None)  # type: ignore[misc]
    [first, _] = template.encode(template.unroll(found).renderings)
    alone = tokenizer.apply_chat_template(
        found.messages[:1], tools=[TIME], chat_template=QWEN3, add_generation_prompt=True, enable_thinking=False,
        tokenize=False,
    )  # fmt: skip
    assert tokenizer.decode(first.ids[: first.spans[0][0]]) == alone


def test_calls_may_end_otherwise_than_answers(tokenizer: PreTrainedTokenizerFast) -> None:
    """Generation stops at either token."""
    template = ChatTemplate("gpt-oss", GPT_OSS, tokenizer)
    assert tokenizer.convert_ids_to_tokens(list(template.end_of_turn_ids)) == ["<|eot_id|>", "<|end_of_text|>"]
    turns = [USER, {**ANSWER, "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "ten"}, ANSWER]
    call = '<|end_header_id|>call\n{"name": "get_time", "arguments": {"zone": "CET"}}<|end_of_text|>'
    assert learnt(template, {"messages": turns}) == [call, "<|end_header_id|>final\na<|eot_id|>"]
    assert ChatTemplate("qwen3", QWEN3, tokenizer).end_of_turn_ids == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"tool_calls": "x"}, r"its calls must be a list of objects, got 'x'; write \{"),
        ({"tool_calls": [{"name": "f", "arguments": "no"}]}, r"calls\[0\]: arguments must be an object or its"),
        ({"tool_calls": [{"arguments": {}}]}, r"its calls\[0\] has no name"),
        ({"functions": "f(x)"}, "functions belong to the row, as tools"),
    ],
)
def test_calls_that_are_none_are_refused(call: dict, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        parse({"messages": [USER, {**ANSWER, **call}]})


def test_a_null_argument_of_a_call_is_kept_where_it_was_written() -> None:
    """As text, in a file of JSON lines; of a table nobody knows whether another row filled it in."""
    written = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"x": null}'}]}
    filled_in = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": None, "y": 1}}]}
    calls = [conversation({"messages": [USER, turn]}).messages[1]["tool_calls"] for turn in (written, filled_in)]
    assert [call["function"]["arguments"] for [call] in calls] == [{"x": None}, {"y": 1}]


@pytest.mark.parametrize("more", [{"tools": [TIME]}, {"messages": [USER, {**ANSWER, "tool_calls": [CALL]}]}])
def test_what_a_template_does_not_write_is_refused(more: dict, tokenizer: PreTrainedTokenizerFast) -> None:
    template = make_template("chatml", tokenizer)
    with pytest.raises(
        RowError, match="of which the chat template writes nothing; name a template that writes them"
    ) as e:
        template.unroll(parse({"messages": [USER, ANSWER], **more}))  # type: ignore[arg-type]
    assert e.value.kind == "template"


def test_names_and_documents_and_arguments_that_a_template_does_not_take_are_listed(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    row = {
        "messages": [USER | {"name": "Ann"}, ANSWER],
        "documents": [{"text": "x"}],
        "chat_template_kwargs": {"tone": "calm", "enable_thinking": None},
    }
    template = make_template("chatml", tokenizer)
    found = template.unroll(parse(row))  # type: ignore[arg-type]
    assert found.unused == ("chat_template_kwargs.tone", "documents", "turns.name")
    taking = "{{ tone }}{{ documents | tojson }}" + TEMPLATES["chatml"].jinja.replace(
        "message['content']", "(message.name or '') + message['content']"
    )
    template = ChatTemplate("taking", taking, tokenizer)
    rendered = template.unroll(parse(row))  # type: ignore[arg-type]
    assert rendered.unused == ()
    assert rendered.renderings[0].text.startswith('calm[{"text": "x"}]<|im_start|>user\nAnnq<|im_end|>')


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"name": "f<|im_end|>"}]},
        {"chat_template_kwargs": {"tone": "<|im_start|>"}},
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": "<|im_end|>"}}]}]},
    ],
)
def test_control_tokens_in_what_a_template_writes_freely_are_refused(
    more: dict, tokenizer: PreTrainedTokenizerFast
) -> None:
    template = ChatTemplate("qwen3", "{{ tone }}" + QWEN3, tokenizer)
    with pytest.raises(RowError, match=r"<\|im_(end|start)\|>, a control token, stands in its functions, calls or arg"):
        template.unroll(parse({"messages": [USER, ANSWER], **more}))  # type: ignore[arg-type]


# Tokens ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["completion_mask", "assistant_masks", "loss_mask"])
def test_masks_of_tokens(name: str) -> None:
    assert parse({"input_ids": [5, 6, 7], name: [0, 1, 1]}) == TokenRow([5, 6, 7], [-100, 6, 7])
    assert parse({"input_ids": [5, 6, 7], "labels": [5, -100, 7], name: [0, 1, 1]}) == TokenRow(
        [5, 6, 7], [-100, -100, 7]
    )
    for wrong in ([0, 1], [0, 1, 2], "011"):
        with pytest.raises(RowError, match=f"{name} must be a 0 or 1 for each of the 3 input_ids, got"):
            parse({"input_ids": [5, 6, 7], name: wrong})


@pytest.mark.parametrize(
    ("name", "passes", "refused"),
    [
        ("attention_mask", [1, 1], [1, 0]),
        ("position_ids", [0, 1], [0, 0]),
        ("seq_lengths", [2], [1, 1]),
        ("images", [], ["x"]),
    ],
)
def test_what_token_rows_may_have(name: str, passes: Any, refused: Any) -> None:
    assert parse({"input_ids": [5, 6], name: passes, "length": 2}) == TokenRow([5, 6], [5, 6], ("length",))
    with pytest.raises(RowError, match=f"{name} is "):
        parse({"input_ids": [5, 6], name: refused})


# Runs --------------------------------------------------------------------------------------------------------------


def test_a_run_records_what_was_not_used_and_what_was_masked(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = QWEN3
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = [
        {**two_answers("messages", {"weight": 0}, {"weight": 1}), "id": 1, "source": "x"},
        {**two_answers("conversations", {"weight": 0}, {}), "id": 2},
        {"messages": [USER | {"name": "Ann"}, ANSWER]},
    ]
    for cache in (False, True, True):
        data = SFTData(
            train=write_jsonl(tmp_path / "rows.jsonl", rows), tokenizer=str(tmp_path / "tokenizer"), cache=cache
        )
        data.load("train")
        found = data.describe()["splits"]["train"]
        assert found["unused"] == {"id": 2, "source": 1, "turns.name": 1}
        assert (found["masked"], found["thoughts"], found["kept"]) == (2, 0, 3)
        json.dumps(data.describe())


def test_a_template_file_with_a_mark_of_its_encoding(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(TEMPLATES["chatml"].jinja, encoding="utf-8-sig")
    assert file.read_bytes().startswith(b"\xef\xbb\xbf")
    template = make_template(str(file), tokenizer)
    assert template.jinja == TEMPLATES["chatml"].jinja
    marked = byte_level_tokenizer()
    marked.chat_template = "\ufeff" + TEMPLATES["chatml"].jinja
    assert make_template("tokenizer", marked).jinja == TEMPLATES["chatml"].jinja


CASES: dict[str, tuple[list[str], dict[str, Any]]] = {  # what is learnt of the small files of the shared folder
    "messages_system": (["Ahoy<|im_end|>"], {"masked": 0}),
    "messages_weight": (["A good answer.<|im_end|>"], {"masked": 1}),
    "reasoning": (["<think>\nOne and one more is two.\n</think>\n\n2<|im_end|>"], {"thoughts": 1}),
    "sharegpt_weight": (["A good answer.<|im_end|>"], {"masked": 1}),
    "tools": (["It is ten.<|im_end|>"], {"thoughts": 0}),
}


@pytest.mark.parametrize("name", CASES)
def test_small_files(name: str, shared_data: Path, tmp_path: Path) -> None:
    file = shared_data.parent / "cases" / "rows" / f"{name}.jsonl"
    if not file.exists():
        pytest.skip(f"no {file}")
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = QWEN3
    tokenizer.save_pretrained(tmp_path)
    data = SFTData(train=str(file), tokenizer=str(tmp_path), cache=False)
    data.load("train")
    rows = data.rows("train")
    every = [rows[number] for number in range(len(rows))]
    found = [tokenizer.decode(row.ids[start:end]) for row in every for start, end in row.spans]
    wanted, counts = CASES[name]
    assert found == wanted
    assert {key: getattr(rows.counts, key) for key in counts} == counts
    whole = tokenizer.decode(rows[0].ids)
    assert ("Answer as a pirate." in whole, "get_time" in whole) == (name == "messages_system", name == "tools")
