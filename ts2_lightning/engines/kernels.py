"""Whether Triton's kernels read the rows of logits, or torch's operations do."""

import os
import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from ts2_lightning.ops import RowKernels, SummaryRequest
from ts2_lightning.types import UserError

OLDEST_GPU = (8, 0)
"""The compute capability of the first NVIDIA GPUs with bfloat16."""

_PLACE = "ts2_lightning.ops.row_kernels"


def row_kernels(wanted: bool | None, logits: Tensor) -> RowKernels | None:
    """The kernels that read rows of logits, or None for torch's operations.

    Args:
        wanted: whether kernels are to be used; None where they can be.
        logits: rows of logits.

    Raises:
        UserError: kernels are wanted, and cannot be had.
    """
    if wanted is False or (wanted is None and (logits.device.type != "cuda" or logits.dtype != torch.float32)):
        return None
    obstacle = _obstacle(logits.device)
    if wanted is None:
        return None if obstacle and _told(obstacle) else _kernels()
    if logits.dtype != torch.float32:
        obstacle = f"they read logits in float32, got {str(logits.dtype).removeprefix('torch.')}"
    if obstacle:
        raise UserError(
            f"ChunkedEngine: kernels is true, but they cannot be used: {obstacle}; leave it out, or set it to false"
        )
    return _kernels()


def _kernels() -> RowKernels:
    kernels: RowKernels = import_module(_PLACE)
    return kernels


@cache
def _told(obstacle: str) -> bool:
    """Tells once, on one rank, why a GPU takes the slower way."""
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        text = "Rows of logits are read by torch's operations, which take more passes over memory than kernels would"
        warnings.warn(f"{text}: {obstacle}", stacklevel=2)
    return True


@cache
def _obstacle(device: torch.device) -> str:
    """Why kernels cannot run on a device; empty if they can."""
    if find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if device.type == "cpu":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        return "" if interpreted else "a CPU runs them in Triton's interpreter alone (TRITON_INTERPRET=1), slowly"
    if device.type != "cuda" or torch.version.hip is not None:
        return f"they are for NVIDIA GPUs, and this device is {'an AMD GPU' if device.type == 'cuda' else device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_GPU:
        return f"{torch.cuda.get_device_name(device)} is older than compute capability {OLDEST_GPU[0]}.{OLDEST_GPU[1]}"
    return _trial(device)


def _trial(device: torch.device) -> str:
    """What goes wrong where a kernel is compiled and run on one row: Triton needs a C compiler and a fitting driver."""
    try:
        _kernels().summarize(
            torch.zeros(1, 8, device=device), torch.zeros(1, dtype=torch.long, device=device), SummaryRequest()
        )
    except Exception as error:  # whatever a compiler, a driver or a version of Triton may raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"Triton's kernel does not run here ({reason})"
    return ""
