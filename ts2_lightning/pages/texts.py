"""Texts that may be anything, such as what a model responded, made so that a page shows all of them and obeys none."""

import json
import re
from typing import Any

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Control characters, also those that turn the direction of what follows; halves of characters."""


def readable(text: str) -> str:
    """A text with a visible sign for every character that has none, or that cannot be written as UTF-8.

    Example:
        >>> print(readable("a\\x00b\\u202e.") + readable("half \\ud83d"))
        a␀b\\u202e.half \\ud83d
    """
    return _UNSEEN.sub(_sign, text)


def _sign(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def shortened(text: str, most: int) -> str:
    """A text of one line with its middle left out where it is too long: both ends tell models apart.

    Example:
        >>> shortened("meta-llama/Llama-3.1-8B-Instruct/checkpoint-900", 24)
        'meta-llama/L…eckpoint-900'
    """
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2) :]}"


def as_script(value: Any) -> str:
    """Plain values as JSON that ends no element of HTML.

    Example:
        >>> as_script({"text": "</script>"})
        '{"text":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return _UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
