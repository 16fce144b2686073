"""Weights as they are written: on the CPU, in another dtype, and finite."""

import torch
from torch import Tensor

from ts2_lightning.types import UserError


def as_written(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A weight on the CPU and in the dtype of the export.

    Args:
        name: of the weight, for messages.
        tensor: the weight.
        dtype: what a floating-point one becomes; None leaves it as it is.

    Raises:
        UserError: it has a nan or an infinity: a model with such a weight has no words, and says nothing of it.

    Example:
        >>> as_written("head", torch.tensor([1e5]), torch.float16)
        Traceback (most recent call last):
        ts2_lightning.types.UserError: the weight head cannot be exported: its values do not fit into torch.float16; \
choose bfloat16 or float32
    """
    written = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None)
    if written.isfinite().all():
        return written
    if tensor.isfinite().all():
        raise UserError(
            f"the weight {name} cannot be exported: its values do not fit into {written.dtype}; choose bfloat16 or "
            "float32"
        )
    raise UserError(
        f"the weight {name} cannot be exported: it has nan or infinite values; export an earlier checkpoint"
    )
