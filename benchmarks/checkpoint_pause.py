"""How long a step waits for a checkpoint that is written at once, and for one that is written while training goes on.

    OMP_NUM_THREADS=1 python -m benchmarks.checkpoint_pause --out benchmarks/results/checkpoint_pause_cpu.json

A random Llama in float32 with AdamW's moments, as one file. Between two steps both ways save the same state, in turns,
the one or the other first; what the thread of training spends until it may go on is its pause, in processor seconds and
in seconds that passed. Not counted: what the other thread needs after it, which is awaited before the next save.
Growth of memory is that of the process's own (RssAnon), sampled every 2 ms until the checkpoint is on disk.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import record
from benchmarks.memory_loading import Peak
from ts2_lightning.callbacks import Checkpoints

SIZES: dict[str, Any] = {
    "vocab_size": 32_000, "hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8,
}  # fmt: skip
AT_ONCE, IN_A_THREAD = "at once", "in a thread"


class Learner(LightningModule):
    """All weights change in every step."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=layers))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The loss of a few random tokens."""
        ids = torch.randint(0, SIZES["vocab_size"], (1, 16))
        return self.model(input_ids=ids, labels=ids).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, as a fit has it."""
        return torch.optim.AdamW(self.parameters(), lr=1e-4, fused=True)


class Pauses(Callback):
    """Saves both ways between two steps, and measures what the thread of training spends.

    Args:
        ways: callbacks that save.
    """

    def __init__(self, ways: dict[str, Checkpoints]) -> None:
        self.ways = ways
        self.rows: list[dict[str, Any]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Settle the directories."""
        for checkpoints in self.ways.values():
            checkpoints.setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin as they do."""
        for checkpoints in self.ways.values():
            checkpoints.on_train_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """One round."""
        if trainer.global_step == 0:
            return  # AdamW has no moments
        order = [*self.ways.items()][:: 1 if trainer.global_step % 2 else -1]
        self.rows.append({name: self.save(trainer, checkpoints) for name, checkpoints in order})

    def save(self, trainer: Trainer, checkpoints: Checkpoints) -> dict[str, float]:
        """One checkpoint."""
        peak = Peak()
        processor, passed = time.thread_time(), time.perf_counter()
        checkpoints.save(trainer)
        pause = {"processor_seconds": time.thread_time() - processor, "seconds": time.perf_counter() - passed}
        checkpoints.save(trainer, wait=True)
        on_disk = time.perf_counter() - passed
        peak.stop()
        return {**pause, "seconds_until_on_disk": on_disk, "growth": peak.growth["RssAnon:"]}


def measure(directory: Path, layers: int, rounds: int) -> dict[str, Any]:
    """Medians and quartiles over rounds, and of the ratios of each round."""
    ways = {
        AT_ONCE: Checkpoints(str(directory / "plain")),
        IN_A_THREAD: Checkpoints(str(directory / "thread"), asynchronous=True),
    }
    pauses = Pauses(ways)
    trainer = Trainer(
        accelerator="cpu", callbacks=[pauses], logger=False, enable_checkpointing=False, max_steps=rounds + 2,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(directory),
    )  # fmt: skip
    module = Learner(layers)
    trainer.fit(module, DataLoader(range(rounds + 2), batch_size=None))  # type: ignore[arg-type]
    rows = pauses.rows[1:]  # in the first the memory of both is new
    [size] = {path.stat().st_size for path in directory.glob("*/step-*.ckpt")}
    names = ("processor_seconds", "seconds", "seconds_until_on_disk")
    figures: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "checkpoint_bytes": size,
        "rounds": len(rows),
    }
    for way in ways:
        figures[way] = {}
        for name in names:
            figures[way] |= record.spread(name, (row[way][name] for row in rows))
        figures[way]["peak_growth_bytes"] = max(row[way]["growth"] for row in pauses.rows)
    for name in names[:2]:
        ratios = (row[IN_A_THREAD][name] / row[AT_ONCE][name] for row in rows)
        figures[IN_A_THREAD] |= record.spread(f"{name}_to_at_once", ratios)
    return figures


def main() -> None:
    """Measures, prints and keeps it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8, help="of the random model; 8 make 58 million weights")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--directory", type=Path, help="where to write the checkpoints; default: a temporary directory")
    parser.add_argument("--out", type=Path, help="file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        figures = measure(Path(directory), options.layers, options.rounds)
    print(json.dumps(figures, indent=2))
    record.write(options.out, figures)


if __name__ == "__main__":
    main()
