"""Weights as they are written: on the CPU, in another dtype, and finite."""

import torch
from torch import Tensor

from ts2_lightning.modules.nonfinite import first_nonfinite
from ts2_lightning.types import UserError


def as_written(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A weight on the CPU and in the dtype of the export.

    Args:
        name: name of the weight, for messages.
        tensor: value of the weight.
        dtype: dtype of a floating-point weight; None leaves it as it is.

    Raises:
        UserError: if it has a nan or an infinity: a model with such a weight writes nothing, without an error.

    Example:
        >>> as_written("head", torch.tensor([1e5]), torch.float16)
        Traceback (most recent call last):
        ts2_lightning.types.UserError: cannot export in torch.float16, into which weights do not fit: head (1 of its 1 \
numbers); choose another
    """
    written = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None)
    weight = first_nonfinite([(name, written)])
    if weight is None:
        return written
    if first_nonfinite([(name, tensor)]) is None:
        raise UserError(f"cannot export in {written.dtype}, into which weights do not fit: {weight}; choose another")
    raise UserError(f"cannot export NaN or infinite weights: {weight}; export an earlier checkpoint")
