"""What a file of figures has beside them: command, machine, versions and revision; and the spread of a ratio."""

import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ts2_lightning.cli.record import revision

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = (
    *("torch", "transformers", "lightning", "tokenizers", "datasets", "safetensors", "peft", "deepspeed", "entmax"),
    *("triton", "numpy"),
)


def about() -> dict[str, Any]:
    """Command, time, machine, versions and revision of this process, as plain JSON values."""
    versions = {name: own for name in LIBRARIES if (own := _version(name))}
    return {
        "command": shlex.join(["python", "-m", _module(sys.argv[0]), *sys.argv[1:]]),
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **versions},
        "revision": revision(ROOT),
    }


def _module(script: str) -> str:
    path = Path(script).resolve()
    return ".".join(path.relative_to(ROOT).with_suffix("").parts) if path.is_relative_to(ROOT) else script


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, threads of torch, GPUs, system, and how busy the machine is."""
    torch: Any = sys.modules.get("torch")  # a benchmark of a start does not use it
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] if torch is not None else []
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": None if torch is None else torch.get_num_threads(),
        "gpus": gpus,
        "system": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "load": round(os.getloadavg()[0], 1),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def write(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Writes figures and what is to be known of them, beside and renamed; nowhere if there is no path."""
    if path is None:
        return
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(json.dumps({**about(), **figures}, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, path)


def spread(name: str, ratios: Iterable[float], digits: int = 3) -> dict[str, float]:
    """Median and quartiles of ratios, each of two turns side by side.

    Example:
        >>> spread("to_plain", [1.0, 1.2, 1.1, 1.3, 9.0])
        {'to_plain': 1.2, 'to_plain_p25': 1.1, 'to_plain_p75': 1.3}
        >>> spread("to_plain", [2.0])
        {'to_plain': 2.0, 'to_plain_p25': 2.0, 'to_plain_p75': 2.0}
    """
    values = list(ratios)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {name: round(middle, digits), f"{name}_p25": round(low, digits), f"{name}_p75": round(high, digits)}
