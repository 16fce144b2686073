"""Directories in the place of names that plug-ins give to models, such as `toyworld`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from lightning.pytorch.utilities.seed import isolate_rng

from ts2_lightning.modules.config import LanguageModelConfig
from ts2_lightning.plugins import model_scheme


def resolve_model(path: str) -> str:
    """Directory of a plug-in's model, such as `toyworld?seed=1`; any other path as it is.

    The model is made if it is not there, which may take minutes.

    Raises:
        UserError: the plug-in has no such model.
    """
    scheme = model_scheme(path)
    return path if scheme is None else str(scheme.locate(path))


def located(lm: LanguageModelConfig) -> LanguageModelConfig:
    """The config with the directory of its model as path, and the name, if it was one, as `written_path`.

    Making a model draws random numbers; those of the caller stay as they are, whether it was made or there.

    Raises:
        UserError: see `resolve_model`.

    Example:
        >>> located(LanguageModelConfig("models/mine")).path
        'models/mine'
    """
    if model_scheme(lm.path) is None:
        return lm
    with seeds_kept(), isolate_rng():
        there = replace(lm, path=resolve_model(lm.path))
    there.written_path = lm.path
    return there


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
