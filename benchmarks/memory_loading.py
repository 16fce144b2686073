"""Memory of each of two ranks while a sharded model is given its weights, against loading it whole on every rank.

    OMP_NUM_THREADS=1 python -m benchmarks.memory_loading --out benchmarks/results/memory_loading_cpu.json

A random Llama of at least 1 GB is saved in bfloat16, and loaded into float32 by two processes on the CPU (gloo), from a
checkpoint that is in no process's memory before. Per rank, in GB (1e9 bytes):

- private: peak growth of memory of the process's own (RssAnon), sampled every 2 ms
- mapped: peak growth of pages of the checkpoint's files (RssFile), which the system takes back when it needs them
- kept: what the rank's own weights take in the end

`whole` is `from_pretrained` on every rank, sharded by FSDP2 afterwards, which is what a plain script does. The ways
take turns; `private_to_whole` and `seconds_to_whole` are ratios to it in the same round, of private memory and of
processor time: median and quartiles.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.record import ROOT, show, spread, write
from ts2_lightning.modules import LanguageModelConfig
from ts2_lightning.modules.language_model import build_language_model, load_language_model
from ts2_lightning.modules.weights import load_weights

WAYS = ("whole", "fsdp2", "zero3")
GB = 1e9

Round = dict[str, list[dict[str, float]]]
"""Way -> for each rank what it has measured."""


def save_random_model(directory: Path, layers: int) -> None:
    """A Llama of width 2,048 in bfloat16: 51 million weights per layer, 131 million outside of them."""
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=layers, num_attention_heads=16
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory, max_shard_size="500MB")


class Peak:
    """Watches this process's memory; `growth` is the most that it has grown since, in bytes."""

    def __init__(self) -> None:
        self._start = self._now()
        self.growth = dict.fromkeys(self._start, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @staticmethod
    def _now() -> dict[str, int]:
        lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
        return {words[0]: int(words[1]) * 1024 for words in lines if words[0] in ("RssAnon:", "RssFile:")}

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            for name, value in self._now().items():
                self.growth[name] = max(self.growth[name], value - self._start[name])

    def stop(self) -> None:
        """Ends the watch."""
        self._stop.set()
        self._thread.join()


def load(way: str, config: LanguageModelConfig) -> nn.Module:
    """The model, sharded over the ranks, with its weights."""
    if way == "zero3":
        import deepspeed

        settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
        with deepspeed.zero.Init(config_dict_or_path=settings):
            model = build_language_model(config, device=None)
            load_weights(model, config)
            return model
    model = load_language_model(config) if way == "whole" else build_language_model(config)
    layers: Any = model.base_model.layers
    for layer in layers:
        fully_shard(layer)
    fully_shard(model)
    if way == "fsdp2":
        load_weights(model, config)
    return model


def kept(model: nn.Module) -> int:
    """Bytes of this rank's weights."""
    held = [getattr(p, "ds_tensor", p) for p in model.parameters()]
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in held]
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


def work(way: str, directory: Path, out: Path) -> None:
    """What one rank does."""
    dist.init_process_group("gloo")
    import deepspeed  # in any case, so that all ways start from the same memory

    deepspeed.init_distributed("gloo", dist_init_required=False, verbose=False)
    dist.barrier()
    peak, started = Peak(), time.process_time()
    model = load(way, LanguageModelConfig(str(directory)))
    peak.stop()
    seconds = time.process_time() - started
    private, mapped = (round(peak.growth[name] / GB, 3) for name in ("RssAnon:", "RssFile:"))
    row = {"private": private, "mapped": mapped, "kept": round(kept(model) / GB, 3), "seconds": round(seconds, 3)}
    (out / f"{way}-{dist.get_rank()}.json").write_text(json.dumps(row))
    dist.barrier()
    dist.destroy_process_group()


def measure(directory: Path, out: Path) -> Round:
    """One round, each way in processes of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    rows = {}
    for way in WAYS:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        worker = ["-m", "benchmarks.memory_loading", "--way", way, "--model", str(directory), "--out", str(out)]
        subprocess.run([*launch, *worker], check=True, env=environment, stdout=subprocess.DEVNULL, cwd=ROOT)
        rows[way] = [json.loads((out / f"{way}-{rank}.json").read_text()) for rank in range(2)]
    return rows


def summary(rounds: list[Round]) -> dict[str, dict[str, float]]:
    """Medians of each way and rank, and their ratios to `whole`."""
    rows = {}
    for way in WAYS:
        for rank in range(2):
            mine, whole = ([one[name][rank] for one in rounds] for name in (way, "whole"))
            row = {key: round(statistics.median(of_round[key] for of_round in mine), 3) for key in mine[0]}
            for key in ("private", "seconds"):
                pairs = zip(mine, whole, strict=True)
                row |= spread(f"{key}_to_whole", (of_round[key] / other[key] for of_round, other in pairs))
            rows[f"{way}, rank {rank}"] = row
    return rows


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=10, help="of the random model; 10 make 1.3 GB on disk")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        work(arguments.way, arguments.model, arguments.out)
        return
    with tempfile.TemporaryDirectory() as scratch:
        directory, out = Path(scratch) / "model", Path(scratch)
        save_random_model(directory, arguments.layers)
        stored = sum(file.stat().st_size for file in directory.glob("*.safetensors")) / GB
        results = summary([measure(directory, out) for _ in range(arguments.rounds)])
    show(results)
    sizes = {"stored": round(stored, 3), "in_float32": round(2 * stored, 3)}
    write(arguments.out, {**sizes, "rounds": arguments.rounds, "results": results})


if __name__ == "__main__":
    main()
