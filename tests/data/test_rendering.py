import re

import jinja2
import pytest
from data_helpers import chat

from ts2_lightning.data.rendering import find_turns, locate_contents, template_pieces
from ts2_lightning.types import UserError

LOOP = "{%% for m in messages %%}<%s>%s<end>\n{%% endfor %%}"


def render(source: str):
    template = jinja2.Template(source, keep_trailing_newline=True)
    return lambda messages: template.render(messages=messages)


def pieces(source: str, messages: list) -> tuple[str, ...]:
    return template_pieces(render(source), [message["role"] for message in messages])


def spans(source: str, messages: list) -> list[str]:
    text = render(source)(messages)
    return [text[slice(*span)] for span in locate_contents(text, pieces(source, messages), messages)]


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


def find(source: str, messages: list):
    text = render(source)(messages)
    contents = locate_contents(text, pieces(source, messages), messages)
    return text, find_turns(text, contents, messages, re.compile("<end>|<user>|<assistant>"))


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
    with pytest.raises(UserError, match="does not close the assistant's turn"):
        find("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}", chat("a", "b"))
    with pytest.raises(UserError, match="with different tokens: <end> and <user>"):
        find("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<end>", chat("a", "b", "c", "d"))
