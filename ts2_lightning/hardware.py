"""Figures of GPUs that decide memory and time, the memory at hand, and which errors say that none is left.

Memory is what the driver reports (nvidia-smi, in MiB), which is what a process can have; the rest is from NVIDIA's data
sheets: dense bfloat16 FLOP/s (a sheet's larger figure is with sparsity), bandwidth of the memory, of the links between
the GPUs of a node in one direction (half of what a sheet adds up), and of the bus to the host.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError

GB, MIB = 1e9, 2**20


@dataclass(frozen=True)
class GPU:
    """One GPU, and its share of the network.

    Attributes:
        name: name for messages.
        memory: bytes of its memory.
        flops: dense bfloat16 operations per second, summed in float32.
        bandwidth: bytes per second, of its memory.
        link: bytes per second in one direction, to the other GPUs of its node.
        host: bytes per second in one direction, to the memory of the host.
        network: bytes per second in one direction, to other nodes; a node's total over its GPUs.
        source: source of the figures.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float
    host: float
    network: float
    source: str


_NDR, _HDR, _ETHERNET = 50 * GB, 25 * GB, 3.1 * GB  # 400, 200 and 25 Gbit/s for each GPU
_PCIE5, _PCIE4 = 64 * GB, 32 * GB

GPUS = {
    "h200": GPU(
        "H200 SXM", 143771 * MIB, 989e12, 4.8e12, 450 * GB, _PCIE5, _NDR, "H200 data sheet; DGX H200: 400 Gb/s"
    ),
    "h100": GPU(
        "H100 SXM", 81559 * MIB, 989e12, 3.35e12, 450 * GB, _PCIE5, _NDR, "H100 data sheet; DGX H100: 400 Gb/s"
    ),
    "b200": GPU("B200 SXM", 183359 * MIB, 2250e12, 8e12, 900 * GB, _PCIE5, _NDR, "DGX B200 data sheet"),
    "a100": GPU("A100 SXM 80 GB", 81920 * MIB, 312e12, 2.039e12, 300 * GB, _PCIE4, _HDR, "A100 data sheet; DGX A100"),
    "a100-40gb": GPU("A100 SXM 40 GB", 40960 * MIB, 312e12, 1.555e12, 300 * GB, _PCIE4, _HDR, "A100 data sheet"),
    "l40s": GPU("L40S", 46068 * MIB, 362e12, 0.864e12, _PCIE4, _PCIE4, _ETHERNET, "L40S data sheet; no NVLink"),
    "rtx4090": GPU(
        "RTX 4090", 24564 * MIB, 165e12, 1.008e12, _PCIE4, _PCIE4, _ETHERNET, "Ada architecture white paper; no NVLink"
    ),
}
"""The GPUs by their short names."""


def find_gpu(name: str) -> GPU:
    """A GPU by its short name, in any case.

    Raises:
        UserError: if there is none.

    Example:
        >>> round(find_gpu("H200").memory / 2**30, 1)
        140.4
    """
    if name.lower() not in GPUS:
        hint = did_you_mean(name.lower(), GPUS)
        raise UserError(f"--gpu: expected one of {', '.join(GPUS)}, got {name!r}{hint}")
    return GPUS[name.lower()]


_DEVICES = {
    "NVIDIA H200": "h200",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA B200": "b200",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA A100-SXM4-40GB": "a100-40gb",
    "NVIDIA L40S": "l40s",
    "NVIDIA GeForce RTX 4090": "rtx4090",
}
"""The driver's names of the GPUs. Variants with other figures (PCIe, NVL) are left out."""


def gpu_of_device(name: str) -> GPU | None:
    """A GPU by the driver's name of it; None if there are no figures of it.

    Example:
        >>> gpu_of_device("NVIDIA H200").flops
        989000000000000.0
        >>> gpu_of_device("NVIDIA H100 PCIe") is None
        True
    """
    return GPUS[_DEVICES[name]] if name in _DEVICES else None


@dataclass(frozen=True)
class Machine:
    """A machine whose CPU computes: its processes share its memory; there are no figures of its speed.

    Attributes:
        name: name for messages.
        memory: bytes of memory, for all processes.
    """

    name: str
    memory: float


_LIMIT = Path("/sys/fs/cgroup/memory.max")


def this_machine() -> Machine:
    """The machine at hand, as far as its memory is ours: a container may have a part of it.

    Example:
        >>> this_machine().name
        "this machine's CPU"
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _LIMIT.read_text().strip() if _LIMIT.is_file() else "max"
    return Machine("this machine's CPU", min(memory, int(limit)) if limit.isdigit() else memory)


def device_at_hand(device: torch.device) -> GPU | Machine:
    """A CUDA device or this machine's CPU, with the memory that this process can have there.

    Of a GPU that other processes use too that is what they leave; where there are no figures of its kind, its speed is
    taken to be an H200's.

    Raises:
        UserError: it is another kind of device.
    """
    if device.type == "cpu":
        return this_machine()
    if device.type != "cuda":
        raise UserError(f"trainer.accelerator: there are figures of CUDA devices and CPUs, not of {device.type}")
    name = torch.cuda.get_device_name(device)
    memory = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return replace(gpu_of_device(name) or GPUS["h200"], name=name, memory=memory)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU's allocator, had no memory left.

    Example:
        >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")), is_out_of_memory(ValueError("none left"))
        (True, False)
    """
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in said
