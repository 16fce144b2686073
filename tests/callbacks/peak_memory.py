"""What checkpoints, and an export that rounds, add to a process's own memory: `peak_memory.py DIRECTORY`.

Prints the bytes of the weights, and by how much the memory grew at most while each was written. What needs much comes
last: memory that was freed but is still the process's would hide growth.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.memory_loading import Peak
from tests.callbacks.publisher import Publisher, loader
from tests.callbacks.tiny_llama import write_base
from tests.support.training import make_trainer
from ts2_lightning.callbacks import Checkpoints
from ts2_lightning.export import ExportSettings, export_model

SIZES: dict[str, Any] = {
    "vocab_size": 1000, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 12,
    "num_attention_heads": 8,
}  # fmt: skip


class Learner(Publisher):
    """All weights of a model get a state of AdamW."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return sum(parameter.sum() for parameter in self.model.parameters())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), fused=True)


class WatchedCheckpoints(Checkpoints):
    """Measures each save, to its end."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.growths: list[int] = []

    def save(self, trainer: Any, wait: bool = False) -> bool:
        peak = Peak()
        saved = super().save(trainer, wait)
        if self._in_flight is not None:
            self._in_flight.wait()
        peak.stop()
        self.growths.append(peak.growth["RssAnon:"])
        return saved


def main(directory: Path) -> None:
    base = write_base(directory / "base", dtype="bfloat16")  # for its tokenizer, and its dtype
    LlamaForCausalLM(LlamaConfig(**SIZES, dtype=torch.bfloat16)).bfloat16().save_pretrained(base)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    grown: dict[str, Any] = {"weights": sum(parameter.nbytes for parameter in model.parameters())}
    grown["at once"] = growths(directory / "at once", model, asynchronous=False)
    peak = Peak()
    export_model(model, directory / "export", ExportSettings(base))
    peak.stop()
    grown["export"] = peak.growth["RssAnon:"]
    grown["in a thread"] = growths(directory / "in a thread", model, asynchronous=True)
    print(json.dumps(grown))


def growths(directory: Path, model: LlamaForCausalLM, asynchronous: bool) -> list[int]:
    """Of each checkpoint of two steps."""
    checkpoints = WatchedCheckpoints(asynchronous=asynchronous)
    trainer = make_trainer(directory, callbacks=[checkpoints], max_epochs=2)
    trainer.fit(Learner(model), loader([0]))
    return checkpoints.growths


if __name__ == "__main__":
    main(Path(sys.argv[1]))
