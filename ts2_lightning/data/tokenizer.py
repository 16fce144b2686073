"""Tokenizers by the names that settings give them."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ts2_lightning.data.sources import TOYWORLD
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """A tokenizer from a directory, the hub, or the toy world.

    Raises:
        UserError: if there is none; for a directory with the nearest name.
    """
    if path == TOYWORLD.rstrip(":"):
        from ts2_lightning.data.toyworld import build_tokenizer

        return build_tokenizer()
    place = Path(path).expanduser()
    if not place.exists() and (path.startswith(("/", ".", "~")) or path.count("/") > 1):
        siblings = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
        raise UserError(f"data.tokenizer: no directory {path}{did_you_mean(place.name, siblings)}")
    try:
        return AutoTokenizer.from_pretrained(place if place.exists() else path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"data.tokenizer: cannot load {path!r} ({reason})") from error
