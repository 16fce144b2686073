"""Memory and hours of making responses, against figures that were worked out by hand from the papers' tables."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    DynamicCache,
    Gemma3TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
)

from ts2_lightning.planning import (
    TRANSFORMERS,
    VLLM,
    Decoding,
    GenerationCost,
    Sampler,
    Wanted,
    find_gpu,
    generation_cost,
)
from ts2_lightning.planning.caches import CacheLayer
from ts2_lightning.types import UserError

LLAMA_8B = LlamaConfig(
    hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, intermediate_size=14336,
    vocab_size=128256, tie_word_embeddings=False, architectures=["LlamaForCausalLM"],
)  # fmt: skip
SLIDING = Gemma3TextConfig(  # five layers with a window of 64, then one without, twice
    hidden_size=64, num_hidden_layers=12, num_attention_heads=4, num_key_value_heads=2, head_dim=32, vocab_size=97,
    intermediate_size=96, sliding_window=64, tie_word_embeddings=True, architectures=["Gemma3ForCausalLM"],
)  # fmt: skip
H200, A100 = find_gpu("h200"), find_gpu("a100-40gb")
GSM8K = Wanted(responses=16 * 1319, prompts=1319, prompt_tokens=1319 * 100, new_tokens=16 * 1319 * 512, longest=768)


@pytest.fixture(scope="module")
def decoding(tmp_path_factory: pytest.TempPathFactory) -> "dict[str, Decoding]":
    configs = {"llama": LLAMA_8B, "sliding": SLIDING}
    read = {}
    for name, config in configs.items():
        directory: Path = tmp_path_factory.mktemp(name)
        config.save_pretrained(directory)
        read[name] = Decoding.of(str(directory), torch.bfloat16)
    return read


def seconds(cost: GenerationCost) -> float:
    assert cost.seconds is not None
    return cost.seconds


def test_memory_of_llama_8b(decoding: dict[str, Decoding]) -> None:
    """8,030,261,248 parameters; 8 heads of 128 in 32 layers, keys and values: 128 KiB a token."""
    llama = decoding["llama"]
    assert sum(w.elements for w in llama.sizes.weights) == 8_030_261_248
    assert llama.weights == 2 * 8_030_261_248 + llama.sizes.buffers
    assert llama.cache == (CacheLayer(token=2 * 8 * 128 * 2),) * 32
    assert llama.cache_bytes(1000) == 1000 * 131_072


def test_a_step_of_llama_8b_reads_all_but_the_embedding(decoding: dict[str, Decoding]) -> None:
    """Norms of the layers included, the last norm left out."""
    embedding, last_norm = 128_256 * 4096, 4096
    assert decoding["llama"].read_bytes(1) == 2 * (8_030_261_248 - embedding - last_norm)


def test_hours_of_llama_8b_on_an_h200(decoding: dict[str, Decoding]) -> None:
    """GSM8K, 16 responses of 512 tokens: about 5.6 ms a step of 256 at all of the bandwidth, 42,208 steps."""
    cost = generation_cost(GSM8K, decoding["llama"], H200, VLLM, efficiency=1.0)
    assert (cost.gpus, cost.fits, cost.at_once) == (1, True, 256)
    weights, mean = 2 * 7_504_920_576, 100 + 256  # the embedding and the last norm are not read
    step = (weights + 256 * mean * 131_072) / 4.8e12
    linear = 2 * (7_504_920_576 - 128_256 * 4096 - 32 * 2 * 4096)
    prefill = 131_900 * (linear + 4 * 4096 * 32 * 50) + 1319 * 2 * 128_256 * 4096
    assert cost.seconds == pytest.approx(42_208 * step + prefill / 989e12, rel=1e-9)
    assert cost.gpu_hours == pytest.approx(0.0662, rel=0.01)
    assert cost.wall_hours(8) == pytest.approx(seconds(cost) / 3600 / 8)
    at_less = generation_cost(GSM8K, decoding["llama"], H200, VLLM, efficiency=0.4)
    assert seconds(at_less) == pytest.approx(seconds(cost) / 0.4)


def test_a_short_memory_decodes_fewer_at_once(decoding: dict[str, Decoding]) -> None:
    """40 GiB x 0.9 less 2, over 1.05: 32.38 GiB; less 14.96 of weights 17.42, which is 185.8 times 96 MiB."""
    cost = generation_cost(GSM8K, decoding["llama"], A100, VLLM)
    room = (40_960 * 2**20 * 0.9 - 2 * 2**30) / 1.05 - decoding["llama"].weights
    assert cost.at_once == int(room // (768 * 131_072)) == 185


def test_a_model_that_needs_several_gpus(decoding: dict[str, Decoding]) -> None:
    """An RTX 4090 with half of its memory has no room; transformers leaves a model on one."""
    small = find_gpu("rtx4090")
    several = generation_cost(GSM8K, decoding["llama"], small, Sampler(at_once=64, memory=0.5, splits=True))
    assert (several.gpus, several.fits) == (2, True)
    assert several.gpu_hours == pytest.approx(2 * seconds(several) / 3600)
    assert several.wall_hours(4) == pytest.approx(seconds(several) / 3600 / 2)
    one = generation_cost(GSM8K, decoding["llama"], small, Sampler(at_once=64, memory=0.5))
    assert (one.gpus, one.fits) == (2, False)
    fixed = generation_cost(GSM8K, decoding["llama"], small, Sampler(at_once=64, memory=0.5, splits=True, gpus=1))
    assert (fixed.gpus, fixed.fits, fixed.at_once, fixed.seconds, fixed.gpu_hours) == (1, False, 0, None, None)


def test_a_sliding_window(decoding: dict[str, Decoding]) -> None:
    """Ten of twelve layers keep 64 tokens; two heads of 32, keys and values, in bfloat16: 256 bytes each."""
    cache = decoding["sliding"].cache
    assert [layer.window for layer in cache].count(64) == 10
    assert decoding["sliding"].cache_bytes(40) == 12 * 40 * 256
    assert decoding["sliding"].cache_bytes(1000) == (10 * 64 + 2 * 1000) * 256
    # The head is the embedding: it is read, and nothing is left out but the last norm.
    assert decoding["sliding"].read_bytes(1) == 2 * (sum(w.elements for w in decoding["sliding"].sizes.weights) - 64)


@pytest.mark.parametrize("tokens", [3, 63, 64, 65, 90])
def test_the_cache_is_what_transformers_fills(tokens: int, decoding: dict[str, Decoding]) -> None:
    """A sliding layer of transformers keeps one token less: the query's own comes on top."""
    cache = DynamicCache(config=SLIDING)
    for number in range(12):
        states = torch.zeros(1, 2, tokens, 32, dtype=torch.bfloat16)
        cache.update(states, states, number)
    layers: list[Any] = cache.layers
    kept = sum(2 * layer.keys.numel() * 2 for layer in layers)
    spare = 10 * 256 if tokens >= 64 else 0
    assert decoding["sliding"].cache_bytes(tokens) == kept + spare


def test_experts_are_read_as_far_as_tokens_go_to_them(tmp_path: Path) -> None:
    config = Qwen2MoeConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, intermediate_size=48,
        moe_intermediate_size=24, shared_expert_intermediate_size=16, num_experts=8, num_experts_per_tok=2,
        vocab_size=50, architectures=["Qwen2MoeForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    mixture = Decoding.of(str(tmp_path), torch.bfloat16)
    experts = 2 * 2 * 8 * 3 * 32 * 24  # bytes of two layers of eight experts of three matrices
    assert mixture.read_bytes(1000) - mixture.read_bytes(1) == pytest.approx(experts * 0.75)
    assert mixture.read_bytes(2) - mixture.read_bytes(1) == pytest.approx(experts * (0.75 - 0.75**2))


def test_recurrent_states_do_not_grow(tmp_path: Path) -> None:
    MambaConfig(
        hidden_size=16, num_hidden_layers=2, state_size=4, vocab_size=50, architectures=["MambaForCausalLM"]
    ).save_pretrained(tmp_path)
    mamba = Decoding.of(str(tmp_path), torch.float32)
    assert 0 < mamba.cache_bytes(1) == mamba.cache_bytes(100_000)


def test_a_measured_rate_takes_the_place_of_the_roofline(decoding: dict[str, Decoding]) -> None:
    cost = generation_cost(GSM8K, decoding["llama"], H200, VLLM, rate=5000.0)
    assert cost.seconds == GSM8K.new_tokens / 5000
    assert cost.rate == 5000.0


def test_transformers_takes_the_time_to_launch(decoding: dict[str, Decoding]) -> None:
    """32 layers of 0.7 ms are longer than what a step of 64 reads on an H200 at all of its bandwidth."""
    cost = generation_cost(GSM8K, decoding["llama"], H200, TRANSFORMERS, efficiency=1.0)
    steps = GSM8K.new_tokens / 64
    assert cost.seconds == pytest.approx(steps * 32 * 0.7e-3, rel=0.01)


def test_nothing_is_left() -> None:
    nothing = Wanted.of([(10, 0, 100)])
    assert nothing == Wanted(0, 0, 0, 0, 0)


def test_nothing_takes_no_time(decoding: dict[str, Decoding]) -> None:
    cost = generation_cost(Wanted.of([]), decoding["llama"], H200, VLLM)
    assert (cost.seconds, cost.gpu_hours, cost.fits, cost.gpus) == (0.0, 0.0, True, 1)


asked = st.lists(st.tuples(st.integers(1, 4000), st.integers(0, 40), st.integers(1, 4000)), min_size=1, max_size=20)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(asked=asked, more=st.integers(1, 5))
def test_more_is_never_cheaper(decoding: dict[str, Decoding], asked: list[tuple[int, int, int]], more: int) -> None:
    """Of any prompts: more responses take longer, more efficiency less, and what fits stays within the memory."""
    few = generation_cost(Wanted.of(asked), decoding["llama"], A100, VLLM)
    many = Wanted.of([(length, count + more, limit) for length, count, limit in asked])
    cost = generation_cost(many, decoding["llama"], A100, VLLM)
    assert cost.wanted.responses == few.wanted.responses + more * len(asked)
    assert cost.at_once * cost.cache + cost.weights <= cost.gpus * A100.memory
    faster = generation_cost(many, decoding["llama"], A100, VLLM, efficiency=0.8)
    assert seconds(faster) == pytest.approx(seconds(cost) / 2)
    assert seconds(cost) >= many.new_tokens / 256 * decoding["llama"].read_bytes(256) / (
        cost.gpus * A100.bandwidth * 0.4
    ) * (1 - 1e-9)


@pytest.mark.parametrize("config", [MistralConfig(architectures=["MistralForCausalLM"])])
def test_mistral_7b(config: PreTrainedConfig, tmp_path: Path) -> None:
    """A window of 4,096 in all layers: the cache of a longer sequence is no larger, 512 MiB."""
    config.save_pretrained(tmp_path)
    mistral = Decoding.of(str(tmp_path), torch.bfloat16)
    assert mistral.cache_bytes(4096) == mistral.cache_bytes(32_768) == 512 * 2**20


@pytest.mark.parametrize(
    ("rate", "efficiency", "message"),
    [(0.0, 0.4, "rate must be"), (None, 0.0, "efficiency"), (None, 1.1, "efficiency")],
)
def test_numbers_that_cannot_be(
    decoding: dict[str, Decoding], rate: float | None, efficiency: float, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        generation_cost(GSM8K, decoding["llama"], H200, VLLM, rate, efficiency)
