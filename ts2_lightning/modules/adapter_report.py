"""What an adapter trains, and what it leaves as it is, in one line for the user."""

import re
from collections import Counter

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from transformers import PreTrainedModel

from ts2_lightning.modules.adapter_targets import expert_parameters
from ts2_lightning.modules.adapters import adapted_weights, is_adapted, plain_name
from ts2_lightning.modules.text_part import is_below, left_out


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
