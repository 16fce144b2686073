"""Activations: counted without memory, on real tensors, and by a formula written down by hand."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from ts2_lightning.modules.router import has_routers
from ts2_lightning.planning.counting import FUSED, Activations, LiveBytes, MicroBatch, count_activations
from ts2_lightning.planning.experts import count_experts

B, T = 3, 40
SIZES: dict[str, Any] = {
    "hidden_size": 60, "num_hidden_layers": 2, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 12,
    "intermediate_size": 77, "vocab_size": 301,
}  # fmt: skip
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES),
    "gemma2": Gemma2Config(**SIZES),
    "pythia": GPTNeoXConfig(
        hidden_size=60, num_hidden_layers=3, num_attention_heads=5, intermediate_size=77, vocab_size=301
    ),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=36),
    "gpt_oss": GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
}
PRECISIONS = {
    "32-true": (torch.float32, None),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "bf16-true": (torch.bfloat16, None),
}


def counted(
    config: PretrainedConfig, attention: str, batch: MicroBatch, checkpointing: bool, precision: str, real: bool
) -> Activations:
    dtype, autocast = PRECISIONS[precision]
    with nullcontext() if real else FakeTensorMode():
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype).train()
        if attention == "sdpa" and not real:
            model.set_attn_implementation(FUSED)
        if not real:
            count_experts(model)
        routed = model.num_experts_per_tok if has_routers(model) else 0
        return count_activations(model.base_model, batch, checkpointing, autocast, routed)


@pytest.mark.parametrize(
    ("name", "attention", "precision"),
    [
        *(("llama", attention, precision) for attention in ("sdpa", "eager") for precision in PRECISIONS),
        ("tied", "sdpa", "bf16-mixed"),
        ("qwen3", "sdpa", "bf16-mixed"),
        ("gemma2", "eager", "bf16-mixed"),
        ("pythia", "sdpa", "bf16-mixed"),
        *(("qwen3_moe", "sdpa", precision) for precision in PRECISIONS),
        ("gpt_oss", "eager", "32-true"),
    ],
)
def test_as_on_real_tensors(name: str, attention: str, precision: str) -> None:
    """All but attention is the same code; a CPU's sdpa keeps what a GPU's does."""
    for masked in (False, True):
        for checkpointing in (False, True):
            batch = MicroBatch(B, T, masked=masked, packed=masked)
            arguments = (CONFIGS[name], attention, batch, checkpointing, precision)
            assert counted(*arguments, real=False) == counted(*arguments, real=True), (masked, checkpointing)


def by_hand(checkpointing: bool) -> int:
    """Elements that a Llama keeps with sdpa, without a mask, in one dtype.

    A layer: its input; the root of the norm's variance; the input normalised, and scaled; queries, keys, values, the
    output of the attention and its log-sum-exp; the second norm likewise; the gate, its activation, the other half and
    their product. (Korthikanti et al. 2022, section 4, has 34 s b h + 5 a s^2 b bytes for GPT's layer in 16 bits.)
    """
    c, tokens = CONFIGS["llama"], B * T
    h, kv = c.hidden_size, c.num_key_value_heads * c.head_dim
    norm = 2 * h + 1 + h
    attention = h + 2 * kv + h + c.num_attention_heads
    mlp = 4 * c.intermediate_size
    layer = tokens * (norm + attention + norm + mlp)
    last_norm = tokens * (2 * h + 1 + h)  # its result is what the head reads
    layers = tokens * h * c.num_hidden_layers if checkpointing else layer * c.num_hidden_layers
    return layers + last_norm


@pytest.mark.parametrize("checkpointing", [False, True])
def test_by_hand(checkpointing: bool) -> None:
    found = counted(CONFIGS["llama"], "sdpa", MicroBatch(B, T), checkpointing, "32-true", real=True).kept
    rotary = 2 * T * CONFIGS["llama"].head_dim * 4  # cosines and sines, of the positions alone
    tokens = B * T * 8  # their ids, for the embedding's gradient
    assert found - rotary - tokens == pytest.approx(4 * by_hand(checkpointing), rel=0.005)


def test_against_what_autograd_says_that_it_saves() -> None:
    """The peak's other half: torch's own hooks see the tensors that are kept."""
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"], attn_implementation="sdpa").train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.zeros(B, T, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        output = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    saved[output.untyped_storage().data_ptr()] = output
    own = sum(t.untyped_storage().nbytes() for place, t in saved.items() if place not in weights)
    assert counted(CONFIGS["llama"], "sdpa", MicroBatch(B, T), False, "32-true", real=False).kept == own


def test_live_bytes() -> None:
    """Views count once, what is freed does not, what was there before does not."""
    before = torch.zeros(5)
    with LiveBytes([before]) as live:
        view = torch.zeros(4, 2).t()[0]
        before.add_(1)
        assert (live.now, live.peak) == (32, 32)
        del view
        assert (live.now, live.peak) == (0, 32)
        before[:3].clone()
        assert (live.now, live.peak) == (0, 32)
