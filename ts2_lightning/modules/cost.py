"""What a step costs: the loss head timed under several losses on the same hidden states, padding, peak memory."""

import resource
import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ts2_lightning.losses import TokenLoss
from ts2_lightning.modules.network import SFTNetwork
from ts2_lightning.types import Batch, Targets


def time_losses(
    network: SFTNetwork, batch: Batch, losses: Mapping[str, TokenLoss], rounds: int = 3
) -> dict[str, float]:
    """Seconds of the loss head, forward and backward, on a micro-batch.

    The losses take turns on the very same hidden states, so that what else the machine does meets them alike. No
    statistics are measured, and no gradient reaches the network. Every rank must call.

    Args:
        network: with its weights, sharded or not.
        batch: a micro-batch on the network's device.
        losses: under their names.
        rounds: turns of each, after one that is not counted.

    Returns:
        Name of each loss -> the median of its turns.
    """
    seconds: dict[str, list[float]] = {name: [] for name in losses}

    def measure(head: Any, args: tuple[Any, ...]) -> None:
        # Within the call of the loss head, where every strategy has the weights whole.
        hidden_states, targets = args[:2]
        for _ in range(rounds + 1):
            for name, loss in losses.items():
                with torch.enable_grad():
                    seconds[name].append(_time(head, loss, hidden_states.detach().requires_grad_(), targets))

    handle = network.loss_head.register_forward_pre_hook(measure)
    try:
        with torch.no_grad():
            network(batch, ())
    finally:
        handle.remove()
    return {name: statistics.median(turns[1:]) for name, turns in seconds.items()}


def _time(head: Any, loss: TokenLoss, hidden_states: Tensor, targets: Targets) -> float:
    wait_for(hidden_states.device)
    start = time.perf_counter()
    total = head.under(loss, hidden_states, targets, ()).total
    inputs = [hidden_states, *(parameter for parameter in head.parameters() if parameter.requires_grad)]
    torch.autograd.grad(total, inputs, allow_unused=True)
    wait_for(hidden_states.device)
    return time.perf_counter() - start


def wait_for(device: torch.device) -> None:
    """Waits until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def padded_places(batch: Batch) -> Tensor:
    """[] number of the B x T places of a batch that no row takes."""
    return batch["input_ids"].numel() - batch["row_spans"].diff().sum()


def reset_peak_memory(device: torch.device) -> None:
    """Has `peak_memory_gb` begin anew; on a CPU where the system lets a process reset its own, as Linux does."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # see proc(5)


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory in GB (1e9 bytes): of the GPU's tensors, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
