"""A check that all weights are finite, wherever they lie."""

from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor


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
