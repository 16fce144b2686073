"""An adapter that was trained before, in PEFT's format, as the start of another training."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from ts2_lightning.json_files import read_object
from ts2_lightning.modules.adapters import NAME
from ts2_lightning.modules.config import AdapterConfig
from ts2_lightning.modules.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, find_file
from ts2_lightning.types import UserError

_SETTING = "model.lm.adapter.path"
_PREFIX = "base_model.model."  # PEFT's, of the model that the adapter lies in
_OTHER_KINDS = ("use_dora", "use_rslora", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern")


def check_adapter_files(config: AdapterConfig | None, base: str) -> None:
    """Looks at an adapter's settings before anything waits for its weights, or for the model's.

    Args:
        config: Settings of the adapter; nothing is looked at where it starts anew.
        base: `model.lm.path`.

    Raises:
        UserError: there is no adapter, or it is another one than the config says.
    """
    if config is None or config.path is None:
        return
    settings = _read_settings(config.path)
    _weights_file(config.path)
    kind = settings.get("peft_type")
    others = [name for name in _OTHER_KINDS if settings.get(name)]
    others += ["bias"] if settings.get("bias", "none") != "none" else []
    if kind != "LORA" or others:
        what = f"is of the kind {kind}" if kind != "LORA" else f"uses {others[0]}"
        raise UserError(f"{_SETTING}: {config.path!r} {what}, which is not built here; merge it into its model first")
    for name, key in (("r", "r"), ("alpha", "lora_alpha")):
        mine, theirs = getattr(config, name), settings.get(key)
        if mine != theirs:
            raise UserError(
                f"model.lm.adapter.{name} is {mine}, and that of {config.path!r} is {theirs}; set "
                f"--model.lm.adapter.{name} {theirs}"
            )
    trained_on = settings.get("base_model_name_or_path")
    if trained_on and trained_on != base:
        rank_zero_warn(
            f"{_SETTING}: {config.path!r} says that it was trained on {trained_on!r}; here it is put on {base!r}"
        )


@torch.no_grad()
def start_adapter(model: PreTrainedModel, path: str) -> None:
    """Gives a model's adapter the weights of another.

    Args:
        model: whole in this process, with an adapter.
        path: a directory in PEFT's format, or a name on the hub.

    Raises:
        UserError: it is not there, damaged, not finite, or adapts other layers.
    """
    file = _weights_file(path)
    try:
        state = load_file(file)
    except SafetensorError as error:
        raise UserError(f"{_SETTING}: {file} is cut short or damaged ({error}); write or fetch it again") from error
    weights = {_own_name(name): tensor for name, tensor in state.items()}
    own = {name: p for name, p in model.named_parameters() if ".lora_" in name}
    _check_names(own, weights, path)
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{_SETTING}: {name} of {path!r} is NaN or infinite; take another copy of the adapter")
        own[name].copy_(tensor)


def _own_name(name: str) -> str:
    """The name that a model has for a weight of an adapter, from that in PEFT's file.

    >>> _own_name("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight")
    'model.layers.0.mlp.up_proj.lora_A.default.weight'
    """
    for part in ("lora_A", "lora_B"):
        name = name.replace(f".{part}.weight", f".{part}.{NAME}.weight")
    return name.removeprefix(_PREFIX)


def _check_names(own: dict[str, Any], weights: dict[str, Tensor], path: str) -> None:
    unknown, absent = sorted(weights.keys() - own.keys()), sorted(own.keys() - weights.keys())
    other = sorted(name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape)
    for names, what in (
        (unknown, "has, and model.lm.adapter has not,"),
        (absent, "lacks"),
        (other, "has in another shape"),
    ):
        if names:
            settings = _read_settings(path)
            targets = {
                name: settings.get(name) for name in ("target_modules", "target_parameters") if settings.get(name)
            }
            raise UserError(
                f"{_SETTING}: {path!r} {what} {names[0]} ({len(names)} such weights); its own settings are {targets}, "
                "for target_modules, target_parameters and head of model.lm.adapter; or it is of another model"
            )


def _read_settings(path: str) -> dict[str, Any]:
    try:
        file = find_file(path, ADAPTER_CONFIG)
        if file is not None:
            return read_object(Path(file), f"its {ADAPTER_CONFIG}")
    except (OSError, ValueError) as error:
        if not Path(path).exists():
            raise UserError(
                f"{_SETTING}: there is no directory {path!r}, nor such an adapter on the hub; a checkpoint of a run "
                "has its adapter's weights: to go on from one, give --model.lm.adapter.path null"
            ) from error
        raise UserError(f"{_SETTING}: cannot read {path!r}: {' '.join(str(error).split())[:300]}") from error
    raise UserError(f"{_SETTING}: there is no {ADAPTER_CONFIG} in {path!r}, as an adapter in PEFT's format has")


def _weights_file(path: str) -> str:
    file = find_file(path, ADAPTER_WEIGHTS)
    if file is None:
        raise UserError(f"{_SETTING}: there is no {ADAPTER_WEIGHTS} in {path!r}; pickled weights are not read")
    return file
