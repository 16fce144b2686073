"""Tokenizers, loaded by the name in the settings."""

import json
import os
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ts2_lightning.data.files import expanded, reason_of, why_missing
from ts2_lightning.plugins import model_scheme
from ts2_lightning.types import UserError

_FILES = ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "config.json")
"""The files of a tokenizer, each a JSON object."""


def load_tokenizer(path: str, setting: str = "data.tokenizer") -> PreTrainedTokenizerBase:
    """A tokenizer from a directory, the hub, or a plug-in.

    Args:
        path: directory, or name on the hub or of a plug-in's model.
        setting: setting that names it, for messages.

    Raises:
        UserError: if there is none, with the nearest name of a directory, or the file that is broken.
    """
    if (scheme := model_scheme(path)) is not None:
        return scheme.tokenizer()
    place = expanded(path, setting)
    is_local = os.path.exists(place)
    if is_local and not os.path.isdir(place):
        raise UserError(f"{setting}: {path} is a file; name the directory that it is in")
    if not is_local and (path.startswith(("/", ".", "~")) or path.count("/") > 1 or os.path.islink(place)):
        raise UserError(f"{setting}: no directory {path}{why_missing(place)}")
    try:
        return AutoTokenizer.from_pretrained(place if is_local else path, trust_remote_code=False)
    except Exception as error:  # transformers raises what the files happen to lead to
        reason = (is_local and _broken_file(place)) or f"{type(error).__name__}: {reason_of(error)}"
        raise UserError(f"{setting}: cannot load {path!r} ({reason}); fetch it again, or name another") from error


def padding_id(tokenizer: PreTrainedTokenizerBase | None, embeddings: float) -> int:
    """Id of the padding, which is masked: the tokenizer's pad token, else its end of text, else 0.

    Args:
        tokenizer: tokenizer of the rows; None if they come tokenised.
        embeddings: rows of the model's embedding; an id without one is passed over.
    """
    ids = () if tokenizer is None else (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((int(number) for number in ids if number is not None and number < embeddings), 0)


def _broken_file(directory: Path) -> str | None:
    """The fault of the first tokenizer file that is not a JSON object; None if all are."""
    if not os.access(directory, os.R_OK | os.X_OK):
        return "the directory cannot be read"
    if not os.path.isfile(directory / "tokenizer.json"):
        return "it has no tokenizer.json"
    for file in (directory / name for name in _FILES):
        if os.path.isfile(file):
            try:
                if not isinstance(json.loads(file.read_bytes()), dict):
                    return f"{file.name} is no JSON object"
            except (OSError, ValueError, RecursionError) as error:
                return f"{file.name} is not readable JSON: {reason_of(error)}"
    return None
