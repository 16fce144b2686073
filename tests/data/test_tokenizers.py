"""Tokenizers with something wrong: one line that names the file or the template, and templates that need none of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_helpers import byte_level_tokenizer, chat
from transformers import PreTrainedTokenizerFast

from tests.support.errors import refused
from ts2_lightning.data import load_tokenizer, make_template
from ts2_lightning.data.controls import TextEncoder
from ts2_lightning.data.encoding import encode_rows
from ts2_lightning.data.rows import SourceRow
from ts2_lightning.data.templates import ChatTemplate
from ts2_lightning.types import RowError, UserError

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tokenizer, to be damaged; the hub is out of reach."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    byte_level_tokenizer().save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


def edited(file: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Changes what a JSON file says."""

    def edit(directory: Path) -> None:
        content = json.loads((directory / file).read_text())
        change(content)
        (directory / file).write_text(json.dumps(content))

    return edit


def config(**entries: Any) -> Callable[[Path], object]:
    return edited("tokenizer_config.json", lambda content: content.update(entries))


def model(**entries: Any) -> Callable[[Path], object]:
    def change(content: dict[str, Any]) -> None:
        content["model"] = entries
        content["added_tokens"] = []

    return edited("tokenizer.json", change)


def written(file: str, content: bytes) -> Callable[[Path], object]:
    return lambda directory: (directory / file).write_bytes(content)


def cut(directory: Path) -> None:
    content = (directory / "tokenizer.json").read_bytes()
    (directory / "tokenizer.json").write_bytes(content[: len(content) // 2])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "broken": (written("tokenizer_config.json", b'{"a": '), "tokenizer_config.json is not readable JSON: Expecting"),
    "a list": (written("tokenizer_config.json", b"[1]"), "tokenizer_config.json is no JSON object"),
    "null": (written("tokenizer_config.json", b"null"), "tokenizer_config.json is no JSON object"),
    "nothing": (written("tokenizer_config.json", b""), "tokenizer_config.json is not readable JSON"),
    "no text": (written("tokenizer_config.json", b"\xff{}"), "tokenizer_config.json is not readable JSON"),
    "deep": (written("tokenizer_config.json", b"[" * 10**5), "tokenizer_config.json is not readable JSON"),
    "cut": (cut, "tokenizer.json is not readable JSON"),
    "tokenizer.json of nothing": (written("tokenizer.json", b""), "tokenizer.json is not readable JSON"),
    "tokenizer.json of a list": (written("tokenizer.json", b"[]"), "tokenizer.json is no JSON object"),
    "tokenizer.json of an empty object": (written("tokenizer.json", b"{}"), "KeyError"),
    "no tokenizer.json": (lambda directory: (directory / "tokenizer.json").unlink(), "it has no tokenizer.json"),
    "a model of no kind": (model(type="Nope"), "Exception: data did not match"),
    "special tokens": (written("special_tokens_map.json", b"[1]"), "special_tokens_map.json is no JSON object"),
    "eos is a number": (config(eos_token=5), "TypeError: Special token eos_token"),
    "class is a number": (config(tokenizer_class=5), "AttributeError"),
    "templates without texts": (config(chat_template=[{"name": "default"}]), "KeyError: 'template'"),
    "templates without names": (config(chat_template=[1]), "TypeError"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BROKEN)
def test_tokenizers_that_cannot_be_loaded(directory: Path, name: str) -> None:
    damage, reason = BROKEN[name]
    damage(directory)
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(UserError, match=reason) as error:
        load_tokenizer(str(directory))
    assert str(error.value).startswith(f"data.tokenizer: cannot load '{directory}' (")
    assert str(error.value).endswith("; fetch it again, or name another")
    assert "\n" not in str(error.value)


OWN: dict[str, tuple[Any, str]] = {
    "several": (
        [{"name": "rag", "template": CHATML}, {"name": "tool_use", "template": CHATML}],
        r"is one of several \(rag, tool_use\), none of them called default; write one to a \.jinja file",
    ),
    "a number": (5, "is no text but int; mend its chat_template, or use 'plain'"),
    "a default that is a number": ([{"name": "default", "template": 5}], "is no text but int"),
    "wrong jinja": ("{% for m in messages %}", r"is not valid jinja \(line 1: "),
    "far too long": ("{# " + "x" * 300_000 + " #}", "more than the 262,144 characters"),
}


@pytest.mark.parametrize("name", OWN)
def test_templates_of_a_tokenizer_that_cannot_be_used(directory: Path, name: str) -> None:
    """They are no obstacle to another template."""
    template, reason = OWN[name]
    config(chat_template=template)(directory)
    tokenizer = load_tokenizer(str(directory))
    for choice in ("auto", "tokenizer"):
        with refused(f"template 'tokenizer'.*{reason}"):
            make_template(choice, tokenizer)
    for choice in ("plain", "chatml"):
        assert make_template(choice, tokenizer).name == choice


def test_the_default_one_of_several_templates(directory: Path) -> None:
    config(chat_template=[{"name": "rag", "template": "x"}, {"name": "default", "template": CHATML}])(directory)
    with pytest.warns(UserWarning, match="sample with the former"):
        template = make_template("auto", load_tokenizer(str(directory)))
    assert template.jinja == CHATML


VOCABULARIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "none": (model(type="BPE", vocab={}, merges=[]), "the tokenizer makes no token of"),
    "nothing for unknown": (model(type="WordLevel", vocab={"a": 0}, unk_token="<unk>"), r"fails on this text .*UNK"),
    "no unknown": (model(type="Unigram", vocab=[["a", 0.0]], unk_id=None), "fails on this text .*unk_id"),
}  # fmt: skip


@pytest.mark.parametrize("name", VOCABULARIES)
def test_vocabularies_of_too_little(directory: Path, name: str) -> None:
    damage, reason = VOCABULARIES[name]
    damage(directory)
    with pytest.raises(UserError, match=f"template 'plain' cannot be used with this tokenizer: .*{reason}"):
        make_template("plain", load_tokenizer(str(directory)))


def test_a_post_processor_that_leaves_the_text_out(directory: Path) -> None:
    processor = {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}
    edited("tokenizer.json", lambda content: content.update(post_processor=processor))(directory)
    with pytest.raises(UserError, match="makes no token of the end of the text"):
        make_template("plain", load_tokenizer(str(directory)))


def test_a_text_that_a_tokenizer_fails_on_is_the_rows(tokenizer: PreTrainedTokenizerFast) -> None:
    """Whatever it raises, once some text is not to its liking."""
    template = make_template("chatml", tokenizer)

    class Picky:
        """A backend that does not take the letter x."""

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer.backend_tokenizer, name)

        def encode_batch(self, texts: list[str], **options: Any) -> Any:
            if any("x" in text for text in texts):
                raise Exception("no\nx")
            return tokenizer.backend_tokenizer.encode_batch(texts, **options)

    class Wrapper:
        backend_tokenizer = Picky()

    template._texts = TextEncoder(Wrapper(), template._special)  # type: ignore[arg-type]
    rows = [SourceRow({"prompt": text, "completion": "yes"}, f"rows.jsonl:{text}") for text in ("a", "x", "b", "xx")]
    found = encode_rows(rows, template)
    assert found.counts.kept == 2
    assert [reject.origin for reject in found.rejects] == ["rows.jsonl:x", "rows.jsonl:xx"]
    assert {reject.reason for reject in found.rejects} == {"the tokenizer fails on this text (no x)"}
    assert found.counts.rejected == {"other": 2}


@pytest.mark.parametrize("text", ["\x00", "a\x00b", "\ufffe", "\U0010ffff", "\u200b", "\r", "\u2028", "\ue0000\ue001"])
def test_odd_characters_are_characters(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    template = make_template("chatml", tokenizer)
    [encoded] = template.encode([template.render(chat(text, f"{text}."))])
    [(start, end)] = encoded.spans
    assert tokenizer.decode(encoded.ids[start:end]) == f"{text}.<|im_end|>"


def test_half_a_character_makes_a_bad_row(tokenizer: PreTrainedTokenizerFast) -> None:
    """Also if it comes from the user's own function."""
    rows = [
        SourceRow({"prompt": "a", "completion": "\ud800"}, "x:1"),
        SourceRow({"prompt": "a", "completion": "b"}, "x:2"),
    ]
    found = encode_rows(rows, make_template("chatml", tokenizer), lambda fields: chat(*fields.values()))
    assert found.counts.rejected == {"not UTF-8": 1}
    assert found.places.tolist() == [1]


def test_spans_of_many_turns(tokenizer: PreTrainedTokenizerFast) -> None:
    """Many turns are looked up in a list of all offsets, few by the backend: the same spans."""
    template = make_template("chatml", tokenizer)
    turns = chat(*["Hello", "I am fine é☃"] * 100)
    [encoded] = template.encode([template.render(turns)])
    assert len(encoded.spans) == 100
    assert {tokenizer.decode(encoded.ids[start:end]) for start, end in encoded.spans} == {"I am fine é☃<|im_end|>"}


@pytest.mark.filterwarnings("ignore:template 'short'")
def test_errors_name_the_first_of_thousands_of_roles(tokenizer: PreTrainedTokenizerFast) -> None:
    source = "{% if messages | length > 4 %}{{ raise_exception('too many') }}{% endif %}" + CHATML
    with pytest.raises(RowError, match=r"of the roles user, assistant, .* \.\.\. \(too many\)") as error:
        ChatTemplate("short", source, tokenizer).render(chat(*["a", "b"] * 100))
    assert len(str(error.value)) < 400
