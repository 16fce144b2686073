"""What a config says of a model's context, held against the model itself: it fails behind a table, and only there."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig

from ts2_lightning.model_limits import limits_of

CONTEXT, ROWS = 24, 67
_IDS = {"vocab_size": ROWS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, **_IDS}
_GPT = {"n_embd": 16, "n_layer": 1, "n_head": 2, **_IDS}
_LAYER_TYPES = ["sliding_attention", "full_attention"]


def llama(**parameters: Any) -> PreTrainedConfig:
    """With scaled rotary positions."""
    parameters = {"rope_theta": 10_000.0, **parameters}
    return transformers.LlamaConfig(**_SMALL, max_position_embeddings=CONTEXT, rope_parameters=parameters)


def gemma3(**text: Any) -> PreTrainedConfig:
    """The model that sees pictures, with a part for text."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {**_SMALL, "num_hidden_layers": 2, "head_dim": 8, "num_key_value_heads": 1}
    return transformers.Gemma3Config(
        text_config={**sizes, "max_position_embeddings": CONTEXT, "layer_types": _LAYER_TYPES, **text},
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )


_LONG = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}

TABLES: dict[str, PreTrainedConfig] = {
    "gpt2": transformers.GPT2Config(**_GPT, n_positions=CONTEXT),
    "gpt_bigcode": transformers.GPTBigCodeConfig(**_GPT, n_positions=CONTEXT),
    "gpt_neo": transformers.GPTNeoConfig(
        hidden_size=16, num_layers=1, num_heads=2, attention_types=[[["global"], 1]], intermediate_size=16,
        max_position_embeddings=CONTEXT, **_IDS,
    ),
    "gptj": transformers.GPTJConfig(**_GPT, n_positions=CONTEXT, rotary_dim=4),
    "codegen": transformers.CodeGenConfig(**(_GPT | {"n_head": 4}), n_positions=CONTEXT, n_ctx=CONTEXT, rotary_dim=4),
    "openai-gpt": transformers.OpenAIGPTConfig(**_GPT, n_positions=CONTEXT),
    "ctrl": transformers.CTRLConfig(**_GPT, dff=16, n_positions=CONTEXT),
    "opt": transformers.OPTConfig(**_SMALL, ffn_dim=16, word_embed_proj_dim=16, max_position_embeddings=CONTEXT),
    "biogpt": transformers.BioGptConfig(**_SMALL, max_position_embeddings=CONTEXT),
    "mpt": transformers.MptConfig(d_model=16, n_layers=1, n_heads=2, max_seq_len=CONTEXT, **_IDS),
    "roberta": transformers.RobertaConfig(
        **(_SMALL | {"pad_token_id": 1}), is_decoder=True, max_position_embeddings=CONTEXT + 2
    ),
    "bert": transformers.BertConfig(**_SMALL, is_decoder=True, max_position_embeddings=CONTEXT),
}  # fmt: skip

OTHERS: dict[str, tuple[PreTrainedConfig, int | None]] = {
    "llama": (llama(rope_type="default"), CONTEXT),
    "llama, linear": (llama(rope_type="linear", factor=2.0), CONTEXT),
    "llama, linear from a length": (
        llama(rope_type="linear", factor=3.0, original_max_position_embeddings=16), 48,
    ),
    "llama, dynamic": (llama(rope_type="dynamic", factor=2.0), 2 * CONTEXT),
    "llama, yarn": (llama(rope_type="yarn", factor=2.5, original_max_position_embeddings=CONTEXT), 60),
    "llama, yarn that is counted already": (
        llama(rope_type="yarn", factor=2.0, original_max_position_embeddings=CONTEXT // 2), CONTEXT,
    ),
    "llama, llama3": (
        llama(rope_type="llama3", factor=8.0, original_max_position_embeddings=16, **_LLAMA3), CONTEXT,
    ),
    "llama, longrope": (
        llama(rope_type="longrope", factor=2.0, original_max_position_embeddings=12, **_LONG), CONTEXT,
    ),
    "phi3, longrope": (
        transformers.Phi3Config(
            **_SMALL, max_position_embeddings=CONTEXT, original_max_position_embeddings=12,
            rope_parameters={"rope_type": "longrope", "rope_theta": 10_000.0, **_LONG},
        ),
        CONTEXT,
    ),
    "mistral, sliding window": (
        transformers.MistralConfig(
            **_SMALL, num_key_value_heads=1, head_dim=8, max_position_embeddings=CONTEXT, sliding_window=4
        ),
        CONTEXT,
    ),
    "gpt_neox": (transformers.GPTNeoXConfig(**_SMALL, max_position_embeddings=CONTEXT), CONTEXT),
    "gemma3": (gemma3(), CONTEXT),
    "gemma3, scaled in some layers": (
        gemma3(
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            }
        ),
        CONTEXT,
    ),
    "bloom": (transformers.BloomConfig(hidden_size=16, n_layer=1, n_head=2, **_IDS), None),
    "falcon, alibi": (
        transformers.FalconConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, alibi=True, max_position_embeddings=CONTEXT,
            **_IDS,
        ),
        None,
    ),
    "mamba": (transformers.MambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4, **_IDS), None),
}  # fmt: skip


def computes(config: PreTrainedConfig, tokens: int) -> bool:
    """Whether the model takes a row of so many tokens."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    ids = torch.randint(3, ROWS, (1, tokens))
    try:
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits
    except (IndexError, RuntimeError):
        return False
    return bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("kind", TABLES)
def test_behind_a_table_there_is_nothing(kind: str) -> None:
    limits = limits_of(TABLES[kind])
    assert limits == (kind, CONTEXT, True, ROWS)
    assert computes(TABLES[kind], CONTEXT)
    assert not computes(TABLES[kind], CONTEXT + 1)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_models_compute_on(kind: str) -> None:
    config, context = OTHERS[kind]
    limits = limits_of(config)
    assert limits[1:] == (context, False, ROWS)
    assert computes(config, (context or CONTEXT) + 40)


def test_the_published_ones() -> None:
    """As their files have it, to the number that their cards name."""
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert limits_of(transformers.Qwen2Config(max_position_embeddings=32768, rope_scaling=yarn)).context == 131072
    small = {"rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 8192, **_LLAMA3}
    assert limits_of(transformers.LlamaConfig(max_position_embeddings=131072, rope_scaling=small)).context == 131072
    assert limits_of(transformers.GPT2Config()) == ("gpt2", 1024, True, 50257)
    assert limits_of(transformers.OPTConfig()).context == 2048
    assert limits_of(transformers.RobertaConfig(is_decoder=True, max_position_embeddings=514)).context == 512


def test_numbers_that_are_none() -> None:
    """A config states anything: what is no number of positions is passed over."""

    def context(positions: object, parameters: object) -> int | None:
        text = SimpleNamespace(
            model_type="any", vocab_size=ROWS, max_position_embeddings=positions, rope_parameters=parameters
        )
        return limits_of(SimpleNamespace(get_text_config=lambda: text)).context

    assert [context(positions, None) for positions in (None, 0, -1, True, "many")] == [None] * 5
    kinds: list[object] = [None, {}, [], {"rope_type": "yarn"}, {"type": "dynamic", "factor": "2"}]
    assert [context(32, parameters) for parameters in (*kinds, {"full_attention": None})] == [32] * 6
