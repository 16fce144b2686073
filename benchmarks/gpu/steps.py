"""Whole training steps of a model with the sizes of Llama 3.2 1B and random weights: ours beside a plain loop's.

The plain loop calls the model with its labels, which makes all logits and transformers' own cross-entropy. Ours is a
step of a training: `SFTModule` in Lightning's trainer, with `DistributionMonitor` measuring every token of every step.
Both take turns on the same weights and the same tokens, in bfloat16, with clipped gradients and fused AdamW.
"""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.gpu.device import Device, quartiles, ratios, tell, told
from benchmarks.record import spread
from ts2_lightning.callbacks import DistributionMonitor
from ts2_lightning.engines import ChunkedEngine
from ts2_lightning.losses import CrossEntropyLoss, TokenLoss, TS2Loss
from ts2_lightning.modules import LanguageModelConfig, SFTModule
from ts2_lightning.modules.network import SFTNetwork
from ts2_lightning.types import Batch

LLAMA_1B: dict[str, Any] = {
    "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
TINY: dict[str, Any] = {
    **LLAMA_1B, "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip

TOKENS, TINY_TOKENS = 8192, 8
WARM_UP = 2
STEPS = 10

LOSSES: dict[str, TokenLoss] = {"TS2": TS2Loss(), "CE": CrossEntropyLoss()}


def measure(device: Device) -> None:
    """Tells seconds, tokens per second and the ratio to the plain loop, for each objective."""
    torch.manual_seed(0)
    with torch.device(device.name):
        config = LlamaConfig(**(TINY if device.tiny else LLAMA_1B))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.train()
    batch = one_row(TINY_TOKENS if device.tiny else TOKENS, config.vocab_size)
    for name, loss in LOSSES.items():
        if device.left < 5:
            tell(part="steps", step=name, ok=False, failed="no time was left")
            continue
        with told(part="steps", step=name):
            _measure_loss(device, model, name, loss, batch)


def one_row(tokens: int, vocabulary: int) -> Batch:
    """A micro-batch of one row of random tokens, all supervised but the first."""
    ids = torch.randint(vocabulary, (1, tokens))
    n = tokens - 1
    places = torch.arange(n)
    return Batch(
        input_ids=ids, attention_mask=torch.ones_like(ids), supervised=places, labels=ids[0, 1:],
        token_rows=torch.zeros(n, dtype=torch.long), positions=places + 1, lengths=torch.full((n,), n),
        weights=torch.ones(n), row_index=torch.zeros(1, dtype=torch.long), row_spans=torch.tensor([[0, tokens]]),
        divisor=torch.tensor(n),
    )  # fmt: skip


class PlainLoop:
    """A training loop without a framework, on the model's own loss.

    Args:
        model: the model.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step(self, batch: Batch) -> None:
        """One step."""
        ids = batch["input_ids"]
        loss = self._model(input_ids=ids, attention_mask=batch["attention_mask"], labels=ids, use_cache=False).loss
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()


class TakeTurns(Callback):
    """Has the plain loop make its step after each of a training, and keeps the milliseconds of both.

    Args:
        device: The device.
        loop: The plain loop.
    """

    def __init__(self, device: Device, loop: PlainLoop) -> None:
        self._device, self._loop = device, loop
        self.milliseconds: dict[str, list[float]] = {"ours": [], "plain": []}

    def _now(self) -> float:
        """Milliseconds, once all that was asked of the device is done; of the processor at tiny sizes."""
        if self._device.tiny:
            return 1000 * time.process_time()
        torch.cuda.synchronize()
        return 1000 * time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Starts the clock."""
        self._started = self._now()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Stops the clock, gives the plain loop its turn, and starts it again."""
        before = self._now()
        ours = before - self._started
        pl_module.zero_grad()  # else both hold gradients of the whole model
        self._loop.step(batch)
        plain = self._now() - before
        pl_module.zero_grad()
        if self._device.tiny or batch_idx >= WARM_UP:
            self.milliseconds["ours"].append(ours)
            self.milliseconds["plain"].append(plain)
        trainer.should_stop = self._device.left < 3 + 4 * (ours + plain) / 1000
        self._started = self._now()


def _measure_loss(device: Device, model: Any, name: str, loss: TokenLoss, batch: Batch) -> None:
    engine = ChunkedEngine(kernels=True)
    module = SFTModule(LanguageModelConfig("random weights"), loss, engine)
    module.network = SFTNetwork(model, loss, engine)
    turns = TakeTurns(device, PlainLoop(model))
    steps = 2 if device.tiny else WARM_UP + STEPS
    trainer = Trainer(
        accelerator="cpu" if device.tiny else "gpu", devices=1, precision="bf16-true", max_steps=steps,
        gradient_clip_val=1.0, log_every_n_steps=1, callbacks=[DistributionMonitor(), turns], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    rows: Any = [batch] * steps
    trainer.fit(module, DataLoader(rows, batch_size=None))
    tokens = batch["input_ids"].numel()
    ours, plain = turns.milliseconds["ours"], turns.milliseconds["plain"]
    for of, milliseconds in {f"{name}, statistics in every step": ours, f"plain loop, beside {name}": plain}.items():
        figures = quartiles(milliseconds)
        rate = round(1000 * tokens / figures["ms"]) if figures["ms"] else None
        tell(part="steps", step=of, tokens=tokens, **figures, tokens_per_second=rate)
    if values := ratios(plain, ours):
        tell(part="steps", step=f"{name}: tokens per second over the plain loop's", **spread("ratio", values))
