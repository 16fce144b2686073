"""What a file of figures has beside them: command, machine, versions and revision; and ratios with their spread."""

import json
import os
import platform
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ts2_lightning.runs.stamps import revision

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = (
    *("torch", "transformers", "lightning", "tokenizers", "datasets", "safetensors", "peft", "deepspeed", "entmax"),
    *("triton", "numpy", "trl", "liger-kernel"),
)


def about() -> dict[str, Any]:
    """Command, time, machine, versions and revision of this process, as plain JSON values."""
    versions = {name: own for name in LIBRARIES if (own := _version(name))}
    return {
        "command": shlex.join(["python", "-m", _module(sys.argv[0]), *sys.argv[1:]]),
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **versions},
        "revision": revision(ROOT, leave_out="benchmarks/results"),  # a benchmark writes there before it ends
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


def processor_seconds() -> float:
    """Processor seconds so far of this process, with all its threads, and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def side_by_side(
    seconds: Mapping[str, Sequence[float]], unit: str, ratio: str, digits: int = 3
) -> dict[str, dict[str, float]]:
    """Median processor seconds of each subject, and its ratios to one of them, turn by turn, with their spread.

    Args:
        seconds: processor seconds of each subject in every round.
        unit: name of the subject to whose turns in the same rounds ratios are taken.
        ratio: name of the ratios.
        digits: digits of both after the point.

    Example:
        >>> side_by_side({"plain": [1.0, 3.0], "ours": [2.0, 3.0]}, "plain", "to_plain")["ours"]
        {'processor_seconds': 2.5, 'to_plain': 1.5, 'to_plain_p25': 1.25, 'to_plain_p75': 1.75}
    """
    rows = {}
    for name, values in seconds.items():
        ratios = [value / other for value, other in zip(values, seconds[unit], strict=True)]
        rows[name] = {"processor_seconds": round(statistics.median(values), digits), **spread(ratio, ratios, digits)}
    return rows


def show(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints a line for each row of figures."""
    width = max(map(len, rows), default=0)
    for name, row in rows.items():
        figures = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
        print(f"{name:{width}} ", "  ".join(figures), flush=True)
