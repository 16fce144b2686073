"""What it costs to look whether a checkpoint is as it was written, beside loading it.

    python -m benchmarks.checkpoint_check --out benchmarks/results/checkpoint_check_cpu.json

A random model in float32 with the state of AdamW, as one file, and as a directory whose files have the checksums of the
manifest. Loading is what a training that goes on does: the base model, the checkpoint, the states of model and
optimizer. Rounds take turns; each kind has its processor seconds and its ratios to loading in the same rounds: median
and quartiles. Of what comes from the disk the seconds that passed are told beside: to wait takes no processor time.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks import record
from benchmarks.memory_export import write_base
from ts2_lightning import checkpoint_files as files
from ts2_lightning.modules import LanguageModelConfig
from ts2_lightning.modules.language_model import load_language_model


def trained(model: PreTrainedModel) -> torch.optim.AdamW:
    """An optimizer that has made a step."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def write(directory: Path) -> None:
    """The base model, and a checkpoint of each kind."""
    write_base(directory / "base")
    model = AutoModelForCausalLM.from_pretrained(directory / "base", dtype=torch.float32)
    state: dict[str, Any] = {"state_dict": model.state_dict(), "optimizer_states": [trained(model).state_dict()]}
    torch.save(state, directory / "one file")
    dcp.save(state, checkpoint_id=directory / "directory", no_dist=True)
    files.write_manifest(directory / "directory", 1, files.block_checksums(directory / "directory"))


def load(directory: Path) -> None:
    """What a training that goes on loads."""
    model = load_language_model(LanguageModelConfig(str(directory / "base")))
    state = torch.load(directory / "one file", map_location="cpu", weights_only=True)
    model.load_state_dict(state["state_dict"])
    torch.optim.AdamW(model.parameters(), fused=True).load_state_dict(state["optimizer_states"][0])


def check(checkpoint: Path) -> None:
    """What is done before."""
    assert files.damage_of(checkpoint) is None


def check_and_load(directory: Path) -> None:
    """Both, one after the other: what was read once is in the memory then."""
    check(directory / "one file")
    load(directory)


def forget_files(directory: Path) -> None:
    """As after a restart: the system has none of the files in its memory."""
    for file in (path for path in directory.rglob("*") if path.is_file()):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Processor seconds of all threads, and seconds that passed."""
    processor, passed = record.processor_seconds(), time.perf_counter()
    work()
    return record.processor_seconds() - processor, time.perf_counter() - passed


def measure(directory: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of each kind, and its ratios to loading."""
    works: dict[str, Callable[[], object]] = {
        "load": partial(load, directory),
        "check, one file": partial(check, directory / "one file"),
        "check, directory": partial(check, directory / "directory"),
        "checksums when a directory is written": partial(files.block_checksums, directory / "directory"),
        "load, from the disk": partial(load, directory),
        "check and load, from the disk": partial(check_and_load, directory),
    }
    processor: dict[str, list[float]] = {name: [] for name in works}
    passed: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            if "from the disk" in name:
                forget_files(directory)
            else:
                work()  # brings the files into the memory
            of_turn = timed(work)
            processor[name].append(of_turn[0])
            passed[name].append(of_turn[1])
    rows: dict[str, dict[str, float]] = record.side_by_side(processor, "load", "to_load")
    for name in works:
        if "from the disk" in name:
            rows[name]["seconds"] = round(statistics.median(passed[name]), 3)
    return rows


def main() -> None:
    """Measures, prints and keeps it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        write(Path(temporary))
        size = (Path(temporary) / "one file").stat().st_size
        results = measure(Path(temporary), options.rounds)
    record.show(results)
    figures = {"checkpoint_gb": round(size / 1e9, 2), "rounds": options.rounds, "results": results}
    record.write(options.out, figures)


if __name__ == "__main__":
    main()
