"""The norm of a step's gradient and clipping to it, and a check that weights are finite, wherever both lie."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, Strategy
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor


def clip_gradients(strategy: Strategy, parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Clips the gradients of a step to a norm, all of them by one factor. Every rank must call.

    Args:
        strategy: strategy that holds the gradients. DeepSpeed has clipped them itself when the update is done.
        parameters: parameters of the network.
        max_norm: largest norm of the gradients afterwards; None or 0 leaves them as they are.

    Returns:
        [] norm before clipping, over all parameters and ranks. Not finite if any gradient on any rank is not.
    """
    if isinstance(strategy, DeepSpeedStrategy):
        return torch.as_tensor(strategy.deepspeed_engine.get_global_grad_norm())
    if isinstance(strategy, FSDPStrategy):
        assert isinstance(strategy.model, FullyShardedDataParallel)
        return strategy.model.clip_grad_norm_(max_norm or math.inf)
    groups = _by_mesh(p for p in parameters if p.grad is not None)
    norm = _total_norm([_norm(group) for group in groups])
    if max_norm:
        for group in groups:
            torch.nn.utils.clip_grads_with_norm_(group, max_norm, norm)
    return norm


def _by_mesh(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Groups of parameters that are sharded over the same ranks, or over none: torch refuses a mixture."""
    groups: dict[Any, list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(parameter.device_mesh if isinstance(parameter, DTensor) else None, []).append(parameter)
    return list(groups.values()) or [[]]


def _norm(parameters: list[nn.Parameter]) -> Tensor:
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _total_norm(norms: list[Tensor]) -> Tensor:
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm()


@torch.no_grad()
def nonfinite_weight(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> str | None:
    """The name of a trained weight in which there is a nan or an infinity. Every rank must call; all get the same.

    One number is computed for each weight, and a GPU is waited for once.

    Args:
        named_parameters: parameters of the network; whole, DTensors (FSDP2, tensor parallelism), or sharded by ZeRO-3.

    Returns:
        The first such name on the first rank that has one; None if all weights are finite.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> nonfinite_weight(layer.named_parameters()) is None
        True
        >>> layer.bias.data.fill_(torch.inf)
        tensor([inf])
        >>> nonfinite_weight(layer.named_parameters())
        'bias'
    """
    names, largest = [], []
    for name, parameter in named_parameters:
        mine = _own_part(parameter)
        if parameter.requires_grad and mine.is_floating_point() and mine.numel():
            names.append(name)
            largest.append(torch.linalg.vector_norm(mine, torch.inf).to(torch.float32))
    finite = torch.stack(largest).isfinite().tolist() if largest else []
    first = next((name for name, is_finite in zip(names, finite, strict=True) if not is_finite), None)
    if not (distributed.is_available() and distributed.is_initialized()):
        return first
    everywhere: list[str | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everywhere, first)
    return next(filter(None, everywhere), None)


def _own_part(parameter: nn.Parameter) -> Tensor:
    """The part of a parameter that this rank holds."""
    if isinstance(parameter, DTensor):
        return parameter.to_local()
    part: Tensor = getattr(parameter, "ds_tensor", parameter)
    return part.detach()
