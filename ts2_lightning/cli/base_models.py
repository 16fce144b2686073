"""The model that a path names: the toy world's base, which is made on first use, or any other; and what it takes.

What a model takes is read from its config alone, for commands that load no model.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ts2_lightning.data.tokenizer import load_tokenizer
from ts2_lightning.data.toyworld import seed_of, write_blank_model
from ts2_lightning.model_limits import ModelLimits
from ts2_lightning.modules import LanguageModelConfig
from ts2_lightning.modules.language_model import read_limits, settle_embeddings
from ts2_lightning.studies.toyworld_base import ensure_base


def toyworld_seed(path: str) -> int | None:
    """Seed of the embedded base model that a path asks for; None if the path names another model.

    Args:
        path: Value of `model.lm.path`.

    Raises:
        UserError: the path asks for anything but a seed, or for a seed out of range.

    Example:
        >>> toyworld_seed("toyworld"), toyworld_seed("toyworld?seed=3"), toyworld_seed("./toyworld")
        (0, 3, None)
    """
    name, mark, query = path.partition("?")
    if name != "toyworld":
        return None
    return seed_of(query, f"model.lm.path {path!r}") if mark else 0


def resolve_model(path: str) -> str:
    """Directory of the embedded base model for `toyworld` or `toyworld?seed=1`; any other path as it is.

    The base model is made if it is not there, which takes minutes.

    Raises:
        UserError: see `toyworld_seed`.
    """
    seed = toyworld_seed(path)
    return path if seed is None else str(ensure_base(seed))


@contextmanager
def seeds_kept() -> Iterator[None]:
    """Keeps the seed that `seed_everything` has noted for the run and its other ranks, whatever is seeded inside."""
    noted = {name: os.environ.get(name) for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")}
    try:
        yield
    finally:
        for name, value in noted.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def with_config(lm: LanguageModelConfig) -> Iterator[LanguageModelConfig]:
    """The config with a path that has a config.json: the toy world's is written without making its model."""
    if lm.path.partition("?")[0] != "toyworld":
        yield lm
        return
    with tempfile.TemporaryDirectory() as directory:
        yield replace(lm, path=str(write_blank_model(directory)))


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
    name = "toyworld" if tokenizer.partition("?")[0] == "toyworld" else tokenizer
    return settle_embeddings(lm, len(load_tokenizer(name)))


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
