"""The options that say what makes responses, and how a served model is called."""

from collections.abc import Sequence
from typing import Any

from ts2_lightning.cli.terminal import OptionParser
from ts2_lightning.generation.backends import BACKENDS, check_backend
from ts2_lightning.generation.backends.endpoint import OPTIONAL, PREFIX, Address, Endpoint
from ts2_lightning.generation.backends.json_client import ClientSettings
from ts2_lightning.generation.backends.vllm import read_arguments
from ts2_lightning.types import UserError

_USUAL = ClientSettings()
_OF_CLIENT = ("timeout", "concurrency", "api_key_env", "key_over_http")


def add_backend_options(parser: OptionParser) -> None:
    """Adds what says which backend makes responses, and with which arguments."""
    parser.add_argument(
        "--backend",
        default="transformers",
        help=f"what makes them: {'; '.join(f'{name}, {what}' for name, what in BACKENDS.items())}",
    )
    parser.add_argument(
        "--vllm_args",
        metavar="FILE|TEXT",
        help="arguments of vLLM's engine, such as '{dtype: bfloat16, max_model_len: 4096}'",
    )


def vllm_arguments(options: Any) -> dict[str, Any]:
    """The arguments of vLLM's engine, once it is clear that there is such a backend; none where it is another.

    Args:
        options: options of `add_backend_options`.

    Raises:
        UserError: naming the option that is wrong.
    """
    try:
        check_backend(options.backend)
    except UserError as error:
        raise UserError(f"--backend: {error}") from error
    if options.vllm_args is None:
        return {}
    if options.backend == "transformers":
        raise UserError("--vllm_args: is for --backend vllm:PYTHON; leave it out, or name that backend")
    try:
        return read_arguments(options.vllm_args)
    except UserError as error:
        raise UserError(f"--{error}") from error


def add_endpoint_options(parser: OptionParser) -> None:
    """Adds how models behind `endpoint:URL#MODEL` are called."""
    add = parser.add_argument_group(f"{PREFIX}URL#MODEL").add_argument
    add(
        "--api_key_env",
        metavar="NAME",
        default=_USUAL.api_key_env,
        help=f"environment variable that has the key; '' sends none (default: {_USUAL.api_key_env})",
    )
    add("--key_over_http", action="store_true", help="let the key travel unencrypted to another machine")
    add(
        "--concurrency",
        type=int,
        default=_USUAL.concurrency,
        help=f"calls at once (default: {_USUAL.concurrency})",
    )
    add(
        "--timeout",
        type=float,
        default=_USUAL.timeout,
        help=f"seconds that an answer may take (default: {_USUAL.timeout:g})",
    )
    add("--leave_out", default="", help=f"fields that it does not take, with commas: {', '.join(OPTIONAL)}")


def check_used(options: Any, names: Sequence[str]) -> None:
    """Looks whether the options of `add_endpoint_options`, `--backend` and `--template` are for any of the models.

    Args:
        options: options of a command.
        names: models that it asks.

    Raises:
        UserError: one of them is of no use to any.
    """
    served = [name for name in names if name.startswith(PREFIX)]
    usual = {**{name: getattr(_USUAL, name) for name in _OF_CLIENT}, "leave_out": ""}
    if not served:
        for name, value in usual.items():
            if getattr(options, name) != value:
                raise UserError(f"--{name}: is for {PREFIX}URL#MODEL, and no such model is asked; leave it out")
    if len(served) == len(names):
        for name, value in (("backend", "transformers"), ("template", "auto")):
            if getattr(options, name) != value:
                raise UserError(f"--{name}: is not for {PREFIX}URL#MODEL, whose server sees to that; leave it out")


def make_endpoint(address: Address, options: Any) -> Endpoint:
    """The backend of a served model.

    Args:
        address: where it is.
        options: options of `add_endpoint_options`.

    Raises:
        UserError: naming what is wrong.
    """
    names = [name.strip() for name in options.leave_out.split(",") if name.strip()]
    settings = ClientSettings(**{name: getattr(options, name) for name in _OF_CLIENT})
    return Endpoint(address, settings, names)
