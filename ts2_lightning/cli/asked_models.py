"""The models that `evaluate` and `generate` ask: runs, directories, names on the hub, endpoints, responses on disk."""

import re
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from ts2_lightning.cli.backend_options import add_backend_options, check_used, make_endpoint, vllm_arguments
from ts2_lightning.cli.measure import data_of, data_of_run
from ts2_lightning.cli.model_places import ModelPlace, find_model, model_help
from ts2_lightning.cli.terminal import OptionParser
from ts2_lightning.evaluation import Model
from ts2_lightning.evaluation.distributions import DECODINGS
from ts2_lightning.evaluation.protocols.stored import stores_of
from ts2_lightning.evaluation.results import DIRECTORY as MEASURES
from ts2_lightning.generation.backends.endpoint import PREFIX, Address
from ts2_lightning.runs.directory import CONFIG, numbers
from ts2_lightning.runs.stamps import digest, file_stamps
from ts2_lightning.types import UserError

EVALUATION = "evaluation"
"""Directory below which models that are no runs have their files, unless the user names another."""


def asked_help() -> str:
    """What may stand in the place of MODEL, for the help."""
    return f"{model_help()}; {PREFIX}URL#MODEL"


def add_model_options(parser: OptionParser) -> None:
    """The options that say which models are asked, and how."""
    parser.add_argument(
        "model",
        nargs="+",
        metavar="MODEL",
        help=f"{asked_help()}; or a directory with responses, which are scored without a model",
    )
    add_backend_options(parser)
    parser.add_argument("--decoding", default="softmax", help=f"one of {', '.join(DECODINGS)} (default: softmax)")
    parser.add_argument("--template", default="auto", help="chat template (default: the model's own)")
    add_place_options(parser)


def add_place_options(parser: OptionParser) -> None:
    """The options that say what models were trained with."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="a run's config.yaml whose data.* says tokenizer and template, for a model of no run",
    )
    parser.add_argument("--runs_dir", metavar="DIR", help="the directory of your own runs (default: runs)")


def is_planned(options: Any) -> bool:
    """Whether the models are only looked at by this process, so that no checkpoint becomes a model."""
    return bool(options.plan) or getattr(options, "slurm", None) is not None


class AskedModels:
    """The models that the options name.

    Args:
        options: options of `add_model_options`, of `add_endpoint_options`, and `device`.
        scratch: directory for exports of checkpoints.
        out: directory below which models that are no runs have their files.
    """

    def __init__(self, options: Any, scratch: Path, out: Path) -> None:
        self._options, self._scratch, self._out = options, scratch, out
        self._vllm_args = vllm_arguments(options)
        self._data = {} if options.config is None else data_of(Path(options.config))

    def models(self) -> list[Model]:
        """The models, in their order; none is loaded.

        Raises:
            UserError: there is no such model, or one is named twice.
        """
        names = list(self._options.model)
        check_used(self._options, names)
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"{twice}: it is named twice; name each model once")
        return [self.model(name, number) for number, name in enumerate(names)]

    def model(self, name: str, number: int = 0) -> Model:
        """One model.

        Args:
            name: what the user calls it.
            number: tells its export from those of others.

        Raises:
            UserError: there is no such model.
        """
        if name.startswith(PREFIX):
            return self._endpoint(name)
        path = Path(name).expanduser()
        if _is_responses(path):
            return self._stored(name, path)
        place = find_model(name, name)
        return Model(
            name=name,
            identity=file_stamps(place.path) or place.path,
            locate=cache(partial(place.loadable, None if is_planned(self._options) else self._scratch / str(number))),
            out=place.run or _place_below(self._out, name),
            run=place.run,
            data=self._data or self._data_of_run(name, place),
            text_template=place.text_template,
            decoding=self._options.decoding,
            template=self._options.template,
            device=self._options.device,
            backend=self._options.backend,
            vllm_args=self._vllm_args,
        )

    def _data_of_run(self, name: str, place: ModelPlace) -> Mapping[str, Any]:
        return {} if place.run is None else data_of_run(place.run, Path(self._options.runs_dir or "runs"), name)

    def _endpoint(self, name: str) -> Model:
        address = Address.parse(name)
        backend = make_endpoint(address, self._options)  # its options are wrong before hours of sampling, not after
        return Model(
            name=name,
            identity=["endpoint", address.url, address.model],
            locate=partial(_refuse, name, "an endpoint cannot be loaded; this measure needs the model itself"),
            out=_place_below(self._out, name),
            label=address.model,
            decoding=self._options.decoding,
            template=self._options.template,
            endpoint=lambda: backend,
        )

    def _stored(self, name: str, path: Path) -> Model:
        return Model(
            name=name,
            identity="responses",
            locate=partial(_refuse, name, "these are responses, without a model"),
            out=_place_of_responses(path),
            label=path.name,
            responses=path,
        )


def evaluated_place(name: str, out: Path) -> tuple[str, Path]:
    """The title of a model in tables, and the directory with its responses, scores and measures. Nothing is loaded.

    Args:
        name: what the user calls it: whatever `AskedModels` takes, or a directory that has `measures`.
        out: directory below which models that are no runs have their files.

    Raises:
        UserError: there is no such model.
    """
    if name.startswith(PREFIX):
        return Address.parse(name).model, _place_below(out, name)
    path = Path(name).expanduser()
    attempts = numbers(path)
    if attempts and not any((path / sign).exists() for sign in (CONFIG, "config.json", MEASURES)):
        path = path / str(attempts[-1])
    title = "/".join(path.parts[-2:])
    if (path / MEASURES).is_dir():
        return title, path
    if _is_responses(path):
        return path.name, _place_of_responses(path)
    if path.is_dir() and _is_run(path):  # which has not been measured
        return title, path
    place = find_model(name, name)
    return title, place.run or _place_below(out, name)


def _place_of_responses(path: Path) -> Path:
    """The directory that has the `responses` among which a path is."""
    if path.name == "responses" or any(path.glob("part-*.jsonl")):
        return path.parent if path.name == "responses" else path.parent.parent
    return path


def _place_below(out: Path, name: str) -> Path:
    """A directory of its own for a model that is no run: its name, and a digest of how it was named."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-40:].lstrip("-.")
    return out / f"{plain}-{digest(str(Path(name).absolute() if Path(name).exists() else name))[:6]}"


def _is_responses(path: Path) -> bool:
    return path.is_dir() and not (path / "config.json").is_file() and bool(stores_of(path)) and not _is_run(path)


def _is_run(path: Path) -> bool:
    return (path / CONFIG).is_file()


def _refuse(name: str, why: str) -> str:
    raise UserError(f"{name}: {why}")
