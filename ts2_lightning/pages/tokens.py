"""Tokens and what models think of them, as the explorer's script reads them: short, and a response at a time."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from ts2_lightning.pages.sections import SeenText, Tokens, TokenView
from ts2_lightning.pages.texts import readable

_FLOATS = ("entropy", "tail_mass", "probability", "top_probabilities")
_WHOLE = ("support_size", "rank", "top")


def plain_tokens(tokens: Tokens) -> dict[str, Any]:
    """Plain values; numbers are arrays of 4 bytes each, low byte first, in base 64.

    Raises:
        ValueError: a text or a view whose lists differ in their lengths, or a place that is not there.
    """
    return {
        "questions": [readable(text) for text in tokens.questions],
        "models": [readable(name) for name in tokens.models],
        "pieces": [readable(piece) for piece in tokens.pieces],
        "texts": [_text(tokens, text) for text in tokens.texts],
    }


def _text(tokens: Tokens, text: SeenText) -> dict[str, Any]:
    said = f"tokens {tokens.title!r}, text {text.name!r}"
    _check_places(f"{said}: question", [text.question], len(tokens.questions))
    _check_places(f"{said}: token", text.tokens, len(tokens.pieces))
    _check_places(f"{said}: model", list(text.views), len(tokens.models))
    return {
        "question": text.question,
        "name": readable(text.name),
        "remark": readable(text.remark),
        "tokens": _packed(text.tokens, "<i4"),
        "views": {str(model): _view(tokens, text, view, said) for model, view in text.views.items()},
    }


def _view(tokens: Tokens, text: SeenText, view: TokenView, said: str) -> dict[str, str]:
    lengths = {name: len(getattr(view, name)) for name in (*_FLOATS, *_WHOLE)}
    if wrong := {name: length for name, length in lengths.items() if length != len(text.tokens)}:
        raise ValueError(f"{said}: {len(text.tokens)} tokens, but {wrong}")
    if np.shape(view.top) != np.shape(view.top_probabilities):
        raise ValueError(f"{said}: top {np.shape(view.top)}, top_probabilities {np.shape(view.top_probabilities)}")
    _check_places(f"{said}: top token", view.top, len(tokens.pieces))
    return {
        **{name: _packed(getattr(view, name), "<f4") for name in _FLOATS},
        **{name: _packed(getattr(view, name), "<i4") for name in _WHOLE},
    }


def _check_places(said: str, places: Sequence[Any], count: int) -> None:
    array = np.asarray(places, dtype=np.int64)
    if array.size and not 0 <= array.min() <= array.max() < count:
        raise ValueError(f"{said} {array.min()} to {array.max()}, but there are {count}")


def _packed(values: Sequence[Any], kind: str) -> str:
    return base64.b64encode(np.asarray(values, dtype=kind).tobytes()).decode()
