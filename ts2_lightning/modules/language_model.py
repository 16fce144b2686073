"""Loading causal language models."""

import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
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
        "trust_remote_code": False,  # left out, transformers asks on the terminal whether to run the model's code
    }
    try:
        if config.init == "pretrained":
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                config.path, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
            model, report = loaded
        else:
            architecture = AutoConfig.from_pretrained(
                config.path, revision=options.pop("revision"), trust_remote_code=False
            )
            model, report = AutoModelForCausalLM.from_config(architecture, **options), {}
    except ImportError as error:
        raise UserError(f"model.lm: cannot build {config.path!r} here: {_one_line(error)[:300]}") from error
    except (OSError, ValueError, SafetensorError, StrictDataclassError) as error:
        raise UserError(_explain(config.path, error)) from error
    _check_report(config.path, report)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def _attention(config: LanguageModelConfig) -> str | None:
    """The name for transformers; None leaves it to choose sdpa, or eager for architectures without (Gemma-2)."""
    if config.attn_implementation != "auto":
        return config.attn_implementation
    return "flash_attention_2" if torch.cuda.is_available() and is_flash_attn_2_available() else None


def _check_report(path: str, report: dict[str, Any]) -> None:
    """Transformers draws at random, with a warning, what the checkpoint does not hold; it would be trained as it is."""
    absent = [*sorted(report.get("missing_keys", ())), *sorted(key[0] for key in report.get("mismatched_keys", ()))]
    if absent:
        raise UserError(
            f"model.lm.path: the weights in {path!r} do not fit its config.json: {len(absent)} are missing or of "
            f"another shape, such as {absent[0]}"
        )


def _explain(path: str, error: Exception) -> str:
    reason = _one_line(error)
    if not Path(path).exists():
        kind = (
            "no such directory here"
            if path.startswith((".", "/", "~")) or path.count("/") > 1
            else ("no directory of that name, and it could not be loaded from the hub")
        )
        return f"model.lm.path: cannot load {path!r}: {kind} ({reason[:200]})"
    return f"model.lm.path: cannot load {path!r}: {reason[:300]}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
