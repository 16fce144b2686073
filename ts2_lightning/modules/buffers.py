"""Buffers that no checkpoint holds, such as the frequencies of rotary positions."""

import torch
from torch import nn
from transformers import PreTrainedModel


@torch.no_grad()
def initialize_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Gives the buffers of a model that was built on meta, and has its weights, a device and their values.

    Transformers computes them where it draws weights; weights that say that they are there already it leaves alone.
    """
    for name, buffer in model.named_buffers():
        if buffer.is_meta:
            place, _, key = name.rpartition(".")
            model.get_submodule(place)._buffers[key] = torch.empty_like(buffer, device=device)
    computed = {id(buffer) for _, buffer in model.named_non_persistent_buffers()}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in computed:
            tensor._is_hf_initialized = True  # type: ignore[attr-defined]
    model.initialize_weights()


def persistent_buffers(module: nn.Module, recurse: bool = True) -> dict[str, torch.Tensor]:
    """Those that a checkpoint holds, by their names; `recurse`: of the modules below too."""

    def is_persistent(name: str) -> bool:
        place, _, key = name.rpartition(".")
        return key not in module.get_submodule(place)._non_persistent_buffers_set

    return {name: buffer for name, buffer in module.named_buffers(recurse=recurse) if is_persistent(name)}
