"""Random models of many architectures, small enough for a laptop's idle second, and batches for them."""

import copy
from collections.abc import Callable

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ts2_lightning.modules.model_files import auto_class
from ts2_lightning.types import Batch

VOCABULARY = 97
_COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GROUPED = {**_COMMON, "num_key_value_heads": 2}

ARCHITECTURES: dict[str, PreTrainedConfig] = {
    "llama": transformers.LlamaConfig(**_GROUPED),
    "llama, tied": transformers.LlamaConfig(**_GROUPED, tie_word_embeddings=True),
    "qwen2": transformers.Qwen2Config(**_GROUPED, tie_word_embeddings=True),
    "qwen3": transformers.Qwen3Config(**_GROUPED, head_dim=8),
    "gemma2": transformers.Gemma2Config(**_GROUPED, head_dim=8, final_logit_softcapping=2.0),
    "gemma3": transformers.Gemma3TextConfig(**_GROUPED, head_dim=8),
    "mistral": transformers.MistralConfig(**_GROUPED, head_dim=8),
    "phi3": transformers.Phi3Config(**_GROUPED),
    "olmo2": transformers.Olmo2Config(**_GROUPED),
    "gpt_neox": transformers.GPTNeoXConfig(**_COMMON),
    "cohere": transformers.CohereConfig(**_GROUPED, logit_scale=0.25),
    "granite": transformers.GraniteConfig(**_GROUPED, logits_scaling=8.0),
    "opt": transformers.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=32, word_embed_proj_dim=16, ffn_dim=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, dropout=0.0,
    ),
}  # fmt: skip

_ROUTED = {**_GROUPED, "num_experts_per_tok": 2}
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
MIXTURES: dict[str, PreTrainedConfig] = {
    "mixtral": transformers.MixtralConfig(**_ROUTED, num_local_experts=4),
    "qwen2_moe": transformers.Qwen2MoeConfig(
        **_ROUTED, num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=24
    ),
    "qwen3_moe": transformers.Qwen3MoeConfig(**_ROUTED, head_dim=8, num_experts=5, moe_intermediate_size=16),
    "olmoe": transformers.OlmoeConfig(**_ROUTED, num_experts=4),
    "gpt_oss": transformers.GptOssConfig(**_ROUTED, head_dim=8, num_local_experts=4, rope_parameters=_ROPE),
    "granitemoe": transformers.GraniteMoeConfig(**_ROUTED, num_local_experts=4),
    "jetmoe": transformers.JetMoeConfig(**_ROUTED, num_local_experts=4, kv_channels=8),
}
"""Mixtures of experts, whose routers' logits transformers tells."""

_EYE = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
_TOWER = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 4,
}
_TOKENS = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
_SECTIONS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
_THREE = {**_GROUPED, "rope_parameters": _SECTIONS}

SEEING: dict[str, PreTrainedConfig] = {
    "gemma3": transformers.Gemma3Config(
        text_config={**_GROUPED, "head_dim": 8}, vision_config=_EYE, mm_tokens_per_image=4, image_token_index=90,
        boi_token_index=91, eoi_token_index=92,
    ),
    "qwen2_vl": transformers.Qwen2VLConfig(
        text_config=_THREE, **_TOKENS,
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2},
    ),
    "qwen2_5_vl": transformers.Qwen2_5_VLConfig(
        text_config=_THREE, **_TOKENS, vision_config={**_TOWER, "fullatt_block_indexes": [0]}
    ),
    "qwen3_vl": transformers.Qwen3VLConfig(
        text_config={**_THREE, "head_dim": 8}, **_TOKENS,
        vision_config={**_TOWER, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    ),
    "llava": transformers.LlavaConfig(
        text_config={**_GROUPED, "model_type": "llama"}, vision_config={**_EYE, "model_type": "clip_vision_model"},
        image_token_index=90,
    ),
    "mistral3": transformers.Mistral3Config(
        text_config={**_GROUPED, "model_type": "mistral", "head_dim": 8}, image_token_index=90,
        vision_config={**_EYE, "model_type": "pixtral", "head_dim": 8},
    ),
    "internvl": transformers.InternVLConfig(
        text_config={**_GROUPED, "model_type": "qwen2"}, image_token_id=90,
        vision_config={**_EYE, "model_type": "internvl_vision", "image_size": [16, 16], "patch_size": [8, 8]},
    ),
    "idefics3": transformers.Idefics3Config(
        text_config={**_GROUPED, "model_type": "llama"}, vision_config={**_EYE, "model_type": "idefics3_vision"},
        image_token_id=90,
    ),
    "smolvlm": transformers.SmolVLMConfig(
        text_config={**_GROUPED, "model_type": "llama"}, vision_config={**_EYE, "model_type": "smolvlm_vision"},
        image_token_id=90,
    ),
}  # fmt: skip
"""Models that see images too: a vision tower, and a language model."""

PLAIN = {"llama", "llama, tied", "qwen2", "qwen3", "gemma3", "mistral", "phi3", "olmo2", "gpt_neox", "opt"}
"""Those whose head is a matrix product and nothing else."""

_SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 4,
}  # fmt: skip
_TWO_SIDED = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
}  # fmt: skip
_SPECIAL = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)

OTHER_KINDS: dict[str, Callable[[], PreTrainedModel]] = {
    "T5ForConditionalGeneration": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
    ),
    "BartForConditionalGeneration": lambda: transformers.BartForConditionalGeneration(
        transformers.BartConfig(**_TWO_SIDED)
    ),
    "WhisperForConditionalGeneration": lambda: transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            **_TWO_SIDED, pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0
        )
    ),
    "BertForMaskedLM": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**_SMALL)),
    "BertModel": lambda: transformers.BertModel(transformers.BertConfig(**_SMALL)),
    "ModernBertForMaskedLM": lambda: transformers.ModernBertForMaskedLM(
        transformers.ModernBertConfig(**_SMALL, **_SPECIAL)
    ),
    "ViTForImageClassification": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, image_size=32
        )
    ),
    "Wav2Vec2ForCTC": lambda: transformers.Wav2Vec2ForCTC(
        transformers.Wav2Vec2Config(
            **_SMALL, conv_dim=(8, 8), conv_stride=(2, 2), conv_kernel=(3, 3), num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
        )
    ),
    "LlamaForSequenceClassification": lambda: transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(**_GROUPED, num_labels=1, tie_word_embeddings=True)  # a reward model; no weight misses
    ),
    "LlamaForTokenClassification": lambda: transformers.LlamaForTokenClassification(
        transformers.LlamaConfig(**_GROUPED)
    ),
    "LlamaModel": lambda: transformers.LlamaModel(transformers.LlamaConfig(**_GROUPED)),
}  # fmt: skip
"""Models that are no causal language models, by the class that they are saved from."""


def random_model(name: str | PreTrainedConfig, seed: int = 0, attention: str = "eager") -> PreTrainedModel:
    """A float64 model; its weights are large, so that a forgotten scale or soft cap shows."""
    torch.manual_seed(seed)
    config = copy.deepcopy(ARCHITECTURES[name] if isinstance(name, str) else name)
    model: PreTrainedModel = auto_class(config).from_config(
        config, dtype=torch.float64, attn_implementation=attention, experts_implementation="eager"
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.train()


def uneven_batch(seed: int = 0) -> tuple[Batch, Tensor]:
    """Three rows of 11, 7 and 4 tokens, some supervised, and [3, 11] labels in transformers' own convention."""
    generator = torch.Generator().manual_seed(seed)
    lengths, width = (11, 7, 4), 11
    ids = torch.randint(3, VOCABULARY, (3, width), generator=generator)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    ids = ids * mask
    labels = torch.full_like(ids, -100)
    for row, places in enumerate([(3, 4, 5, 9, 10), (1, 6), (3,)]):
        for place in places:
            labels[row, place] = ids[row, place]
    shifted = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:].flatten()
    supervised = (shifted != -100).nonzero()[:, 0]
    batch: Batch = {
        "input_ids": ids,
        "attention_mask": mask,
        "supervised": supervised,
        "labels": shifted[supervised],
        "token_rows": supervised // width,
        "divisor": torch.tensor(len(supervised)),
    }
    return batch, labels
