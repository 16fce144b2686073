"""How far the weights have come from where the training started."""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers import PreTrainedModel

from ts2_lightning.modules.adapters import is_adapted
from ts2_lightning.modules.config import LanguageModelConfig
from ts2_lightning.modules.language_model import load_language_model, stored_dtype
from ts2_lightning.ops import widest_float
from ts2_lightning.types import UserError


def start_weights(config: LanguageModelConfig, model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights that a model had when it was loaded, mapped from the checkpoint's files and in their dtype.

    They take no memory but the file cache's, which the ranks of a node share.

    Args:
        config: Which model.
        model: that is trained.

    Raises:
        UserError: its start is not in a file.
    """
    if is_adapted(model):
        raise UserError(
            "the distance of the weights from the start is that of whole weights, and the model has an adapter; leave "
            "it out (ReferenceDrift: weights: false)"
        )
    if config.init != "pretrained":
        raise UserError(
            "the distance of the weights from the start needs their file, and model.lm.init is random; leave it out "
            "(ReferenceDrift: weights: false)"
        )
    start = load_language_model(replace(config, gradient_checkpointing=False), stored_dtype(config))
    return {name: parameter.detach() for name, parameter in start.named_parameters()}


@torch.no_grad()
def squared_distance(model: nn.Module, start: dict[str, Tensor], world_size: int = 1) -> Tensor:
    """This rank's share of the squared l2 distance of the weights from the start; those of all ranks add up to it.

    Tied weights count once. A weight of which several ranks have the same part counts once too.

    Args:
        model: whole, or with DTensors (FSDP2, tensor parallelism), or sharded by ZeRO-3.
        start: name -> whole weight, see `start_weights`.
        world_size: number of ranks.

    Returns:
        [] float64, on the CPU.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> start = {"weight": layer.weight.detach() + torch.tensor([[3.0, 4.0]])}
        >>> round(squared_distance(layer, start).item(), 3)
        25.0
    """
    total = torch.zeros((), dtype=torch.float64)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            mine, then, parts = _parts(parameter, start[name])
            difference = mine - then.to(mine.device, mine.dtype)
            share = difference.square().sum(dtype=widest_float(mine.device)) * parts / world_size
            total += share.cpu()
    return total


def _parts(parameter: nn.Parameter, whole: Tensor) -> tuple[Tensor, Tensor, int]:
    """This rank's part of a weight, the same part of another, and how many parts a weight has."""
    if hasattr(parameter, "ds_tensor"):  # ZeRO-3: an equal share of the flat weight, filled up at the end
        share = parameter.ds_tensor.flatten()
        begin = torch.distributed.get_rank() * share.numel()
        part = whole.flatten()[begin : begin + share.numel()]
        return share[: part.numel()], part, torch.distributed.get_world_size()
    if isinstance(parameter, DTensor):
        mesh, placements = parameter.device_mesh, parameter.placements
        sharded = [size for size, place in zip(mesh.shape, placements, strict=True) if isinstance(place, Shard)]
        part = distribute_tensor(whole.to(mesh.device_type), mesh, placements, src_data_rank=None).to_local()
        return parameter.to_local(), part, math.prod(sharded)
    return parameter, whole, 1
