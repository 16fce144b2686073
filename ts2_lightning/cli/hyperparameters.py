"""From the resolved configuration of `fit` to hyper-parameters: flat, and with the names that the command line has."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ts2_lightning.callbacks.tensorboard_tabs import HyperparameterValue

_LEFT_OUT = ("name", "runs_dir", "ckpt_path", "weights_only", "trainer.logger", "trainer.default_root_dir")
"""Where things lie and where they are logged, which is another for every run; a logger's settings may have a key."""

HIDDEN = "(hidden)"
_SECRET = re.compile(r"(?i)(^|_)(pass(word|wd|phrase)|secret|credentials?|(api|access|auth|private|secret)_?key)s?$")
_TOKEN = re.compile(r"(?i)^((hf|hub|api|access|auth|bearer)_)?token$")
_USER_OF_URL = re.compile(r"(?<=://)[^/\s@]+@")
_OURS = ("ts2_lightning.", "lightning.pytorch.", "pytorch_lightning.")


def hyperparameters(config: Mapping[str, Any]) -> dict[str, HyperparameterValue]:
    """Hyper-parameters of a run: the dotted names of its settings, and plain values.

    Classes go by the names that the command line takes: `model.loss` is `TS2Loss`, and `model.loss.alpha` its setting.
    Lists of classes, such as callbacks, have the names of the classes, and under each of them its settings. What is
    null is left out, as are the places of a run, which differ without meaning, and the settings of loggers. Values that
    are called a password, a key or a token are `(hidden)`, and of an address with a user and password neither is kept.
    A path in the working directory begins there, one in the user's home with `~`: what a logger shows to others has no
    name of a user, and is the same on two machines.

    Args:
        config: The resolved configuration, plain values.

    Example:
        >>> loss = {"class_path": "ts2_lightning.losses.TS2Loss", "init_args": {"alpha": 0.5, "top_k": None}}
        >>> hyperparameters({"name": "mine", "model": {"loss": loss}, "data": {"train": ["a.jsonl", "b.jsonl"]}})
        {'model.loss': 'TS2Loss', 'model.loss.alpha': 0.5, 'data.train': '[a.jsonl, b.jsonl]'}
    """
    return dict(_settings("", config))


def _settings(name: str, value: Any) -> Iterator[tuple[str, HyperparameterValue]]:
    if value is None or name in _LEFT_OUT:
        return
    if isinstance(value, Mapping):
        if "class_path" in value:
            yield name, _class_name(value["class_path"])
            value = _arguments(value)
        for key, inner in value.items():
            yield from _settings(f"{name}.{key}".strip("."), inner)
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
        yield from _entries(name, value)
    elif isinstance(value, list | tuple):
        yield name, f"[{', '.join(str(_shown(name, item)) for item in value)}]"
    else:
        yield name, _shown(name, value)


def _entries(name: str, entries: list[Any] | tuple[Any, ...]) -> Iterator[tuple[str, HyperparameterValue]]:
    """A list of classes by their names, any other by the places in it; a class that comes again has its place too."""
    if all(isinstance(entry, Mapping) and "class_path" in entry for entry in entries):
        names = [_class_name(entry["class_path"]) for entry in entries]
        yield name, ", ".join(names)
        labels = [one if one not in names[:place] else f"{one}.{place}" for place, one in enumerate(names)]
        for label, entry in zip(labels, entries, strict=True):
            yield from _settings(f"{name}.{label}", _arguments(entry))
        return
    for place, entry in enumerate(entries):
        yield from _settings(f"{name}.{place}", entry)


def _arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {**(settings.get("init_args") or {}), **(settings.get("dict_kwargs") or {})}


def _class_name(path: str) -> str:
    """A class as it is typed: one of this package or of Lightning by its bare name."""
    return path.rpartition(".")[2] if path.startswith(_OURS) else path


def _shown(name: str, value: Any) -> HyperparameterValue:
    last = name.rpartition(".")[2]
    if _SECRET.search(last) or _TOKEN.search(last):
        return HIDDEN
    if isinstance(value, bool | int | float):
        return value
    return _portable(_USER_OF_URL.sub("", str(value)))


def _portable(text: str) -> str:
    """A text that may be a path, without what is this machine's."""
    if not os.path.isabs(text):
        return text
    path = Path(text)
    for place, called in ((Path.cwd(), Path()), (Path.home(), Path("~"))):
        if path.is_relative_to(place) and place != place.parent:
            return str(called / path.relative_to(place))
    return text
