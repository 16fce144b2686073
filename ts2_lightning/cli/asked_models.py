"""The models that `evaluate` and `generate` ask: runs, directories, names on the hub, endpoints, responses on disk."""

import re
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from ts2_lightning.cli.measure import data_of, data_of_run
from ts2_lightning.cli.model_places import ModelPlace, find_model, model_help
from ts2_lightning.cli.terminal import OptionParser
from ts2_lightning.evaluation import Model
from ts2_lightning.evaluation.distributions import DECODINGS
from ts2_lightning.evaluation.protocols.stored import stores_of
from ts2_lightning.generation.backends.choice import BACKENDS, check_backend
from ts2_lightning.generation.backends.endpoint import PREFIX, Address, Endpoint
from ts2_lightning.runs.stamps import digest, file_stamps
from ts2_lightning.types import UserError
from ts2_lightning.yaml_files import load_yaml


def add_model_options(parser: OptionParser) -> None:
    """The options that say which models are asked, and how."""
    parser.add_argument(
        "model",
        nargs="+",
        metavar="MODEL",
        help=f"{model_help()}; {PREFIX}URL#MODEL; or a directory with responses, which are scored without a model",
    )
    parser.add_argument(
        "--backend",
        default="transformers",
        metavar="NAME",
        help="what makes the responses of models that are loaded (default: transformers): "
        + ", ".join(f"{name} ({what})" for name, what in BACKENDS.items()),
    )
    parser.add_argument("--vllm_args", metavar="TEXT", help="arguments of vLLM's engine: '{dtype: bfloat16}'")
    parser.add_argument("--decoding", default="softmax", help=f"one of {', '.join(DECODINGS)} (default: softmax)")
    parser.add_argument("--template", default="auto", help="chat template (default: the model's own)")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="a run's config.yaml whose data.* says tokenizer and template, for a model of no run",
    )
    parser.add_argument("--runs_dir", default="runs", help="the directory of your own runs (default: runs)")


class AskedModels:
    """The models that the options name.

    Args:
        options: options of `add_model_options`, and `device`.
        scratch: directory for exports of checkpoints.
        out: directory below which models that are no runs have their files.
    """

    def __init__(self, options: Any, scratch: Path, out: Path) -> None:
        self._options, self._scratch, self._out = options, scratch, out
        self._data = {} if options.config is None else data_of(Path(options.config))

    def models(self) -> list[Model]:
        """The models, in their order; none is loaded.

        Raises:
            UserError: there is no such model, or one is named twice.
        """
        check_backend(self._options.backend)
        names = list(self._options.model)
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"{twice}: it is named twice; name each model once")
        return [self._model(name, number) for number, name in enumerate(names)]

    def _model(self, name: str, number: int) -> Model:
        if name.startswith(PREFIX):
            return self._endpoint(name)
        path = Path(name).expanduser()
        if path.is_dir() and not (path / "config.json").is_file() and stores_of(path) and not _is_run(path):
            return self._stored(name, path)
        place = find_model(name, name)
        return Model(
            name=name,
            identity=file_stamps(place.path) or place.path,
            locate=cache(partial(place.loadable, self._scratch / str(number))),
            out=place.run or self._place(name),
            run=place.run,
            data=self._data or self._data_of_run(name, place),
            text_template=place.text_template,
            decoding=self._options.decoding,
            template=self._options.template,
            device=self._options.device,
            backend=self._options.backend,
            vllm_args=self._vllm_args(),
        )

    def _data_of_run(self, name: str, place: ModelPlace) -> Mapping[str, Any]:
        return {} if place.run is None else data_of_run(place.run, Path(self._options.runs_dir), name)

    def _vllm_args(self) -> dict[str, Any]:
        text = self._options.vllm_args
        if text is None:
            return {}
        arguments = load_yaml(text, "--vllm_args")
        if not isinstance(arguments, dict) or self._options.backend == "transformers":
            raise UserError(f"--vllm_args {text}: write it as '{{dtype: bfloat16}}', with --backend vllm:PYTHON")
        return arguments

    def _endpoint(self, name: str) -> Model:
        address = Address.parse(name)
        return Model(
            name=name,
            identity=["endpoint", address.url, address.model],
            locate=partial(_refuse, name, "an endpoint cannot be loaded; this measure needs the model itself"),
            out=self._place(name),
            label=address.model,
            decoding=self._options.decoding,
            template=self._options.template,
            endpoint=lambda: Endpoint(address),
        )

    def _stored(self, name: str, path: Path) -> Model:
        if path.name == "responses" or any(path.glob("part-*.jsonl")):
            out = path.parent if path.name == "responses" else path.parent.parent
        else:
            out = path
        return Model(
            name=name,
            identity="responses",
            locate=partial(_refuse, name, "these are responses, without a model"),
            out=out,
            label=path.name,
            responses=path,
        )

    def _place(self, name: str) -> Path:
        """A directory of its own below --out: its name, and a digest of how it was named."""
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-40:].lstrip("-.")
        return self._out / f"{plain}-{digest(str(Path(name).absolute() if Path(name).exists() else name))[:6]}"


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file()


def _refuse(name: str, why: str) -> str:
    raise UserError(f"{name}: {why}")
