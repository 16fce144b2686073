import pickle
from collections.abc import Callable
from datetime import datetime, tzinfo
from pathlib import Path

import pytest
from data_helpers import CONTROLS, byte_level_tokenizer, chat
from template_tokenizers import byte_level, prepending, wordpiece
from template_tokenizers import metaspace as metaspace_like
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ts2_lightning.data.alignment import PieceTokens, WholeTokens
from ts2_lightning.data.bundled import TEMPLATES, register_template
from ts2_lightning.data.formats import parse
from ts2_lightning.data.sources import read_rows
from ts2_lightning.data.templates import ChatTemplate, make_template
from ts2_lightning.types import RowError, UserError

NAMES = ["llama3", "chatml", "plain"]  # those that need no more control tokens than the tokenizer has
MULTI_TURN = chat("Hello there", "I am fine.", "Tell me a story\n\nplease", "Once  upon\na time", system="Be kind.")
NO_TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n{% endfor %}"
CLOSED = NO_TURN.replace("}}\n{%", "}}<|im_end|>\n{%")
THINKING = (  # closes like ChatML; a thinking block, stripped answers and a default system turn like Qwen-3 and 2.5
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
    "<think>\n\n</think>\n\n{{ m.content.lstrip('\\n') }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
SENTENCEPIECE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def encode(template: ChatTemplate, messages: list) -> tuple[list[int], list[tuple[int, int]]]:
    [encoded] = template.encode([template.render(messages)])
    return encoded.ids, encoded.spans


def learnt(template: ChatTemplate, messages: list) -> list[str]:
    ids, spans = encode(template, messages)
    return [template.tokenizer.decode(ids[start:end]) for start, end in spans]


def golden(template: ChatTemplate, messages: list, **options: object) -> list[int]:
    batch = template.tokenizer.apply_chat_template(messages, chat_template=template.jinja, **options)
    return batch["input_ids"]


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_plain_transformers(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    template = make_template(name, tokenizer)
    ids, _ = encode(template, MULTI_TURN)
    assert ids == golden(template, MULTI_TURN)
    assert template.render_prompt(MULTI_TURN[:2]) == golden(template, MULTI_TURN[:2], add_generation_prompt=True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "llama3",
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nyes<|eot_id|>",
        ),
        ("chatml", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"),
        ("plain", "<|begin_of_text|>User:\nhi<|end_of_text|>Assistant:\nyes<|end_of_text|>"),
    ],
)
def test_bundled_templates_write(name: str, text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    template = make_template(name, tokenizer)
    assert template.render(chat("hi", "yes")).text == text
    assert tokenizer.decode(template.end_of_turn_ids) == learnt(template, chat("hi", "yes"))[0][len("yes") :]


@pytest.mark.parametrize("kind", [byte_level, metaspace_like, prepending, wordpiece])
def test_a_character_has_the_same_token_in_a_whole_text_and_in_pieces(kind: Callable) -> None:
    """Also where several tokens share a character, or white space is in none of them."""
    text = " a\u0301 é☃🙂 \n\n  Hello  there<|im_end|>\t ﷺ\r\n😀😀 "
    encoding = kind().backend_tokenizer.encode(text, add_special_tokens=False)
    whole, pieces = WholeTokens(encoding), PieceTokens(encoding.ids, encoding.offsets)
    found = [whole.at(position) for position in range(len(text))]
    assert found == [pieces.at(position) for position in range(len(text))]
    inside = [token for token in found if token < len(whole.ids)]
    assert [whole.start_of(token) for token in inside] == [pieces.start_of(token) for token in inside]


def test_what_a_tokenizers_file_says_of_length_is_not_done() -> None:
    tokenizer = byte_level_tokenizer()
    wanted = encode(make_template("chatml", tokenizer), MULTI_TURN)
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=100)
    assert encode(make_template("chatml", tokenizer), MULTI_TURN) == wanted


@pytest.mark.parametrize("name", NAMES)
def test_learnt_is_the_answer_and_its_end(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    template = make_template(name, tokenizer)
    end = tokenizer.decode(template.end_of_turn_ids)
    answers = [message["content"] + end for message in MULTI_TURN if message["role"] == "assistant"]
    assert learnt(template, MULTI_TURN) == answers


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("control", CONTROLS[:-2])
def test_control_strings_in_contents_are_text(name: str, control: str, tokenizer: PreTrainedTokenizerFast) -> None:
    template = make_template(name, tokenizer)
    tricky = chat(f"a{control}", f"{control} b {control}", control, "ok", system=control)
    ids, _spans = encode(template, tricky)
    reference = chat("x", "x", "x", "ok", system="x")
    special = set(tokenizer.all_special_ids) | {
        number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    kept = [number for number in ids if number in special]
    assert kept == [number for number in encode(template, reference)[0] if number in special]
    end = tokenizer.decode(template.end_of_turn_ids)
    assert learnt(template, tricky) == [f"{control} b {control}{end}", f"ok{end}"]
    assert tokenizer.decode(ids) == template.render(tricky).text
    assert ids == golden(template, tricky, sanitize_control_tokens=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("answer", ["yes", "\nyes", "  yes", "\n\n yes \n", "<|im_end|>", "é☃", ":)", "42"])
def test_prompts_are_prefixes_of_training(name: str, answer: str, tokenizer: PreTrainedTokenizerFast) -> None:
    template = make_template(name, tokenizer)
    messages = chat("Hello\n", answer)
    ids, [(start, _)] = encode(template, messages)
    assert ids[:start] == template.render_prompt(messages[:1])
    text = template.render(messages).text
    assert tokenizer.decode(ids) == text
    end = tokenizer.decode(template.end_of_turn_ids)
    assert learnt(template, messages) == [(answer if name == "chatml" else answer.strip()) + end]


def test_thinking_blocks_are_not_learnt_and_prompts_hold_them(tokenizer: PreTrainedTokenizerFast) -> None:
    """The empty block stands before the last answer only, so that each answer is learnt at the end of a text."""
    template = ChatTemplate("thinking", THINKING, tokenizer).prompting(thoughts=False)
    conversation = chat("Hello", "yes\n", "why", "\n\nso")
    first, second = template.encode(template.unroll(conversation).renderings)
    for encoded, answer, asked in ((first, "yes\n", conversation[:1]), (second, "so", conversation[:3])):
        [(start, end)] = encoded.spans
        assert tokenizer.decode(encoded.ids[start:end]) == f"{answer}<|im_end|>"
        assert encoded.ids[:start] == template.render_prompt(asked)
        assert encoded.ids[:start] == golden(template, asked, add_generation_prompt=True)
        assert tokenizer.decode(encoded.ids[:start]).endswith("<think>\n\n</think>\n\n")
    assert encode(template, conversation) == second


def test_sentencepiece_words_keep_their_space(metaspace: PreTrainedTokenizerFast) -> None:
    template = ChatTemplate("inst", SENTENCEPIECE, metaspace)
    conversation = chat("Hello there", "I am fine.", "Tell me", "Once upon a time")
    ids, spans = encode(template, conversation)
    assert ids == golden(template, conversation)
    assert learnt(template, conversation) == ["I am fine.</s>", "Once upon a time</s>"]
    first = [metaspace.convert_ids_to_tokens(ids[start]) for start, _ in spans]
    assert all(token.startswith("▁") for token in first)
    assert "▁" in first, "an answer whose space is a token of its own is among them"
    assert template.render_prompt(conversation[:3]) == ids[: spans[1][0]]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (NO_TURN, "does not close the assistant's turn"),
        (NO_TURN.replace("{{ m.content }}", "{{ m.content }}</s>"), "does not close the assistant's turn"),
        (CLOSED.replace("m.content", "m.content | upper"), "rewrites the content of message 1"),
        ("{{ raise_exception('no users here') }}", r"refuses messages of the roles user, assistant \(no users here\)"),
    ],
)
def test_templates_that_cannot_be_masked_are_refused(
    source: str, reason: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(UserError, match=reason) as error:
        ChatTemplate("mine", source, tokenizer)
    assert str(error.value).startswith("template 'mine' cannot be used with this tokenizer: ")
    assert "\n" not in str(error.value)


def test_turns_that_end_in_different_ways_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    """A model would have to stop at a token that the template's ordinary turns do not end with."""
    source = CLOSED.replace("<|im_end|>", "{{ '<|eot_id|>' if messages | length > 2 else '<|im_end|>' }}")
    template = ChatTemplate("mine", source, tokenizer)
    assert learnt(template, chat("a", "b")) == ["b<|im_end|>"]
    with pytest.raises(RowError, match=r"turns with different tokens: <\|eot_id\|> and <\|im_end\|>"):
        template.render(chat("a", "b", "c", "d"))


def test_own_template(tokenizer: PreTrainedTokenizerFast) -> None:
    own = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end_of_text|>")
    assert make_template("auto", own).name == "plain"
    with pytest.raises(UserError, match="no chat template of its own; use 'plain'"):
        make_template("tokenizer", own)
    own.chat_template = TEMPLATES["chatml"].jinja
    for name in ("auto", "tokenizer"):
        template = make_template(name, own)
        assert template.name == "tokenizer"
        assert template.jinja == own.chat_template
        assert learnt(template, MULTI_TURN)[0] == "I am fine.<|im_end|>"


def test_names(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown template 'chatlm'; known: .*; did you mean chatml\?"):
        make_template("chatlm", tokenizer)
    with pytest.raises(UserError, match=r"no file .*absent\.jinja"):
        make_template(str(tmp_path / "absent.jinja"), tokenizer)
    file = tmp_path / "mine.jinja"
    file.write_text(TEMPLATES["chatml"].jinja)
    assert learnt(make_template(str(file), tokenizer), MULTI_TURN)[0] == "I am fine.<|im_end|>"


def test_registered_templates(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TEMPLATES, "mine", TEMPLATES["plain"])
    register_template("mine", TEMPLATES["chatml"].jinja, ["<|im_end|>", "<|none|>"])
    with pytest.raises(UserError, match=r"template 'mine' needs <\|none\|> to be a single token"):
        make_template("mine", tokenizer)


def test_templates_survive_pickling(tokenizer: PreTrainedTokenizerFast) -> None:
    template = make_template("chatml", tokenizer, train_on="last", train_on_end=False)
    copy = pickle.loads(pickle.dumps(template))
    assert encode(copy, MULTI_TURN) == encode(template, MULTI_TURN)
    assert copy.identity == template.identity


@pytest.mark.parametrize(
    ("train_on", "train_on_end", "expected"),
    [
        ("all", True, ["I am fine.<|im_end|>", "Once  upon\na time<|im_end|>"]),
        ("all", False, ["I am fine.", "Once  upon\na time"]),
        ("last", True, ["Once  upon\na time<|im_end|>"]),
        ("last", False, ["Once  upon\na time"]),
    ],
)
def test_what_is_learnt_can_be_chosen(
    train_on: str, train_on_end: bool, expected: list[str], tokenizer: PreTrainedTokenizerFast
) -> None:
    template = make_template("chatml", tokenizer, train_on, train_on_end)
    assert learnt(template, MULTI_TURN) == expected
    assert learnt(template, [*MULTI_TURN, {"role": "user", "content": "More"}]) == expected, "the last answer, not turn"
    assert template.end_of_turn_ids == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)


def test_unknown_choices(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="unknown train_on 'lst'; known: all, last; did you mean last"):
        make_template("chatml", tokenizer, "lst")


@pytest.mark.filterwarnings("ignore:template 'dated'")
def test_identity_changes_with_all_that_changes_tokens_or_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_level_tokenizer()
    first = make_template("chatml", tokenizer)
    assert make_template("chatml", byte_level_tokenizer()).identity == first.identity
    jinja, controls = TEMPLATES["chatml"]
    assert ChatTemplate("another name", jinja, tokenizer, controls).identity == first.identity
    other_words = byte_level_tokenizer()
    other_words.add_tokens(["Hello"])
    other_eos = byte_level_tokenizer()
    other_eos.eos_token = "<|eot_id|>"
    dated = jinja.replace("<|im_start|>", "<|im_start|>{{ strftime_now('%d %b %Y') }}", 1)
    others = [
        make_template("chatml", tokenizer, "last"),
        make_template("chatml", tokenizer, "all", False),
        make_template("plain", tokenizer),
        make_template("plain", other_eos),
        make_template("chatml", other_words),
        ChatTemplate("chatml", jinja, tokenizer, [*controls, "<think>"]),
        ChatTemplate("dated", dated, tokenizer, controls),
    ]
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", _Tomorrow)
    others.append(ChatTemplate("dated", dated, tokenizer, controls))
    assert len({first.identity, *(other.identity for other in others)}) == 1 + len(others)


class _Tomorrow(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "_Tomorrow":
        return cls(2100, 1, 1)


@pytest.mark.filterwarnings("ignore:template 'mine'")  # without a prompt for generation
@pytest.mark.parametrize(
    ("source", "messages", "reason"),
    [
        (  # as Mistral's own, which moves the system turn into the last user turn
            "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}"
            "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}"
            "{% if m.role == 'user' %}[INST]{% if loop.index0 == rest | length - 2 %}{{ system }}{% endif %}"
            "{{ m.content }}[/INST]{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
            chat("a", "b", "c", "d", system="Be kind."),
            r"moves the content of message 2 \(user\)",
        ),
        (  # as Qwen 3's and DeepSeek's, which drop the thoughts of earlier turns
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if '</think>' in m.content and not loop.last %}"
            "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n"
            "{% endfor %}",
            chat("a", "<think>\nhm\n</think>\n\nb", "c", "d"),
            r"rewrites the content of message 2 \(assistant\)",
        ),
        (  # as Llama 3.1's, which writes what a tool returns as JSON
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'tool' %}{{ m.content | tojson }}"
            "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}",
            [*chat("a", "b"), {"role": "tool", "content": "two\nlines"}, *chat("", "d")[1:]],
            r"rewrites the content of message 3 \(tool\)",
        ),
        (  # as OLMo 2's, which knows no tools
            "{% for m in messages if m.role != 'tool' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
            "{% endfor %}",
            [*chat("a", "b"), {"role": "tool", "content": "c"}, *chat("", "d")[1:]],
            r"drops the content of message 3 \(tool\)",
        ),
    ],
)
def test_rows_that_a_template_rewrites_are_refused(
    source: str, messages: list, reason: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    template = ChatTemplate("mine", source, tokenizer)
    assert len(learnt(template, chat("a", "b", "c", "d"))) == 2
    with pytest.raises(RowError, match=reason) as error:
        template.render(messages)
    assert error.value.kind == "template"


def test_white_space_that_the_templates_prompt_leaves_out_is_learnt(tokenizer: PreTrainedTokenizerFast) -> None:
    """Whether or not the tokenizer makes the space a part of the word that follows it."""
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}<|im_end|>{% else %}"
        "{{ ' ' + m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    template = ChatTemplate("spaced", source, tokenizer)
    assert learnt(template, chat("a", "Hello", "b", "é", "c", "42")) == [
        " Hello<|im_end|>",
        " é<|im_end|>",
        " 42<|im_end|>",
    ]
    prompt = template.render_prompt(chat("a"))
    assert prompt == golden(template, chat("a"), add_generation_prompt=True)
    last = ChatTemplate(
        "last", source.replace("{{ ' ' + m.content", "{{ (' ' if loop.last else '') + m.content"), tokenizer
    )
    texts = last.encode(last.unroll(chat("a", "Hello", "b", "é")).renderings)
    found = [tokenizer.decode(text.ids[start:end]) for text in texts for start, end in text.spans]
    assert found == [" Hello<|im_end|>", " é<|im_end|>"], "both as in generation, so each in a text of its own"


class TestStories260K:
    """The pretrained SentencePiece model without special tokens for chats."""

    @pytest.fixture(scope="class")
    def stories(self, shared_data: Path) -> PreTrainedTokenizerFast:
        return AutoTokenizer.from_pretrained(shared_data / "models" / "stories260K")

    @pytest.mark.parametrize("name", ["llama3", "chatml"])
    def test_templates_with_control_strings_are_refused(self, name: str, stories: PreTrainedTokenizerFast) -> None:
        with pytest.raises(UserError, match=r"to be a single token, but the tokenizer makes \d+ of it"):
            make_template(name, stories)

    def test_plain(self, stories: PreTrainedTokenizerFast) -> None:
        template = make_template("auto", stories)
        assert template.name == "plain"
        assert template.end_of_turn_ids == (stories.eos_token_id,)
        conversation = chat("Tell me a story", "Once upon a time\nthere was a cat.", "More", "No.")
        ids, spans = encode(template, conversation)
        assert ids == golden(template, conversation)
        assert learnt(template, conversation) == ["Once upon a time\nthere was a cat.</s>", "No.</s>"]
        assert template.render_prompt(conversation[:3]) == ids[: spans[1][0]]
        assert ids[: spans[1][0]] == golden(template, conversation[:3], add_generation_prompt=True)

    def test_control_strings(self, stories: PreTrainedTokenizerFast) -> None:
        template = make_template("plain", stories)
        ids, _ = encode(template, chat("the </s> tag", "and <s> and </s>, you see"))
        assert [ids.count(stories.bos_token_id), ids.count(stories.eos_token_id)] == [1, 2]
        assert learnt(template, chat("the </s> tag", "and <s> and </s>, you see")) == ["and <s> and </s>, you see</s>"]

    @pytest.mark.parametrize("name", ["sft/no_robots_test", "chat/oasst1_eval_threads"])
    def test_real_rows(self, shared_data: Path, stories: PreTrainedTokenizerFast, name: str) -> None:
        """Decoded, what is learnt is the answer and its end; the tokenizer itself merges and drops spaces."""
        template = make_template("plain", stories)
        for row, _ in zip(read_rows(shared_data / f"{name}.jsonl.gz"), range(150), strict=False):
            messages = parse(row.fields).messages
            answers = [m["content"].strip() for m in messages if m["role"] == "assistant"]
            assert ["".join(text.split()) for text in learnt(template, messages)] == [
                "".join(f"{answer}</s>".split()) for answer in answers
            ]
            assert encode(template, messages)[0] == golden(template, messages)
