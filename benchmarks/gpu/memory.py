"""Memory that the heads allocate: the most at a time, beyond what they get and beyond the head's gradient."""

import gc
from collections.abc import Collection

import torch

from benchmarks.gpu.device import Device, Step, check_names, tell, told
from benchmarks.gpu.heads import COMPILED, MEMORY_TARGET, PRODUCTS, SHAPES, SUBJECTS, TINY, inputs, target_beside
from ts2_lightning.planning.counting import LiveBytes

GB = 1e9

FLOAT = 4
"""Bytes of an element of the logits, and of the sum of the head's gradient."""


def measure(device: Device, names: Collection[str] = ()) -> None:
    """Tells the peak of every head at the first shape, and the target.

    Each head has made a step before, so that neither its compiler nor the libraries allocate in what is measured.

    Args:
        device: The device.
        names: Which heads; all by default.
    """
    check_names("--heads", names, [*SUBJECTS, COMPILED])
    shape = (TINY if device.tiny else SHAPES)[0]
    data = inputs(device, shape)
    logits = FLOAT * shape.tokens * shape.vocabulary
    for name, subject in SUBJECTS.items():
        what = {"part": "memory", "head": name, "shape": str(shape)}
        if name == PRODUCTS or (names and name not in names):
            continue
        if device.left < 3:
            tell(**what, ok=False, failed="no time was left")
            continue
        with told(**what):
            step = subject.step(data)
            step()
            data.head.weight.grad = data.hidden_states.grad = None
            peak = peak_bytes(device, step)
            matrix = shape.vocabulary * shape.width
            beyond = {"weights": peak - data.head.weight.element_size() * matrix, "float32": peak - FLOAT * matrix}
            tell(
                **what,
                peak_gb=round(peak / GB, 3),
                peak_in_nk=round(peak / logits, 3),
                beyond_gradient_gb=round(beyond["weights"] / GB, 3),
                beyond_float32_gradient_gb=round(beyond["float32"] / GB, 3),
                beyond_float32_gradient_in_nk=round(beyond["float32"] / logits, 3),
            )
            if name == "TS2":
                target = "TS2, GB beyond the head's gradient in float32"
                tell(part="memory", **target_beside(target, beyond["float32"] / GB, MEMORY_TARGET, device.tiny))


def peak_bytes(device: Device, step: Step) -> int:
    """The most bytes that a step allocates at a time, over what was there before."""
    gc.collect()
    if device.tiny:
        with LiveBytes() as live:
            step()
        return live.peak
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
