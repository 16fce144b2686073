"""What a run's records say of a model, for its card: nothing of the machine, no path but a last part, no address.

Only settings that are listed here are told. Anything else (loggers, callbacks, directories) may hold names of machines
and people, or keys.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from ts2_lightning.export.adapter_files import is_hub_name
from ts2_lightning.json_files import read_json
from ts2_lightning.loss_docstrings import formula, own_docstring, source, text_of
from ts2_lightning.ops.statistics import TOKEN_VALUES
from ts2_lightning.runs.contents import read_config, read_curves
from ts2_lightning.runs.directory import ENVIRONMENT
from ts2_lightning.types import UserError
from ts2_lightning.values import Value, by_name

HUB_SOURCE = "hub:"
_LOSSES = "ts2_lightning.losses"
_LOG = logging.getLogger("lightning.pytorch")

_SETTINGS = {
    "learning rate": "model.optimizer.lr",
    "betas": "model.optimizer.betas",
    "weight decay": "model.optimizer.weight_decay",
    "schedule": "model.schedule.name",
    "warm-up, share of the steps": "model.schedule.warmup_ratio",
    "warm-up, steps": "model.schedule.warmup_steps",
    "epochs": "trainer.max_epochs",
    "steps, at most": "trainer.max_steps",
    "rows per step": "data.batch_size",
    "gradient norm, at most": "trainer.gradient_clip_val",
    "precision": "trainer.precision",
    "dtype of the weights": "model.lm.dtype",
    "seed": "seed_everything",
    "tokens per row, at most": "data.max_length",
    "longer rows": "data.overlong",
    "packing": "data.packing",
    "template": "data.template",
    "trained on": "data.train_on",
    "thoughts": "data.thinking",
    "LoRA rank": "model.lm.adapter.r",
    "LoRA alpha": "model.lm.adapter.alpha",
    "LoRA dropout": "model.lm.adapter.dropout",
    "LoRA targets": "model.lm.adapter.target_modules",
    "reference model": "model.reference.path",
}
"""What the card calls a setting -> its name in the configuration."""

_FIGURES = {
    **by_name(TOKEN_VALUES),
    "perplexity": Value("perplexity", "perplexity", "", "lower", ".3f"),
    "objective": Value("objective", "objective", "the mean over supervised tokens", "lower", ".4f"),
}


class Split(NamedTuple):
    """Rows of a split, as a run has read them."""

    name: str
    sources: str
    rows: str
    tokens: str


class Figure(NamedTuple):
    """A value of the last validation."""

    title: str
    value: str
    meaning: str


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run; all of it may be empty.

    Attributes:
        name: name of the run.
        objective: class of the loss, with its settings that are numbers or words.
        formula: value of one token's loss.
        about: first paragraph of what the loss says of itself, and its paper.
        splits: rows of each split.
        datasets: names of data sets on the hub.
        settings: settings of the training by what the card calls them.
        figures: values of the last validation.
        step: optimizer step of that validation.
        curves: logged values, name -> step -> value.
        software: versions of the libraries.
        from_scratch: whether the training began with random weights.
    """

    name: str = ""
    objective: str = ""
    formula: str = ""
    about: str = ""
    splits: tuple[Split, ...] = ()
    datasets: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    figures: tuple[Figure, ...] = ()
    step: int | None = None
    curves: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    software: str = ""
    from_scratch: bool = False


def read_facts(run: Path | None, step: int | None = None) -> RunFacts:
    """What the records of a run say; what cannot be read is left out, with a warning.

    Args:
        run: directory of the run; None where there is none.
        step: optimizer steps of the exported weights, after which no validation counts; None for all steps.
    """
    if run is None:
        return RunFacts()
    config = _readable(lambda: read_config(run))
    data = _readable(lambda: read_json(run / "data.json")) if (run / "data.json").is_file() else {}
    about = _readable(lambda: read_json(run / ENVIRONMENT)) if (run / ENVIRONMENT).is_file() else {}
    curves = _readable(lambda: read_curves(run))
    loss = _at(config, "model.loss")
    path = str(_at(loss, "class_path") or "")
    text = _text_of_loss(path)
    figures, at_step = _figures(curves, step)
    return RunFacts(
        name=public_name(str(_at(config, "name") or "")),
        objective=_called(path, _at(loss, "init_args")),
        formula=formula(text) or "",
        about=" ".join(filter(None, [_first_paragraph(text), _sentence("Source: ", source(text))])),
        splits=tuple(_splits(_at(data, "splits"), _at(config, "data"))),
        datasets=tuple(dict.fromkeys(_datasets(_at(config, "data.train")))),
        settings={title: _plain(value) for title, name in _SETTINGS.items() if _counts(value := _at(config, name))},
        figures=figures,
        step=at_step,
        curves=curves,
        software=_software(about),
        from_scratch=_at(config, "model.lm.init") == "random",
    )


def public_name(name: str) -> str:
    """A name without the place where it lies: that of the hub, else the last part of a path or an address.

    Example:
        >>> [public_name(name) for name in ("meta-llama/Llama-3.2-1B", "/home/me/llama/", "https://me:key@a/b.json?k=s")]
        ['meta-llama/Llama-3.2-1B', 'llama', 'b.json']
    """
    if is_hub_name(name):
        return name
    return re.split(r"[/\\]", re.sub(r"[?#].*", "", name, flags=re.S).rstrip("/\\"))[-1]


def _readable(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except UserError as error:
        _LOG.warning(f"the model card says less than it might: {error}")
        return {}


def _at(value: Any, name: str) -> Any:
    """A value by its dotted name; None where there is none."""
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _counts(value: Any) -> bool:
    return value is not None and value != "auto" and value != -1


def _plain(value: Any) -> str:
    """A setting for a reader; words without the place where they lie."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else public_name(str(value))


def _called(path: str, settings: Any) -> str:
    """A loss with its settings: `TS2Loss(alpha=0.25)`; losses inside of it in the same way."""
    if not path:
        return ""
    shown = []
    for name, value in settings.items() if isinstance(settings, Mapping) else ():
        if isinstance(value, Mapping):
            value = _called(str(value.get("class_path") or ""), value.get("init_args"))
        if value not in (None, ""):
            shown.append(f"{name}={value if isinstance(value, bool) or '(' in str(value) else _plain(value)}")
    return f"{path.rpartition('.')[2]}({', '.join(shown)})"


def _text_of_loss(path: str) -> str:
    """The docstring of a loss of the package. That of another would have to be imported, which runs code."""
    room, _, name = path.rpartition(".")
    cls = getattr(import_module(_LOSSES), name, None) if room.startswith(_LOSSES) else None
    return text_of(cls) if isinstance(cls, type) and own_docstring(cls) else ""


def _first_paragraph(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def _sentence(beginning: str, text: str | None) -> str:
    return f"{beginning}{text}." if text else ""


def _splits(splits: Any, settings: Any) -> Iterator[Split]:
    for name, split in splits.items() if isinstance(splits, Mapping) else ():
        files = [public_name(str(_at(file, "path") or "")) for file in _at(split, "files") or ()]
        named = [_source(path) for path in _paths(_at(settings, name))]
        sources = ", ".join(dict.fromkeys(filter(None, named or files)))
        yield Split(name, sources, _count(_at(split, "kept")), _count(_at(split, "supervised_tokens")))


def _paths(sources: Any) -> Iterator[str]:
    """The paths of sources, whose settings are one, a list, or several by name."""
    if isinstance(sources, str):
        yield sources
    elif isinstance(sources, list):
        for item in sources:
            yield from _paths(item)
    elif isinstance(sources, Mapping):
        for part in [sources["path"]] if "path" in sources else sources.values():
            yield from _paths(part)


def _source(path: str) -> str:
    return path.removeprefix(HUB_SOURCE) if path.startswith(HUB_SOURCE) else public_name(path)


def _datasets(sources: Any) -> Iterator[str]:
    for path in _paths(sources):
        name = path.removeprefix(HUB_SOURCE)
        if path.startswith(HUB_SOURCE) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
            yield name


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else ""


def _figures(curves: Any, step: int | None) -> tuple[tuple[Figure, ...], int | None]:
    """The values of the last validation until a step."""
    logged = {name: values for name, values in curves.items() if name.startswith("val/")}
    steps = {at for values in logged.values() for at in values if step is None or at <= step}
    if not steps:
        return (), None
    last = max(steps)
    figures = []
    for name, value in _FIGURES.items():
        if (number := logged.get(f"val/{name}", {}).get(last)) is not None:
            figures.append(Figure(value.title, format(number, value.format), value.meaning))
    return tuple(figures), last


def _software(about: Any) -> str:
    versions = {
        "ts2_lightning": _at(about, "ts2_lightning.version"),
        "torch": _at(about, "torch.version"),
        **{name: _at(about, "packages").get(name) for name in ("transformers", "peft") if _at(about, "packages")},
    }
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)
