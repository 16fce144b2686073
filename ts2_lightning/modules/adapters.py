"""LoRA adapters: added to a language model, kept alone in checkpoints, merged into the weights for an export."""

import math
import warnings
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ts2_lightning.modules.buffers import persistent_buffers
from ts2_lightning.modules.config import AdapterConfig
from ts2_lightning.types import UserError

NAME = "default"
"""PEFT's name of an adapter that has no other."""

Value = TypeVar("Value")


def add_adapter(model: PreTrainedModel, config: AdapterConfig) -> None:
    """Puts an adapter into a model, in place, and freezes all else.

    It stays the transformers model that it was, whose layers are PEFT's: backbone and head are found as ever. The
    adapter's weights are float32 at least, and where they are on a device, they depend on torch's seed alone.

    Raises:
        UserError: PEFT is not installed, or a layer to adapt is not there.
    """
    if find_spec("peft") is None:
        raise UserError("model.lm.adapter: PEFT is not installed; pip install 'ts2-lightning[peft]'")
    from peft import LoraConfig

    lora = LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=_targets(model, config),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings=True.*")  # `merged` unties them
        model.add_adapter(lora, NAME)
    for parameter in model.parameters():
        if parameter.requires_grad and not hasattr(parameter, "ds_id"):  # DeepSpeed has its own dtype
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    _draw(model)


def is_adapted(model: nn.Module) -> bool:
    """Whether a model has an adapter."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """PEFT's layers in a model that has an adapter, by their names."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _targets(model: PreTrainedModel, config: AdapterConfig) -> list[str]:
    """The last parts of the names of the layers to adapt, or what the user calls them."""
    head = model.get_output_embeddings()
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    endings = {name.rpartition(".")[2]: module is head for name, module in linear.items()}
    if config.target_modules == "all-linear":
        wanted = [ending for ending, is_head in endings.items() if not is_head]
    else:
        wanted = list(config.target_modules)
    if config.head:
        wanted += [name for name, module in linear.items() if module is head] or ["the output head"]
    for target in wanted:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            raise UserError(
                f"model.lm.adapter.target_modules: no linear layer of {type(model).__name__} is called {target!r}; it "
                f"has {', '.join(sorted(endings))}"
            )
    return sorted(set(wanted))


@torch.no_grad()
def _draw(model: PreTrainedModel) -> None:
    """A uniform with bound 1 / sqrt(inputs), as PEFT draws it, and B zero: the model is at first what it was."""
    generator = torch.Generator().manual_seed(torch.initial_seed())
    for layer in adapted_layers(model).values():
        weight = layer.lora_A[NAME].weight
        if not weight.is_meta and not hasattr(weight, "ds_id"):
            drawn = torch.empty(weight.shape)
            weight.copy_(nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator))


# -- what a checkpoint needs


def trained_state(state: dict[str, Value], module: nn.Module) -> dict[str, Value]:
    """A state dict without the weights that are frozen, which the base model's own files have.

    Args:
        state: of `module`, whole or sharded.
        module: tells which of its parameters are frozen. Where none is, nothing is left out.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> layer.bias = layer.bias.requires_grad_(False)
        >>> list(trained_state(layer.state_dict(), layer))
        ['weight']
    """
    frozen = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: value for name, value in state.items() if _weight_of(name) not in frozen}


def check_trained_state(state: Mapping[str, Any], module: nn.Module) -> None:
    """Whether a state dict has all weights of a module but frozen ones, and none that the module has not.

    Args:
        state: of `trained_state`; weights that are frozen may be in it.
        module: that it is to be loaded into.

    Raises:
        UserError: it has not.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    known = module.state_dict()
    wanted = trained_state(known, module)
    absent = sorted(wanted.keys() - state.keys())
    unknown = sorted(name for name in state.keys() - known.keys() if _weight_of(name) not in parameters)
    other = sorted(name for name in wanted.keys() & state.keys() if wanted[name].shape != state[name].shape)
    for names, what in ((absent, "lacks"), (unknown, "has, and this model has not,"), (other, "has in another shape")):
        if names:
            raise UserError(
                f"the checkpoint is not of this model: it {what} {names[0]} ({len(names)} such weights); was it made "
                "with another model.lm or model.lm.adapter?"
            )


def _weight_of(name: str) -> str:
    """The parameter that an entry belongs to: bitsandbytes saves a weight's scales below the weight's name."""
    above, dot, _ = name.partition(".weight.")
    return f"{above}.weight" if dot else name


# -- what an export needs


class MergedWeight(NamedTuple):
    """A weight of a model with its adapter added to it.

    Attributes:
        name: that the weight had before there was an adapter.
        value: the sum, in float32 at least where there is an adapter: it is for who writes it to round it, once.
        held: the dtype in which the model holds the weight; bfloat16 where the model has weights in 4 bits.
        base: the weight without the adapter, dequantised.
    """

    name: str
    value: Tensor
    held: torch.dtype
    base: Tensor


@torch.no_grad()
def merged_weights(model: PreTrainedModel) -> Iterator[MergedWeight]:
    """The weights of a model with its adapter added to them, one at a time.

    Args:
        model: with an adapter, whole in this process.
    """
    from peft.utils.integrations import dequantize_module_weight

    layers = adapted_layers(model)
    quantised = any(hasattr(parameter, "quant_state") for parameter in model.parameters())
    inside = {part for layer in layers.values() for part in layer.modules()}
    for name, module in model.named_modules():
        base = module
        if name in layers:
            base = module.get_base_layer()
        elif module in inside:
            continue
        own: dict[str, Tensor] = {**dict(base.named_parameters(recurse=False)), **persistent_buffers(base, False)}
        for key, value in own.items():
            held = torch.bfloat16 if quantised and value.is_floating_point() else value.dtype
            if hasattr(value, "quant_state"):
                value, held = dequantize_module_weight(base), torch.bfloat16
            before = value = value.detach()
            if name in layers and key == "weight":
                value = value.to(torch.promote_types(value.dtype, torch.float32)) + module.get_delta_weight(NAME)
            yield MergedWeight(f"{name}.{key}" if name else key, value, held, before)
