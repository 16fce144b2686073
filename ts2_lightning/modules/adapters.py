"""LoRA adapters: added to a language model, kept alone in checkpoints, merged into the weights for an export."""

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeVar

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from transformers import PreTrainedModel

from ts2_lightning.modules.adapter_targets import check_parameters, expert_parameters, linear_targets, parameter_targets
from ts2_lightning.modules.buffers import persistent_buffers
from ts2_lightning.modules.config import AdapterConfig
from ts2_lightning.modules.text_part import is_below, left_out
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
    lora = _lora_config(model, config)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings=True.*")  # `merged` unties them
        model.add_adapter(lora, NAME)
    for parameter in model.parameters():
        if parameter.requires_grad and not hasattr(parameter, "ds_id"):  # DeepSpeed has its own dtype
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    _draw(model)


def _lora_config(model: PreTrainedModel, config: AdapterConfig) -> Any:
    """PEFT's own settings of an adapter, with which PEFT adapts what is meant, here and where the adapter is loaded.

    In some mixtures PEFT takes names such as `down_proj` for those that the experts had in transformers 4, and adapts
    the experts in place of the linear layers called so (of dense layers, of shared experts). Named as parameters, those
    layers are what they are.
    """
    from peft import LoraConfig

    modules, parameters = linear_targets(model, config), parameter_targets(model, config)
    outside = "|".join(re.escape(name) for name in left_out(model))

    def settings() -> Any:
        return LoraConfig(
            r=config.r,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=modules,
            target_parameters=parameters or None,
            exclude_modules=rf"({outside})(\..*)?" if outside else None,
            task_type="CAUSAL_LM",
        )

    renamed = _renamed_by_peft(model, settings())
    if renamed:
        check_parameters(model, renamed, config.dropout)
        modules = [name for name in modules if name not in renamed]
        parameters = [*parameters, *(f"{name}.weight" for name in renamed)]
    return settings()


def _renamed_by_peft(model: PreTrainedModel, lora: Any) -> list[str]:
    """Names of linear layers that PEFT would take for the experts', as they were called in transformers 4."""
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    before = set(lora.target_modules)
    convert_peft_config_for_transformers(lora, model, None)
    return sorted(before - set(lora.target_modules))


def is_adapted(model: nn.Module) -> bool:
    """Whether a model has an adapter, by transformers' own mark or by PEFT's layers in it."""
    layers = any(hasattr(module, "_disable_adapters") for module in model.modules())
    return layers or bool(getattr(model, "_hf_peft_config_loaded", False))


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """PEFT's layers in a model that has an adapter, by their names."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def adapted_weights(model: nn.Module) -> dict[str, Any]:
    """PEFT's layers by the weight that each adapts, under the name that the weight had before.

    Of a module with several such weights (experts) the layers are nested, each with one of them.
    """
    layers = adapted_layers(model)
    return {f"{plain_name(name)}.{getattr(layer, 'parameter_name', 'weight')}": layer for name, layer in layers.items()}


def plain_name(name: str) -> str:
    """The name that a weight or module had before it was put below a layer of PEFT's.

    >>> plain_name("layers.0.mlp.experts.base_layer.base_layer.down_proj")
    'layers.0.mlp.experts.down_proj'
    """
    return ".".join(part for part in name.split(".") if part != "base_layer")


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
        state: State dict of `module`, whole or sharded.
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
        state: What `trained_state` returns; weights that are frozen may be in it.
        module: that it is to be loaded into.

    Raises:
        UserError: it has not.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    held = module.state_dict()
    wanted = trained_state(held, module)
    absent = sorted(wanted.keys() - state.keys())
    unknown = sorted(name for name in state.keys() - held.keys() if _weight_of(name) not in parameters)
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
def merged_weights(model: PreTrainedModel, share: float = 1.0) -> Iterator[MergedWeight]:
    """The weights of a model with its adapter added to them, one at a time.

    Args:
        model: with an adapter, whole in this process.
        share: share of what the adapter adds that is added; 0 leaves the weights as they are.
    """
    from peft.utils.integrations import dequantize_module_weight

    layers = adapted_weights(model)
    quantised = any(hasattr(parameter, "quant_state") for parameter in model.parameters())
    parts = {part for layer in layers.values() for part in _parts_of(layer)}
    for name, module in model.named_modules():
        if module in parts:
            continue
        own: dict[str, Tensor] = {**dict(module.named_parameters(recurse=False)), **persistent_buffers(module, False)}
        for key, value in own.items():
            held = torch.bfloat16 if quantised and value.is_floating_point() else value.dtype
            if hasattr(value, "quant_state"):
                value, held = dequantize_module_weight(module), torch.bfloat16
            before = value = value.detach()
            plain = plain_name(f"{name}.{key}" if name else key)
            if plain in layers and share:
                value = value.to(torch.promote_types(value.dtype, torch.float32))
                value = value + share * _change(layers[plain]).to(value.dtype)
            yield MergedWeight(plain, value, held, before)


def check_product_alone(model: PreTrainedModel) -> None:
    """Whether an adapter adds nothing but products, so that with a smaller factor it adds less of the same.

    Raises:
        UserError: it also scales weights (DoRA), or replaces some, or trains biases.
    """
    config: Any = model.peft_config[NAME]
    others = [name for name in ("use_dora", "modules_to_save", "lora_bias") if getattr(config, name, None)]
    others += ["bias"] if config.bias != "none" else []
    if others:
        raise UserError(
            f"export toward_base: the adapter has {others[0]}, so it is more than a product whose factor could be made "
            "smaller; merge it into its model, and interpolate that"
        )


def _parts_of(layer: nn.Module) -> Iterator[nn.Module]:
    """The modules of one of PEFT's layers but for the layer below it."""
    for name, child in layer.named_children():
        if name != "base_layer":
            yield from child.modules()


def _change(layer: Any) -> Tensor:
    """What an adapter adds to a weight, in the adapter's own dtype; PEFT rounds that of a parameter to the base's.

    Of E experts with rank r, A is [E r, inputs], and B is [outputs, r E]: the columns of B count experts fastest.
    """
    if not hasattr(layer, "parameter_name"):
        change: Tensor = layer.get_delta_weight(NAME)
        return change
    a, b = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
    a, b = a.view(layer.num_experts, -1, a.shape[-1]), b.view(b.shape[0], -1, layer.num_experts)
    change = torch.einsum("ore,eri->eoi", b, a) * layer.scaling[NAME]
    if getattr(layer.get_base_layer(), "is_transposed", False):  # [E, inputs, outputs]
        change = change.transpose(1, 2)
    return change if layer.get_param().dim() == 3 else change[0]


def tell_adapted(model: PreTrainedModel) -> None:
    """One line that says how much an adapter trains, and names the matrices without one with their share."""
    if is_adapted(model):
        rank_zero_info(adapter_line(model))


def adapter_line(model: PreTrainedModel) -> str:
    """The line.

    Args:
        model: with an adapter, whole or sharded.
    """
    adapted = adapted_weights(model).keys()
    experts = {plain_name(name) for name in expert_parameters(model) if not is_below(name, left_out(model))}
    trained = total = 0
    left: Counter[str] = Counter()
    outside = left_out(model)  # which a line of its own tells
    for name, parameter in model.named_parameters():
        size = int(getattr(parameter, "ds_numel", parameter.numel()))
        if ".lora_" in name:
            trained += size
            continue
        total += size
        plain = plain_name(name)
        if plain not in adapted and not is_below(name, outside) and _dimensions(parameter) >= 2:
            left[_kind(plain)] += size
    frozen_experts = sorted({_kind(name) for name in experts - adapted})
    parts = [f"{kind} {size / total:.1%}" for kind, size in left.most_common()]
    hint = (
        f"; model.lm.adapter.target_parameters: all-experts adapts {' and '.join(frozen_experts)} too"
        if frozen_experts
        else ""
    )
    return (
        f"LoRA trains {trained:,} weights beside the {total:,} of the model; not adapted: "
        f"{', '.join(parts) or 'no matrix'}{hint}"
    )


def _kind(name: str) -> str:
    """What the matrices of all layers are called: the last two parts of a weight's name, without `weight`.

    >>> _kind("model.layers.3.mlp.experts.gate_up_proj"), _kind("lm_head.weight"), _kind("h.0.mlp.gate.weight")
    ('experts.gate_up_proj', 'lm_head', 'mlp.gate')
    """
    parts = [part for part in name.removesuffix(".weight").split(".") if not re.fullmatch(r"[0-9]+", part)]
    return ".".join(parts[-2:])


def _dimensions(parameter: Tensor) -> int:
    return len(getattr(parameter, "ds_shape", parameter.shape))
