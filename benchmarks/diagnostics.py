"""What DistributionMonitor costs: a training step with it fully on, thinned, and without it.

A random Llama (H 1,024, 4 layers, K 128,256) is trained on 2,048 random tokens, all of them supervised. In each round
the modes take turns on the same batch, and each turn is a whole optimizer step with all that the trainer calls around
it. The order is reversed from round to round. What a thinned monitor costs follows from its two kinds of steps.
Processor time; ratios are to the turn without the monitor in the same round: median and quartiles.

    python -m benchmarks.diagnostics --rounds 5 --out benchmarks/results/diagnostics_cpu.json
    python -m benchmarks.diagnostics --quick
"""

import argparse
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.record import show, side_by_side, write
from ts2_lightning.callbacks import DistributionMonitor, TSPDSetting
from ts2_lightning.losses import CrossEntropyLoss, TokenLoss, TS2Loss
from ts2_lightning.modules import LanguageModelConfig, SFTModule
from ts2_lightning.types import Batch

THINNED = 10
"""Of so many steps a thinned monitor measures one."""

MODES = ("off", "left_out", "means", "full")
"""Without the monitor; in a step that a thinned one leaves out; with its defaults; fully on."""

LOSSES: dict[str, type[TokenLoss]] = {"TS2Loss": TS2Loss, "CrossEntropyLoss": CrossEntropyLoss}

Sizes = dict[str, int]
TARGET: Sizes = {"width": 1024, "layers": 4, "vocabulary": 128_256, "tokens": 2048}
QUICK: Sizes = {"width": 32, "layers": 1, "vocabulary": 300, "tokens": 64}


class Turns(Dataset[Batch]):
    """The same batch again and again."""

    def __init__(self, batch: Batch, count: int) -> None:
        self._batch, self._count = batch, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Batch:
        return self._batch


class TakeTurns(Callback):
    """Has one monitor at a time take part, and times each step from the end of the one before."""

    def __init__(self, monitors: dict[str, DistributionMonitor | None], warmup: int) -> None:
        self._monitors = monitors
        self._warmup = warmup
        self.turns: list[tuple[str, float]] = []

    def mode(self, step: int) -> str:
        """Whose turn it is; the order is reversed in every other round."""
        turn, place = divmod(step, len(MODES))
        return MODES[place if turn % 2 == 0 else -1 - place]

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Starts the monitors and the clock."""
        for monitor in filter(None, self._monitors.values()):
            monitor.on_train_start(trainer, trainer.lightning_module)
        self._started = time.process_time()

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """Tells the monitor whose turn it is."""
        if (monitor := self._monitors[self.mode(batch_idx)]) is not None:
            monitor._last_step = trainer.global_step
            monitor.on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Tells it again, and takes the time."""
        if (monitor := self._monitors[self.mode(batch_idx)]) is not None:
            monitor.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        now = time.process_time()
        if batch_idx >= self._warmup:
            self.turns.append((self.mode(batch_idx), now - self._started))
        self._started = now


def random_batch(sizes: Sizes) -> Batch:
    """One sequence, all of whose tokens are supervised."""
    n = sizes["tokens"]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(sizes["vocabulary"], (n + 1,), generator=generator)
    return {
        "input_ids": ids[None, :-1],
        "attention_mask": torch.ones(1, n, dtype=torch.long),
        "supervised": torch.arange(n),
        "labels": ids[1:],
        "token_rows": torch.zeros(n, dtype=torch.long),
        "positions": torch.arange(1, n + 1),
        "lengths": torch.full((n,), n),
        "weights": torch.ones(n),
        "row_index": torch.zeros(1, dtype=torch.long),
        "row_spans": torch.tensor([[0, n]]),
        "divisor": torch.tensor(n),
    }


def full(every_n_steps: int = 1) -> DistributionMonitor:
    """All that it knows."""
    return DistributionMonitor(
        every_n_steps=every_n_steps,
        tspd=[TSPDSetting(2, 0.1, 0.1), TSPDSetting(4, 0.05, 0.1), TSPDSetting(10, 0.01, 0.1)],
        split_by=["position", "token_class"],
        histogram_every_n_steps=1,
    )


def measure(loss: TokenLoss, sizes: Sizes, rounds: int, threads: int) -> dict[str, dict[str, float]]:
    """Processor seconds of each mode's turns, and their ratios to the turns without a monitor of the same round."""
    torch.set_num_threads(threads)
    monitors: dict[str, DistributionMonitor | None] = {
        "off": None, "left_out": full(10**9), "means": DistributionMonitor(), "full": full()
    }  # fmt: skip
    for monitor in filter(None, monitors.values()):  # in place of a tokenizer's
        monitor._table = torch.arange(sizes["vocabulary"]).remainder(5).to(torch.uint8)
    turns = TakeTurns(monitors, warmup=len(MODES))
    with tempfile.TemporaryDirectory() as place:
        config = LlamaConfig(
            vocab_size=sizes["vocabulary"], hidden_size=sizes["width"], intermediate_size=3 * sizes["width"],
            num_hidden_layers=sizes["layers"], num_attention_heads=8, num_key_value_heads=4,
            max_position_embeddings=sizes["tokens"], tie_word_embeddings=True,
        )  # fmt: skip
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(place)
        trainer = Trainer(
            default_root_dir=place, accelerator="cpu", devices=1, max_epochs=1, callbacks=[turns],
            logger=[TensorBoardLogger(place, name="tb", version=""), CSVLogger(place, name="csv", version="")],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        )  # fmt: skip
        steps = (rounds + 1) * len(MODES)
        data: Any = DataLoader(Turns(random_batch(sizes), steps), batch_size=None)
        trainer.fit(SFTModule(LanguageModelConfig(place), loss), data)
    return summary(turns.turns)


def summary(turns: list[tuple[str, float]]) -> dict[str, dict[str, float]]:
    """Medians over rounds, of seconds and of ratios within a round; `thinned` from its two kinds of steps."""
    size = len(MODES)
    rounds = [dict(turns[start : start + size]) for start in range(0, len(turns), size)]
    for one in rounds:
        one["thinned"] = ((THINNED - 1) * one["left_out"] + one["full"]) / THINNED
    seconds = {mode: [one[mode] for one in rounds] for mode in (*MODES, "thinned")}
    return side_by_side(seconds, "off", "to_off", digits=4)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each mode, after one that is not counted")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--quick", action="store_true", help="toy sizes: whether it runs, not how fast")
    parser.add_argument("--losses", nargs="+", choices=list(LOSSES), default=list(LOSSES), help="objectives")
    parser.add_argument("--tokens", type=int, help="of the batch")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    sizes = dict(QUICK if options.quick else TARGET)
    sizes["tokens"] = options.tokens or sizes["tokens"]
    results: dict[str, dict[str, dict[str, float]]] = {}
    for name in options.losses:
        print(name)
        results[name] = measure(LOSSES[name](), sizes, options.rounds, options.threads)
        show(results[name])
        write(options.out, {"sizes": sizes, "rounds": options.rounds, "results": results})


if __name__ == "__main__":
    main()
