"""The sources of chat templates: the package, a file, or the tokenizer."""

import os
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from ts2_lightning.data.bundled import TEMPLATES
from ts2_lightning.data.files import expanded, readable, why_missing
from ts2_lightning.data.naming import unknown_name
from ts2_lightning.types import UserError

LARGEST_TEMPLATE = 1 << 18
"""Characters of a template; one of a family of models has 2 to 30 thousand."""


class TemplateSource(NamedTuple):
    """A chat template that is not compiled yet.

    Attributes:
        name: name for messages and records.
        jinja: source of the template.
        controls: strings that must be single tokens of the tokenizer.
    """

    name: str
    jinja: str
    controls: tuple[str, ...] = ()


def find_template(name: str, tokenizer: PreTrainedTokenizerBase) -> TemplateSource:
    """The chat template of a name.

    Args:
        name: name of the template, see `templates.make_template`.
        tokenizer: tokenizer, which may have a template of its own.

    Raises:
        UserError: if there is none of that name, or it is not a text of a template's size.
    """
    if name == "auto":
        name = "tokenizer" if tokenizer.chat_template else "plain"
    if name == "tokenizer":
        template = TemplateSource(name, _of_tokenizer(tokenizer))
    elif name.endswith(".jinja"):
        template = TemplateSource(name, _of_file(name))
    elif name in TEMPLATES:
        template = TemplateSource(name, *TEMPLATES[name])
    else:
        raise unknown_name("template", name, ["auto", "tokenizer", *TEMPLATES])
    if len(template.jinja) > LARGEST_TEMPLATE:
        raise UserError(
            f"template {name!r} has more than the {LARGEST_TEMPLATE:,} characters that a chat template may have; name "
            "another one"
        )
    return template


def _of_file(name: str) -> str:
    path = expanded(name, "template")
    if not os.path.isfile(path):
        raise UserError(f"template: no file {path}{why_missing(path)}")
    with readable(path, "template", UnicodeDecodeError), open(path, encoding="utf-8-sig") as file:
        return file.read(LARGEST_TEMPLATE + 1)


def _of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's only template, or the one of several that it calls the default one."""
    own, where = tokenizer.chat_template, f"the chat template of the tokenizer {tokenizer.name_or_path}".rstrip()
    if not own:
        raise UserError("template 'tokenizer': the tokenizer has no chat template of its own; use 'plain'")
    if isinstance(own, dict):
        if "default" not in own:
            raise UserError(
                f"template 'tokenizer': {where} is one of several ({', '.join(map(str, own))}), none of them called "
                "default; write one to a .jinja file and name that, or use 'plain'"
            )
        own = own["default"]
    if not isinstance(own, str):
        raise UserError(
            f"template 'tokenizer': {where} is no text but {type(own).__name__}; mend its chat_template, or use 'plain'"
        )
    return own.removeprefix("\ufeff")  # a mark of the encoding, which would stand before every row
