"""Shapes of public models by their names on the hub, so that a plan needs no network and no access to gated files.

They are what `config.json` of each model states of its sizes. Weights, tokenizers and chat templates are not here.
"""

from typing import Any


def _kind(model_type: str, architecture: str) -> dict[str, Any]:
    return {"model_type": model_type, "architectures": [f"{architecture}ForCausalLM"], "dtype": "bfloat16"}


_LLAMA = _kind("llama", "Llama")
_LLAMA_3 = {**_LLAMA, "vocab_size": 128256, "max_position_embeddings": 131072}
_QWEN_2 = _kind("qwen2", "Qwen2")
_QWEN_3 = {**_kind("qwen3", "Qwen3"), "vocab_size": 151936, "max_position_embeddings": 40960, "head_dim": 128}
_GEMMA_3 = {**_kind("gemma3_text", "Gemma3"), "vocab_size": 262144, "max_position_embeddings": 32768, "head_dim": 256}
_MISTRAL = _kind("mistral", "Mistral")
_OLMO_2 = {**_kind("olmo2", "Olmo2"), "vocab_size": 100352, "max_position_embeddings": 4096}
_PHI_4 = _kind("phi3", "Phi3")


def _sizes(width: int, inner: int, layers: int, heads: int, key_value_heads: int, **others: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        **others,
    }


_TIED = {"tie_word_embeddings": True}
_QWEN_2_SMALL = {"vocab_size": 151936, "max_position_embeddings": 32768, **_TIED}
_QWEN_2_LARGE = {"vocab_size": 152064, "max_position_embeddings": 131072}

_CONFIGS: dict[tuple[str, ...], dict[str, Any]] = {
    ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B-Instruct"): {
        **_LLAMA_3, **_sizes(2048, 8192, 16, 32, 8, head_dim=64, **_TIED),
    },
    ("meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.2-3B-Instruct"): {
        **_LLAMA_3, **_sizes(3072, 8192, 28, 24, 8, head_dim=128, **_TIED),
    },
    ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"): {**_LLAMA_3, **_sizes(4096, 14336, 32, 32, 8)},
    ("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct"): {
        **_LLAMA_3, **_sizes(4096, 14336, 32, 32, 8, max_position_embeddings=8192),
    },
    ("meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-70B-Instruct", "meta-llama/Llama-3.3-70B-Instruct"): {
        **_LLAMA_3, **_sizes(8192, 28672, 80, 64, 8),
    },
    ("meta-llama/Llama-3.1-405B", "meta-llama/Llama-3.1-405B-Instruct"): {
        **_LLAMA_3, **_sizes(16384, 53248, 126, 128, 8),
    },
    ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B-Instruct"): {**_QWEN_2, **_sizes(896, 4864, 24, 14, 2, **_QWEN_2_SMALL)},
    ("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B-Instruct"): {
        **_QWEN_2, **_sizes(1536, 8960, 28, 12, 2, **_QWEN_2_SMALL) | {"max_position_embeddings": 131072},
    },
    ("Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-3B-Instruct"): {**_QWEN_2, **_sizes(2048, 11008, 36, 16, 2, **_QWEN_2_SMALL)},
    ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct"): {**_QWEN_2, **_sizes(3584, 18944, 28, 28, 4, **_QWEN_2_LARGE)},
    ("Qwen/Qwen2.5-14B", "Qwen/Qwen2.5-14B-Instruct"): {**_QWEN_2, **_sizes(5120, 13824, 48, 40, 8, **_QWEN_2_LARGE)},
    ("Qwen/Qwen2.5-32B", "Qwen/Qwen2.5-32B-Instruct"): {**_QWEN_2, **_sizes(5120, 27648, 64, 40, 8, **_QWEN_2_LARGE)},
    ("Qwen/Qwen2.5-72B", "Qwen/Qwen2.5-72B-Instruct"): {**_QWEN_2, **_sizes(8192, 29568, 80, 64, 8, **_QWEN_2_LARGE)},
    ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B-Base"): {**_QWEN_3, **_sizes(1024, 3072, 28, 16, 8, **_TIED)},
    ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-1.7B-Base"): {**_QWEN_3, **_sizes(2048, 6144, 28, 16, 8, **_TIED)},
    ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B-Base"): {**_QWEN_3, **_sizes(2560, 9728, 36, 32, 8, **_TIED)},
    ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base"): {**_QWEN_3, **_sizes(4096, 12288, 36, 32, 8)},
    ("Qwen/Qwen3-14B", "Qwen/Qwen3-14B-Base"): {**_QWEN_3, **_sizes(5120, 17408, 40, 40, 8)},
    ("Qwen/Qwen3-32B",): {**_QWEN_3, **_sizes(5120, 25600, 64, 64, 8)},
    ("google/gemma-3-270m", "google/gemma-3-270m-it"): {**_GEMMA_3, **_sizes(640, 2048, 18, 4, 1, **_TIED)},
    ("google/gemma-3-1b-pt", "google/gemma-3-1b-it"): {**_GEMMA_3, **_sizes(1152, 6912, 26, 4, 1, **_TIED)},
    ("mistralai/Mistral-Nemo-Base-2407", "mistralai/Mistral-Nemo-Instruct-2407"): {
        **_MISTRAL,
        **_sizes(5120, 14336, 40, 32, 8, head_dim=128, vocab_size=131072, max_position_embeddings=131072),
        "sliding_window": None,
    },
    ("allenai/OLMo-2-0425-1B", "allenai/OLMo-2-0425-1B-Instruct"): {**_OLMO_2, **_sizes(2048, 8192, 16, 16, 16)},
    ("allenai/OLMo-2-1124-7B", "allenai/OLMo-2-1124-7B-Instruct"): {**_OLMO_2, **_sizes(4096, 11008, 32, 32, 32)},
    ("allenai/OLMo-2-1124-13B", "allenai/OLMo-2-1124-13B-Instruct"): {**_OLMO_2, **_sizes(5120, 13824, 40, 40, 40)},
    ("allenai/OLMo-2-0325-32B", "allenai/OLMo-2-0325-32B-Instruct"): {**_OLMO_2, **_sizes(5120, 27648, 64, 40, 8)},
    ("microsoft/phi-4",): {
        **_PHI_4,
        **_sizes(5120, 17920, 40, 40, 10, vocab_size=100352, max_position_embeddings=16384),
        "pad_token_id": 100349, "bos_token_id": 100257, "eos_token_id": 100265,
    },
}  # fmt: skip

PUBLIC_MODELS: dict[str, dict[str, Any]] = {name: config for names, config in _CONFIGS.items() for name in names}
"""Name on the hub -> what its config.json states of its sizes."""


def public_config(name: str) -> dict[str, Any] | None:
    """What config.json of a public model states of its sizes; None of any other model.

    Args:
        name: Name of the model on the hub, in any case.

    Example:
        >>> config = public_config("meta-llama/Llama-3.1-8B")
        >>> config["hidden_size"], config["vocab_size"], public_config("somebody/else")
        (4096, 128256, None)
    """
    lower = {other.lower(): config for other, config in PUBLIC_MODELS.items()}
    return lower.get(name.lower())
