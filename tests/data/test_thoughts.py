"""Thoughts are learnt as a model has to produce them, after the prompt that the exported template asks with."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from data_helpers import byte_level_tokenizer, chat, write_jsonl
from thinking_templates import GPT_OSS, GRANITE, QWEN3, R1, SMOLLM3
from transformers import PreTrainedTokenizerFast

from ts2_lightning.data import SFTData
from ts2_lightning.data.bundled import TEMPLATES
from ts2_lightning.data.encoding import encode_rows
from ts2_lightning.data.formats import Conversation
from ts2_lightning.data.sandbox import compiled
from ts2_lightning.data.sources import SourceRow
from ts2_lightning.data.templates import ChatTemplate
from ts2_lightning.data.thought_switches import with_defaults
from ts2_lightning.data.thoughts import ThoughtPlace, settled, split_thought
from ts2_lightning.evaluation import Question
from ts2_lightning.types import RowError, UserError

CHATML = TEMPLATES["chatml"].jinja
THOUGHT = "<think>\n{}\n</think>\n\n{}<|im_end|>"
CHANNELS = "<|end_header_id|>analysis\n{}<|im_end|><|start_header_id|>assistant<|end_header_id|>final\n{}<|eot_id|>"

# Template -> what is learnt with a thought and without one, and the arguments with which either is asked for.
KINDS: dict[str, tuple[str, str, str, dict, dict]] = {
    "qwen3": (QWEN3, THOUGHT, "{}<|im_end|>", {}, {"enable_thinking": False}),
    "gpt-oss": (GPT_OSS, CHANNELS, "<|end_header_id|>final\n{}<|eot_id|>", {}, {}),
    "smollm3": (SMOLLM3, THOUGHT, "{}<|im_end|>", {}, {"enable_thinking": False}),
    "granite": (GRANITE, THOUGHT, "{}<|im_end|>", {"thinking": True}, {}),
    "chatml": (CHATML, THOUGHT, "{}<|im_end|>", {}, {}),
    "r1": (R1, "{}\n</think>\n\n{}<|im_end|>", "", {}, {}),
}
FILLED = [name for name in KINDS if name not in ("r1", "gpt-oss")]


def turn(answer: str, thought: str | None = None, inside: bool = False) -> dict[str, Any]:
    if thought is None:
        return {"role": "assistant", "content": answer}
    if inside:
        return {"role": "assistant", "content": f"<think>\n{thought}\n</think>\n\n{answer}"}
    return {"role": "assistant", "content": answer, "reasoning_content": thought}


def question(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def texts(template: ChatTemplate, conversation: Any) -> list[tuple[str, list[str]]]:
    """Prompt and learnt text of each learnt turn, from the ids."""
    decode = template.tokenizer.decode
    encoded = template.encode(template.unroll(conversation).renderings)
    return [(decode(e.ids[:start]), [decode(e.ids[start:end])]) for e in encoded for start, end in e.spans]


def plainly(tokenizer: Any, jinja: str, messages: Sequence[dict], **arguments: Any) -> str:
    """What plain transformers asks with."""
    found = tokenizer.apply_chat_template(
        list(messages), chat_template=jinja, tokenize=False, add_generation_prompt=True, **arguments
    )
    return str(found)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_a_thought_follows_the_prompt_that_asks_for_it(
    name: str, inside: bool, tokenizer: PreTrainedTokenizerFast
) -> None:
    jinja, learnt, _, arguments, _ = KINDS[name]
    template = ChatTemplate(name, jinja, tokenizer)
    messages = [question("q"), turn("2", "one and\none", inside)]
    rendered = template.unroll(messages)
    assert (rendered.thinks, rendered.fits, rendered.unused) == (True, True, ())
    [(prompt, answers)] = texts(template, messages)
    assert answers == [learnt.format("one and\none", "2")]
    assert prompt == plainly(tokenizer, jinja, messages[:1], **arguments)
    prompting = template.prompting(thoughts=True)
    assert prompting.recorded == arguments
    assert (
        prompt
        == plainly(tokenizer, prompting.jinja, messages[:1])
        == tokenizer.decode(prompting.render_prompt([messages[0]]))
    )


@pytest.mark.parametrize("name", [name for name in KINDS if name != "r1"])
def test_an_answer_alone_follows_the_prompt_that_asks_for_no_thought(
    name: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    jinja, _, learnt, _, arguments = KINDS[name]
    template = ChatTemplate(name, jinja, tokenizer)
    messages = [question("q"), turn("2")]
    assert not template.unroll(messages).thinks
    [(prompt, answers)] = texts(template, messages)
    assert answers == [learnt.format("2")]
    assert prompt == plainly(tokenizer, jinja, messages[:1], **arguments)
    prompting = template.prompting(thoughts=False)
    assert prompting.recorded == arguments
    assert (
        prompt
        == plainly(tokenizer, prompting.jinja, messages[:1])
        == tokenizer.decode(prompting.render_prompt([messages[0]]))
    )


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("pattern", ["tt", "t-", "-t", "--", "t-t", "-t-", "ttt"])
def test_every_turn_of_a_conversation_follows_its_prompt(
    name: str, pattern: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Whatever the template does to earlier turns once others follow: each is asked for as in generation."""
    jinja, with_thought, without, asks, asks_not = KINDS[name]
    if name == "r1" and "-" in pattern:
        pytest.skip("its prompt always opens a thought")
    template = ChatTemplate(name, jinja, tokenizer)
    messages: list[dict[str, Any]] = []
    for number, kind in enumerate(pattern):
        messages += [question(f"q{number}"), turn(f"a{number}", f"t{number}" if kind == "t" else None, number % 2 == 1)]
    found = texts(template, messages)
    assert len(found) == len(pattern)
    for number, (kind, (prompt, [learnt])) in enumerate(zip(pattern, found, strict=True)):
        wanted = with_thought.format(f"t{number}", f"a{number}") if kind == "t" else without.format(f"a{number}")
        assert learnt == wanted
        before = settled(messages[: 2 * number + 1], "keep", template._renderer.switches.place)
        assert prompt == plainly(tokenizer, jinja, before, **(asks if kind == "t" else asks_not))


@pytest.mark.parametrize(
    ("name", "sequences"), [("qwen3", 3), ("gpt-oss", 3), ("smollm3", 1), ("chatml", 1), ("r1", 3)]
)
def test_turns_share_a_text_where_the_template_lets_them(
    name: str, sequences: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    template = ChatTemplate(name, KINDS[name][0], tokenizer)
    messages = [each for n in range(3) for each in (question("q"), turn(f"a{n}", f"t{n}"))]
    assert len(template.unroll(messages).renderings) == sequences
    last = ChatTemplate(name, KINDS[name][0], tokenizer, train_on="last")
    assert len(last.unroll(messages).renderings) == 1


def test_rows_that_are_unrolled_are_counted_once(tokenizer: PreTrainedTokenizerFast) -> None:
    template = ChatTemplate("qwen3", QWEN3, tokenizer)
    rows = [
        SourceRow({"messages": [question("q"), turn("a")]}, "x:1"),
        SourceRow(
            {"messages": [question("q"), turn("a", "t"), question("r"), turn("b", "u")], "weight": 0.5, "id": 7}, "x:2"
        ),
        SourceRow({"messages": [question("q"), {**turn("a", "t"), "train": False}, question("r"), turn("b")]}, "x:3"),
    ]
    found = encode_rows(rows, template)
    counts = found.counts
    assert (counts.read, counts.kept, counts.unrolled, counts.thoughts, counts.masked) == (3, 3, 1, 1, 1)
    assert counts.weighted == 1, "a row with a weight counts once, however many texts it becomes"
    assert (counts.tokens, counts.supervised_tokens) == (len(found.ids), int(found.supervised.sum()))
    assert counts.unused == {"id": 1}
    assert found.places.tolist() == [0, 1, 1, 2]
    assert found.weights.tolist() == [1, 0.5, 0.5, 1]
    short = max(len(row.ids) for row in (found[1], found[3]))
    cut = encode_rows(rows, template, max_length=short, overlong="drop")
    assert (cut.counts.kept, cut.counts.dropped, cut.counts.unrolled, cut.counts.turns_lost) == (3, 0, 0, 1)
    assert cut.counts.truncated == 0, "the last text of the second row was dropped, and nothing was cut"
    assert "1 turns of the assistant dropped with their texts as too long" in cut.counts.summary()
    cut = encode_rows(rows, template, max_length=short, overlong="truncate")
    assert cut.counts.truncated == 1
    assert encode_rows(rows[1:2], template, max_length=9, overlong="drop").counts.dropped == 1


@pytest.mark.parametrize("thinking", ["keep", "drop", "refuse"])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", FILLED)
def test_what_becomes_of_thoughts(name: str, inside: bool, thinking: str, tokenizer: PreTrainedTokenizerFast) -> None:
    jinja, with_thought, without, *_ = KINDS[name]
    template = ChatTemplate(name, jinja, tokenizer, thinking=thinking)  # type: ignore[arg-type]
    messages = [question("q"), turn("a"), question("r"), turn("b", "t", inside)]
    if thinking == "refuse":
        with pytest.raises(RowError, match=r"message 4 \(assistant\) has a thought, and data.thinking is refuse; keep"):
            template.unroll(messages)
        assert not template.unroll(messages[:2]).thinks
        return
    found = [learnt for _, [learnt] in texts(template, messages)]
    last = without.format("b") if thinking == "drop" else with_thought.format("t", "b")
    assert found == [without.format("a"), last]
    assert template.unroll(messages).thinks == (thinking == "keep")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("<think>a</think>b", ("a", "b")),
        ("  <think>\na\n</think>\n\n b", ("a", "b")),
        ("a</think>b", ("a", "b")),
        ("<think></think>b", ("", "b")),
        ("<think>a</think>b</think>", ("a", "b</think>")),
        ("b", None),
        ("say <think>a</think>", None),
        ("<think>a", None),
        ("a</think>b</think>c", None),
    ],
)
def test_where_a_thought_ends(content: str, parts: tuple[str, str] | None) -> None:
    assert split_thought(content) == parts


@pytest.mark.parametrize(
    ("jinja", "messages", "reason"),
    [
        (
            QWEN3,
            [question("q"), turn("Sure <think>a</think> b")],
            r"rewrites the content of message 2 \(assistant\); wh",
        ),
        (
            QWEN3,
            [question("q"), turn("a"), question("</think>?"), turn("b</think>c</think>d")],
            r"rewrites the content of message 4 \(assistant\); what lies before </think> is no thought",
        ),
        (QWEN3, [question("q"), turn("<think>a</think>\n")], r"message 2 \(assistant\) has a thought and no answer"),
        (
            QWEN3,
            [question("q"), {**turn("a", "t", inside=True), "reasoning_content": "u"}],
            r"message 2 \(assistant\) has different thoughts, in its content and beside it",
        ),
        (
            CHATML.replace("message['content']", "message['content'].split('</think>')[-1]").split("{% if add")[0],
            [question("q"), turn("a", "t")],
            r"message 2 \(assistant\) has a thought, but the chat template has no place for it; data.thinking drop",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:template 'mine'")  # the one without a prompt for generation
def test_thoughts_that_cannot_be_learnt_are_refused_with_a_way_on(
    jinja: str, messages: list, reason: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(RowError, match=reason) as error:
        ChatTemplate("mine", jinja, tokenizer).unroll(messages)
    assert "\n" not in str(error.value)


def test_the_same_thought_twice_is_one(tokenizer: PreTrainedTokenizerFast) -> None:
    message = {**turn("a", "t", inside=True), "reasoning_content": "t"}
    for jinja in (QWEN3, CHATML):
        [(_, [learnt])] = texts(ChatTemplate("mine", jinja, tokenizer), [question("q"), message])
        assert learnt == THOUGHT.format("t", "a")


def test_an_empty_block_is_no_thought(tokenizer: PreTrainedTokenizerFast) -> None:
    """Qwen's own way to say so is the template's; in a template that writes contents as they are it is content."""
    messages = [question("q"), turn("a", "", inside=True)]
    assert messages[1]["content"].startswith("<think>\n\n</think>")
    [(prompt, [learnt])] = texts(ChatTemplate("qwen3", QWEN3, tokenizer), messages)
    assert learnt == "a<|im_end|>"
    assert prompt.endswith("<think>\n\n</think>\n\n")
    [(_, [learnt])] = texts(ChatTemplate("chatml", CHATML, tokenizer), messages)
    assert learnt == messages[1]["content"] + "<|im_end|>"
    [(_, [learnt])] = texts(ChatTemplate("chatml", CHATML, tokenizer, thinking="drop"), messages)
    assert learnt == "a<|im_end|>"


def test_rows_without_thoughts_are_told_of_where_the_prompt_opens_one(tokenizer: PreTrainedTokenizerFast) -> None:
    template = ChatTemplate("r1", R1, tokenizer)  # silent: rows may all have thoughts
    with pytest.warns(
        UserWarning, match=r"in training an answer follows '.*assistant\\n', but .* gives '.*<think>\\n'"
    ):
        rendered = template.unroll([question("q"), turn("a")])
    assert not rendered.fits


# Arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "thought", "reason"),
    [
        ({"enable_thinking": True}, None, "enable_thinking is True, which asks for a thought, but the answer has none"),
        ({"enable_thinking": False}, "t", "enable_thinking is False, which asks for none, but the answer has one"),
        ({"enable_thinking": True}, "t", None),
        ({"enable_thinking": False}, None, None),
    ],
)
def test_arguments_of_a_row_that_ask_for_something_else_are_refused(
    given: dict, thought: str | None, reason: str | None, tokenizer: PreTrainedTokenizerFast
) -> None:
    template = ChatTemplate("qwen3", QWEN3, tokenizer)
    conversation = Conversation([question("q"), turn("a", thought)], arguments=given)  # type: ignore[list-item]
    if reason is None:
        [(prompt, _)] = texts(template, conversation)
        assert prompt == plainly(tokenizer, QWEN3, conversation.messages[:1], **given)  # type: ignore[arg-type]
    else:
        with pytest.raises(RowError, match=reason):
            template.unroll(conversation)


def test_arguments_of_settings(tokenizer: PreTrainedTokenizerFast) -> None:
    pirate = "{{ tone or 'plain' }}:" + QWEN3
    template = ChatTemplate("mine", pirate, tokenizer, arguments={"tone": "rough"})
    [(prompt, _)] = texts(template, [question("q"), turn("a")])
    assert prompt.startswith("rough:")
    row = Conversation([question("q"), turn("a")], arguments={"tone": "calm", "other": 1})  # type: ignore[list-item]
    assert texts(template, row)[0][0].startswith("calm:")
    assert template.unroll(row).unused == ("chat_template_kwargs.other",)
    prompting = template.prompting(thoughts=False)
    assert prompting.recorded == {"tone": "rough", "enable_thinking": False}
    assert prompt == plainly(tokenizer, prompting.jinja, [question("q")])
    assert template.identity != ChatTemplate("mine", pirate, tokenizer).identity
    assert template.identity == prompting.identity
    with pytest.raises(
        UserError, match=r"chat_template_kwargs: the template takes no argument 'tome'; did you mean ton"
    ):
        ChatTemplate("mine", pirate, tokenizer, arguments={"tome": 1})
    with pytest.raises(UserError, match="unknown thinking 'kep'; known: drop, keep, refuse; did you mean keep"):
        ChatTemplate("mine", pirate, tokenizer, thinking="kep")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [
        True,
        False,
        0,
        -3,
        1.5,
        "plain",
        'it\'s "{% raw %}" {{ x }} \\n\n\\',
        "é☃🙂\u2028",
        ["a", {"b": [True, "c'"]}],
        {},
    ],
)
@pytest.mark.parametrize(
    "source", ["{{ x | tojson }}", "\n  {%- if true %}{{ x | tojson }}{% endif %}\n", "  {{ x | tojson }}"]
)
def test_recorded_arguments_come_back(value: Any, source: str) -> None:
    """And change nothing else of what the template writes."""
    recorded = with_defaults(source, {"x": value})
    assert compiled(recorded).render() == compiled(source).render(x=value)
    assert compiled(recorded).render(x="other") == compiled(source).render(x="other")


def test_templates_that_ask_survive_pickling(tokenizer: PreTrainedTokenizerFast) -> None:
    template = ChatTemplate("qwen3", QWEN3, tokenizer, thinking="drop").prompting(thoughts=False)
    copy = pickle.loads(pickle.dumps(template))
    assert (copy.jinja, copy.recorded, copy.identity) == (template.jinja, template.recorded, template.identity)
    assert copy.render_prompt([question("q")]) == template.render_prompt([question("q")])


def test_an_opening_comes_after_a_thought(tokenizer: PreTrainedTokenizerFast) -> None:
    template = ChatTemplate("qwen3", QWEN3, tokenizer).prompting(thoughts=True)
    prompt = Question.asking("q").encode(template, opening="The answer")
    assert tokenizer.decode(prompt.ids).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nThe answer")


def test_settled_leaves_other_turns_alone() -> None:
    messages: Any = [*chat("<think>a</think>b", "c"), {"role": "tool", "content": "<think>d</think>e"}]
    for thinking in ("keep", "drop", "refuse"):
        assert settled(messages, thinking, ThoughtPlace("field")) == messages  # type: ignore[arg-type]


# Runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def thinker(tmp_path: Path) -> str:
    """A tokenizer with Qwen 3's manner, as files."""
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = QWEN3
    tokenizer.save_pretrained(tmp_path / "thinker")
    return str(tmp_path / "thinker")


def rows_with(thoughts: int, without: int) -> list[dict]:
    rows = [{"messages": [question(f"q{n}"), turn("a", "t")]} for n in range(thoughts)]
    return rows + [{"messages": [question(f"r{n}"), turn("b")]} for n in range(without)]


@pytest.mark.parametrize(
    ("thoughts", "without", "thinking", "recorded"),
    [
        (3, 0, "keep", {}),
        (0, 3, "keep", {"enable_thinking": False}),
        (2, 3, "keep", {"enable_thinking": False}),
        (3, 2, "keep", {}),
        (3, 0, "drop", {"enable_thinking": False}),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_asks_as_most_of_its_rows_were_trained(
    thoughts: int, without: int, thinking: str, recorded: dict, streaming: bool, thinker: str, tmp_path: Path
) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", rows_with(thoughts, without))
    data = SFTData(train=file, tokenizer=thinker, thinking=thinking, streaming=streaming, cache=False)  # type: ignore[arg-type]
    data.load("train")
    about = data.describe()
    assert about["chat_template_kwargs"] == recorded
    assert about["thinking"] == thinking
    assert about["chat_template"] == data.template.jinja
    prompt = data.tokenizer.decode(data.template.render_prompt([question("q")]))  # type: ignore[union-attr]
    assert prompt == plainly(data.tokenizer, about["chat_template"], [question("q")])
    assert prompt.endswith("<think>\n\n</think>\n\n") == bool(recorded)
    others = write_jsonl(tmp_path / "others.jsonl", rows_with(without, thoughts))
    data = SFTData(
        train=file, validation={"a": others, "b": others}, tokenizer=thinker, thinking=thinking, streaming=streaming,
        cache=False,
    )  # fmt: skip
    data.setup("fit")
    assert data.describe()["chat_template_kwargs"] == recorded, "rows that are not trained on have no say"
    if not streaming:
        split = about["splits"]["train"]
        assert split["thoughts"] == (thoughts if thinking == "keep" else 0)


def test_the_cache_knows_the_settings_and_the_thoughts(thinker: str, tmp_path: Path) -> None:
    def ids(rows: list[dict], **settings: Any) -> list[list[int]]:
        file = write_jsonl(tmp_path / "rows.jsonl", rows)
        data = SFTData(train=file, tokenizer=thinker, **settings)
        data.load("train")
        return [data.rows("train")[n].ids.tolist() for n in range(len(data.rows("train")))]

    kept = ids(rows_with(1, 1))
    assert ids(rows_with(1, 1)) == kept
    dropped = ids(rows_with(1, 1), thinking="drop")
    assert dropped != kept
    assert ids(rows_with(1, 1)) == kept
    other = json.loads(json.dumps(rows_with(1, 1)).replace('"t"', '"u"'))
    assert ids(other) != kept
    assert ids(other, thinking="drop") == dropped


@pytest.mark.parametrize("packing", ["none", "packed", "padding_free"])
@pytest.mark.parametrize("thoughts", [0, 7])
def test_streamed_rows_become_the_same_texts(thoughts: int, packing: Any, thinker: str, tmp_path: Path) -> None:
    """All of a row's texts are in the step that the row is in."""
    more = [question("q"), turn("and", "so" if thoughts else None)]
    rows = [{"messages": [*row["messages"], *more]} for row in rows_with(thoughts, 7 - thoughts)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    common: dict[str, Any] = {"tokenizer": thinker, "batch_size": 4, "micro_batch_size": 2, "packing": packing}
    data = SFTData(train=file, cache=False, **common)
    data.load("train")
    texts = data.rows("train")
    assert len(texts) == 14
    streamed = SFTData(train=file, streaming=True, shuffle_buffer=3, num_workers=0, **common)
    streamed.setup("fit")
    batches = list(streamed.train_dataloader())
    assert len(batches) == 4, "two steps of two micro-batches"
    assert sum(len(batch["supervised"]) for batch in batches) == int(texts.supervised.sum())
    assert sum(len(batch["row_index"]) for batch in batches) == 14
    of_step = [int(batches[n]["divisor"]) for n in (0, 2)]
    assert sum(of_step) == int(texts.supervised.sum())
