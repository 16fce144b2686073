"""The model that a path names: that of a plug-in, which may be made on first use, or any other; and what it takes.

What a model takes is read from its config alone, for commands that load no model.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ts2_lightning.checkpoint_files import is_complete
from ts2_lightning.data.tokenizer import load_tokenizer
from ts2_lightning.model_limits import ModelLimits
from ts2_lightning.modules import LanguageModelConfig
from ts2_lightning.modules.language_model import read_limits, settle_embeddings
from ts2_lightning.modules.places import resolve_model
from ts2_lightning.plugins import model_scheme
from ts2_lightning.program import program
from ts2_lightning.types import UserError


def check_model_path(path: str) -> None:
    """Checks the path of a plug-in's model; nothing is made.

    Args:
        path: value of `model.lm.path`.

    Raises:
        UserError: the plug-in has no such model.
    """
    if (scheme := model_scheme(path)) is not None:
        scheme.check(path)


def resolve_reference(path: str) -> str:
    """Directory of the model that an objective is anchored to: that of a plug-in, a run's export, or the path as it is.

    Args:
        path: value of `model.reference`.

    Raises:
        UserError: see `check_model_path`; or it is a checkpoint, which has to be exported first.
    """
    place = Path(path)
    if (place / "config.json").is_file():
        return path
    if (place / "export" / "config.json").is_file():
        return str(place / "export")
    if is_complete(place):
        raise UserError(
            f"model.reference: {path} is a checkpoint; export it first: {program()} export --ckpt {path} --out DIR, "
            "then --model.reference DIR"
        )
    return resolve_model(path)


@contextmanager
def with_reference_config(path: str | None) -> Iterator[str | None]:
    """As `with_config`, for the value of `model.reference`: a path that has a config.json, or None for none.

    Raises:
        UserError: see `resolve_reference`.
    """
    if path is None or model_scheme(path) is None:
        yield path if path is None else resolve_reference(path)
        return
    with with_config(LanguageModelConfig(path)) as other:
        yield other.path


@contextmanager
def with_config(lm: LanguageModelConfig) -> Iterator[LanguageModelConfig]:
    """The config with a path that has a config.json: that of a plug-in's model is written without making the model."""
    scheme = model_scheme(lm.path)
    if scheme is None:
        yield lm
        return
    with tempfile.TemporaryDirectory() as directory:
        yield replace(lm, path=str(scheme.write_blank(Path(directory))))


def with_rows_for_tokens(lm: LanguageModelConfig, tokenizer: str) -> LanguageModelConfig:
    """The same config with a number of embedding rows in the place of `resize_embeddings: true`.

    Args:
        lm: Config whose path is a directory or hub name with a config.json.
        tokenizer: Path or name of the tokenizer; it is read only if it decides.

    Raises:
        UserError: There is no such tokenizer, or the number of rows is too small.
    """
    if lm.resize_embeddings is not True:
        return settle_embeddings(lm)
    return settle_embeddings(lm, len(load_tokenizer(tokenizer)))


def limits_at(path: str, revision: str | None = None) -> ModelLimits:
    """The limits of the model at a path.

    Raises:
        UserError: There is no config that can be read.

    Example:
        >>> limits_at("toyworld").context
        128
    """
    with with_config(LanguageModelConfig(path, revision)) as lm:
        return read_limits(lm)


def limits_with_new_rows(path: str, revision: str | None, resize: bool | int, tokenizer: str) -> ModelLimits:
    """The limits of the model at a path once its embeddings have been resized.

    Raises:
        UserError: as `limits_at` and `with_rows_for_tokens`.

    Example:
        >>> limits_with_new_rows("toyworld", None, 1024, "toyworld").embeddings
        1024
    """
    with with_config(LanguageModelConfig(path, revision, resize_embeddings=resize)) as lm:
        return read_limits(with_rows_for_tokens(lm, tokenizer))
