"""What a model takes, for commands that load none: read from its config alone."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ts2_lightning.data.toyworld import write_blank_model
from ts2_lightning.model_limits import ModelLimits
from ts2_lightning.modules import LanguageModelConfig
from ts2_lightning.modules.language_model import read_limits


@contextmanager
def with_config(lm: LanguageModelConfig) -> Iterator[LanguageModelConfig]:
    """The toy world's model is made on first use; its config is known without."""
    if lm.path.partition("?")[0] != "toyworld":
        yield lm
        return
    with tempfile.TemporaryDirectory() as directory:
        yield replace(lm, path=str(write_blank_model(directory)))


def limits_at(path: str, revision: str | None = None) -> ModelLimits:
    """The limits of the model at a path, which may be the toy world's.

    Raises:
        UserError: there is no config that can be read.

    Example:
        >>> limits_at("toyworld").context
        128
    """
    with with_config(LanguageModelConfig(path, revision)) as lm:
        return read_limits(lm)
