"""A tiny model that writes down what comes out of its embeddings; as a script, two gloo ranks of it.

The embeddings are zero, so what comes out of them is the noise. `neftune_learner.py DIRECTORY` leaves `rank0.pt`
and `rank1.pt` there.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.ranks import fork_ranks
from tests.support.training import make_trainer
from ts2_lightning.callbacks import NEFTune
from ts2_lightning.data import SFTData

WIDTH = 16
LENGTHS = [3, 11, 5, 8, 2, 6, 9, 4, 7, 3]


class Seen(NamedTuple):
    """What one row looked like behind the embeddings."""

    mode: str  # train, validate, ...
    step: int
    row: int
    output: Tensor  # [T, d]
    padding: Tensor  # [P, d] what the padding of its batch looked like


class Learner(LightningModule):
    """Trains all but the embeddings of a random Llama; `seen` has every row that went through."""

    def __init__(self, learning_rate: float = 0.1, zeroed: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=16, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=False,
        )  # fmt: skip
        self.language_model = LlamaForCausalLM(config).train()
        self.learning_rate = learning_rate
        if zeroed:
            self.embeddings.weight.data.zero_()
            self.embeddings.weight.requires_grad_(False)
        self.seen: list[Seen] = []
        self.draws: list[float] = []

    @property
    def embeddings(self) -> torch.nn.Module:
        return self.language_model.get_input_embeddings()

    def loss(self, batch: dict[str, Tensor], mode: str) -> Tensor:
        def write_down(layer: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
            output = args[0].detach().flatten(0, 1).clone()
            padding = torch.ones(len(output), dtype=torch.bool)
            for start, end in batch["row_spans"].tolist():
                padding[start:end] = False
            for row, (start, end) in zip(batch["row_index"].tolist(), batch["row_spans"].tolist(), strict=True):
                self.seen.append(Seen(mode, self.trainer.global_step, row, output[start:end], output[padding]))

        handle = self.language_model.model.layers[0].register_forward_pre_hook(write_down)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
        logits = self.language_model(**inputs, use_cache=False).logits
        handle.remove()
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1)[batch["supervised"]].float(), batch["labels"], reduction="sum"
        )
        return losses / batch["divisor"]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.draws.append(torch.rand(()).item())
        return self.loss(batch, "train") * self.trainer.accumulate_grad_batches * self.trainer.world_size

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        loss = self.loss(batch, "validate")
        self.log("val/cross_entropy", loss, batch_size=1, sync_dist=True)  # Checkpoints wants it

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.loss(batch, "test")

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.loss(batch, "predict")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=self.learning_rate)


def make_data(directory: Path, micro_batch_size: int = 3, packing: Any = "none") -> SFTData:
    """Rows of `LENGTHS` tokens, two optimizer steps an epoch."""
    file = directory / "rows.jsonl"
    if not file.exists():
        rows = [{"input_ids": [1 + (row + place) % 15 for place in range(n)]} for row, n in enumerate(LENGTHS)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files: Any = dict.fromkeys(("train", "validation", "test", "predict"), str(file))
    return SFTData(
        **files, format="tokens", batch_size=5, micro_batch_size=micro_batch_size, eval_batch_size=4, packing=packing,
        max_length=15,
    )  # fmt: skip


def rank(number: int, directory: str) -> None:
    strategy = DDPStrategy(process_group_backend="gloo")
    trainer = make_trainer(Path(directory), callbacks=[NEFTune()], devices=2, strategy=strategy)
    learner = Learner()
    trainer.fit(learner, make_data(Path(directory)))
    torch.save([tuple(seen) for seen in learner.seen], Path(directory) / f"rank{number}.pt")


if __name__ == "__main__":
    make_data(Path(sys.argv[1]))
    fork_ranks(rank, sys.argv[1])
