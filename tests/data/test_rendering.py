import re
from collections.abc import Sequence
from typing import Any

import jinja2
import pytest
from data_helpers import chat

from ts2_lightning.data.rendering import locate, with_sentinels, written
from ts2_lightning.data.text_layout import LayoutMaker, TextLayout
from ts2_lightning.types import UserError

LOOP = "{%% for m in messages %%}<%s>%s<end>\n{%% endfor %%}"
CONTROL = re.compile("<end>|<user>|<assistant>")


def render(source: str):
    template = jinja2.Template(source, keep_trailing_newline=True)
    return lambda messages, arguments=None, prompt=False: template.render(
        messages=messages, add_generation_prompt=prompt, **(arguments or {})
    )


def pieces(source: str, messages: list) -> tuple[str, ...]:
    return written(render(source)(with_sentinels(messages)), messages).pieces


def spans(source: str, messages: list) -> list[str]:
    text = render(source)(messages)
    found = written(render(source)(with_sentinels(messages)), messages)
    return [text[slice(*span)] for span in locate(text, found.pieces, found.slots, messages)]


def test_pieces_surround_the_contents() -> None:
    source = LOOP % ("{{ m.role }}", "{{ m.content }}")
    assert pieces(source, chat("x", "y")) == ("<user>", "<end>\n<assistant>", "<end>\n")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("m.content", [" \n hi\n ", "  yes \n"]),
        ("m.content | trim", ["hi", "yes"]),
        ("m.content.lstrip('\\n')", [" \n hi\n ", "  yes \n"]),
        ("m.content.rstrip()", [" \n hi", "  yes"]),
    ],
)
def test_stripped_contents_are_found(change: str, expected: list[str]) -> None:
    assert spans(LOOP % ("{{ m.role }}", f"{{{{ {change} }}}}"), chat(" \n hi\n ", "  yes \n")) == expected


def test_contents_like_the_template_are_not_mistaken_for_it() -> None:
    source = LOOP % ("{{ m.role }}", "{{ m.content }}")
    tricky = chat("<end>\n<assistant>yes", "<user>", "<end>\n", "<end>\n<end>\n")
    assert spans(source, tricky) == [message["content"] for message in tricky]


def test_a_content_made_of_the_closing_white_space_is_told_apart() -> None:
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}\n<end>{% endfor %}"
    assert spans(source, chat("a\n", "b\n\n")) == ["a", "b"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for m in messages[1:] %}{{ m.content }}{% endfor %}", r"drops the content of message 1 \(user\)"),
        (
            "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
            r"repeats the content of message 1 \(user\)",
        ),
        (
            "{% for m in messages | reverse %}{{ m.content }}{% endfor %}",
            r"moves the content of message 2 \(assistant\)",
        ),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "rewrites the content of message 1"),
        (
            "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}",
            r"rewrites the content of message 2 \(assistant\)",
        ),
        ("{% for m in messages %}{{ m.content }}{% endfor %}{{ messages[0].content | length }}", "rewrites"),
    ],
)
def test_templates_that_do_more_are_refused(source: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        spans(source, chat("why not", "<think>so</think>because"))


def laid_out(source: str, messages: list, learnt: Sequence[int] | None = None) -> tuple[LayoutMaker, list[TextLayout]]:
    maker = LayoutMaker(render(source), CONTROL, has_prompts="add_generation_prompt" in source)
    places = [place for place, m in enumerate(messages) if m["role"] == "assistant"] if learnt is None else learnt
    return maker, maker.layouts(with_sentinels(messages), {place: {} for place in places})


def find(source: str, messages: list) -> Any:
    maker, [layout] = laid_out(source, messages)
    rendering = maker.rendering(layout, messages)
    assert rendering.text == render(source)(messages)
    return rendering.text, rendering


def test_turns_end_with_the_first_control_token_after_the_content() -> None:
    source = LOOP % ("{{ m.role }}", "{{ m.content }} ###")
    text, rendering = find(source, chat("a", "b", "c", "d"))
    assert [text[turn.start : turn.close] for turn in rendering.turns] == ["b ###", "d ###"]
    assert {turn.control for turn in rendering.turns} == {"<end>"}
    assert len(rendering.controls) == 8
    assert rendering.plain


@pytest.mark.parametrize("content", ["a <end> b", "<user>", "x<assistant>"])
def test_control_strings_in_contents_are_noticed(content: str) -> None:
    _, rendering = find(LOOP % ("{{ m.role }}", "{{ m.content }}"), chat(content, "b"))
    assert not rendering.plain
    assert len(rendering.controls) == 4


def test_a_control_string_that_content_and_template_form_together_is_noticed() -> None:
    text, rendering = find("{% for m in messages %}<{{ m.content }}<end>{% endfor %}", chat("user>", "b"))
    assert text.startswith("<user>")
    assert len(rendering.controls) == 2
    assert not rendering.plain


def test_turns_without_an_end_are_refused() -> None:
    with pytest.raises(UserError, match=r"does not close the assistant's turn \(message 2\)"):
        find("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", chat("a", "b"))


PROMPTED = (  # answers after a prompt that opens a thought, which is taken out of what is not the last
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' and loop.last %}<think>{{ m.thinking or '' }}"
    "</think>{% endif %}{{ m.content }}<end>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("learnt", [[1], [3], [1, 3], [1, 5], [1, 3, 5]])
def test_a_turn_that_is_written_otherwise_at_the_end_is_learnt_there(learnt: list[int]) -> None:
    messages = chat("q1", "a1", "q2", "a2", "q3", "a3")
    for message in messages[1::2]:
        message["thinking"] = f"t{message['content']}"
    maker, layouts = laid_out(PROMPTED, messages, learnt)
    texts = [maker.rendering(layout, messages) for layout in layouts]
    assert [text.text for text in texts] == [render(PROMPTED)(messages[: place + 1]) for place in learnt]
    for text, place in zip(texts, learnt, strict=True):
        [turn] = text.turns
        assert text.text[: turn.start] == render(PROMPTED)(messages[:place], prompt=True)
        assert text.text[turn.start : turn.close] == f"<think>ta{place // 2 + 1}</think>a{place // 2 + 1}"


def test_a_conversation_of_thousands_of_turns_is_looked_at_here_and_there() -> None:
    source = LOOP % ("{{ m.role }}", "{{ m.content }}")
    messages = chat(*map(str, range(3000)))
    text, rendering = find(source, messages)
    assert [text[turn.start : turn.close] for turn in rendering.turns] == [m["content"] for m in messages[1::2]]
    with pytest.raises(UserError, match="of 3000 messages that is too much: split the conversation"):
        laid_out(PROMPTED, messages)


def test_an_error_names_the_message_that_makes_the_template_write_something_else() -> None:
    """Also where what it writes differs before that message."""
    source = "{% if messages[-1].content | length > 99 %}<user>long{% endif %}" + LOOP % (
        "{{ m.role }}",
        "{{ m.content }}",
    )
    maker, [layout] = laid_out(source, chat("a", "b" * 100))
    with pytest.raises(UserError, match=r"rewrites the content of message 2 \(assistant\)"):
        maker.rendering(layout, chat("a", "b" * 100))
