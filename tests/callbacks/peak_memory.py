"""What a checkpoint, and an export that rounds, add to a process's own memory: `peak_memory.py DIRECTORY`.

Prints the bytes of the weights, and by how much the memory grew at most while each was written.
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
    """Measures its first save."""

    growth = 0

    def save(self, trainer: Any) -> bool:
        peak = Peak()
        saved = super().save(trainer)
        peak.stop()
        self.growth = self.growth or peak.growth["RssAnon:"]
        return saved


def main(directory: Path) -> None:
    base = write_base(directory / "base", dtype="bfloat16")  # for its tokenizer, and its dtype
    LlamaForCausalLM(LlamaConfig(**SIZES, dtype=torch.bfloat16)).bfloat16().save_pretrained(base)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    checkpoints = WatchedCheckpoints()
    trainer = make_trainer(directory, callbacks=[checkpoints])
    trainer.fit(Learner(model), loader([0]))
    peak = Peak()
    export_model(model, directory / "export", ExportSettings(base))
    peak.stop()
    print(json.dumps({
        "weights": sum(parameter.nbytes for parameter in model.parameters()),
        "checkpoint": checkpoints.growth,
        "export": peak.growth["RssAnon:"],
    }))  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
