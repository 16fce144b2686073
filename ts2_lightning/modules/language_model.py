"""Loading causal language models."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from ts2_lightning.modules.config import LanguageModelConfig
from ts2_lightning.types import UserError


def load_language_model(config: LanguageModelConfig) -> PreTrainedModel:
    """The model of a config, in training mode, with the dtype that the config says.

    Raises:
        UserError: nothing there that can be loaded; the message says what was looked for.
    """
    attention = _attention(config)
    if config.deterministic_attention:
        os.environ["FLASH_ATTENTION_DETERMINISTIC"] = "1"
    options: dict[str, Any] = {
        "revision": config.revision,
        "attn_implementation": attention,
        "dtype": getattr(torch, config.dtype),  # from_pretrained would keep the checkpoint's
    }
    try:
        if config.init == "pretrained":
            model = AutoModelForCausalLM.from_pretrained(config.path, use_safetensors=True, **options)
        else:
            architecture = AutoConfig.from_pretrained(config.path, revision=options.pop("revision"))
            model = AutoModelForCausalLM.from_config(architecture, **options)
    except (OSError, ValueError) as error:
        raise UserError(_explain(config.path, error)) from error
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def _attention(config: LanguageModelConfig) -> str:
    if config.attn_implementation != "auto":
        return config.attn_implementation
    return "flash_attention_2" if torch.cuda.is_available() and is_flash_attn_2_available() else "sdpa"


def _explain(path: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    if not Path(path).exists():
        kind = (
            "no such directory here"
            if path.startswith((".", "/", "~")) or path.count("/") > 1
            else ("no directory of that name, and it could not be loaded from the hub")
        )
        return f"model.lm.path: cannot load {path!r}: {kind} ({reason[:200]})"
    return f"model.lm.path: cannot load {path!r}: {reason[:300]}"
