"""Counts what each rank holds of a tiny model, and what a checkpoint of another one has, under a strategy:
`python -m tests.planning.ranks STRATEGY WORLD OUT`.

The ranks are forked from one interpreter, as imports cost most of the time, and run all cases.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.support.ranks import fork_ranks
from tests.support.training import make_trainer
from ts2_lightning.callbacks import Checkpoints
from ts2_lightning.data import SFTData
from ts2_lightning.losses import CrossEntropyLoss
from ts2_lightning.modules import LanguageModelConfig, ScheduleConfig, SFTModule
from ts2_lightning.modules.config import AdapterConfig
from ts2_lightning.strategies import FSDP2, DeepSpeed
from ts2_lightning.toyworld import write_blank_model

RANKS = 2
SIZES: dict[str, Any] = {  # divided by two ranks, they leave odd parts
    "hidden_size": 42, "intermediate_size": 54, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 64,
}  # fmt: skip
SAVED: dict[str, Any] = {  # so large that names and shapes are little beside it
    "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 64,
}  # fmt: skip
CASES = [("tied", "32-true"), ("untied", "bf16-mixed")]
ROWS, MICRO_BATCH, LENGTH = 8, 2, 9  # two micro-batches of a step on each of two ranks


def write_world(directory: Path) -> None:
    """Rows, and the config of a model of each kind."""
    rows = [{"input_ids": [1 + (i + j) % 9 for j in range(LENGTH)]} for i in range(2 * ROWS)]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, sizes in (("tied", SIZES), ("untied", SIZES), ("saved", SAVED)):
        write_blank_model(directory / name)
        blank = LlamaConfig.from_pretrained(directory / name)
        tokens = {key: getattr(blank, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = LlamaConfig(**sizes, **tokens, vocab_size=blank.vocab_size, tie_word_embeddings=name != "untied")
        AutoModelForCausalLM.from_config(config).save_pretrained(directory / name)


def bytes_of(tensors: Iterable[Any], but: Iterable[Any] = ()) -> int:
    """Bytes of the memory behind tensors, each counted once, without that of others."""
    others = _memory(but)
    return sum(size for place, size in _memory(tensors).items() if place not in others)


def _memory(tensors: Iterable[Any]) -> dict[int, int]:
    local = (t.to_local() if isinstance(t, DTensor) else t for t in tensors if isinstance(t, Tensor))
    return {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in local) if s.nbytes()}


class Count(Callback):
    """Counts after every micro-batch, once there is a state of the optimizer; the most there was of each."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}

    def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step == 0:
            return
        parameters = list(module.network.parameters())
        held: list[Any] = [*parameters, *(getattr(p, "ds_tensor", None) for p in parameters)]
        gradients: list[Any] = [p.grad for p in parameters]
        state: list[Any] = []
        optimizer: Any = trainer.optimizers[0]
        if isinstance(trainer.strategy, DeepSpeed):
            zero: Any = trainer.strategy.deepspeed_engine.optimizer
            state += getattr(zero, "single_partition_of_fp32_groups", None) or zero.fp32_partitioned_groups_flat
            for lists in (getattr(zero, "averaged_gradients", {}), getattr(zero, "all_grad_tensors", {})):
                gradients += [tensor for tensors in lists.values() if tensors for tensor in tensors]
            gradients.append(getattr(zero, "grad_partitions_flat_buffer", None))
            optimizer = zero.optimizer
        state += [value for values in optimizer.state.values() for value in values.values()]
        counted = {
            "weights": bytes_of(held) + sum(b.nbytes for b in module.network.buffers()),
            "gradients": bytes_of(gradients, but=held),
            "optimizer": bytes_of(state, but=held),
        }
        self.found = {name: max(size, self.found.get(name, 0)) for name, size in counted.items()}


def strategy_of(name: str) -> Strategy | str:
    """A strategy by its fragment's name, on gloo."""
    if name == "single":
        return "auto"
    if name == "ddp":
        return DDPStrategy(process_group_backend="gloo", gradient_as_bucket_view=True)
    if name.startswith("fsdp2"):
        return FSDP2(2 if name == "fsdp2_tp2" else 1, process_group_backend="gloo")
    return DeepSpeed(stage=int(name[-1]), process_group_backend="gloo")  # type: ignore[arg-type]


def count(name: str, world: Path, model: str, precision: Any, ranks: int = RANKS) -> dict[str, int]:
    """Two steps, and what was held before the second update."""
    counted = Count()
    fit(name, world, LanguageModelConfig(str(world / model)), precision, ranks, counted)
    return counted.found


def save(name: str, world: Path, out: Path, ranks: int = RANKS, adapter: AdapterConfig | None = None) -> int:
    """Two steps, and the bytes of their checkpoint."""
    checkpoints = Checkpoints(str(out))
    fit(name, world, LanguageModelConfig(str(world / "saved"), adapter=adapter), "32-true", ranks, checkpoints)
    last = Path(checkpoints.last_model_path).resolve()
    return sum(file.stat().st_size for file in (last, *last.rglob("*")) if file.is_file())


def fit(name: str, world: Path, lm: LanguageModelConfig, precision: Any, ranks: int, callback: Callback) -> None:
    """Two steps."""
    module = SFTModule(lm, CrossEntropyLoss(), schedule=ScheduleConfig("constant", 0.0))
    data = SFTData(
        train=str(world / "rows.jsonl"), tokenizer=lm.path, format="tokens", batch_size=ROWS,
        micro_batch_size=MICRO_BATCH, max_length=LENGTH, cache=False,
    )  # fmt: skip
    trainer = make_trainer(devices=ranks, strategy=strategy_of(name), precision=precision, callbacks=[callback])
    trainer.fit(module, data)
    assert trainer.global_step == 2


def rank(number: int, name: str, world: Path, out: Path) -> None:
    found = [count(name, world, model, precision) for model, precision in CASES]
    (out / f"{number}.json").write_text(json.dumps({"held": found, "saved": save(name, world, out / "checkpoints")}))


if __name__ == "__main__":
    fork_ranks(rank, sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), ranks=RANKS)
