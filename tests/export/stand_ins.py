"""A tiny model, and what `fit` would have saved of it."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.callbacks.tiny_llama import END, TRAINED_TEMPLATE
from ts2_lightning.export import ExportSettings
from ts2_lightning.modules.adapters import trained_state

IDS = torch.arange(12)[None]
PREFIX = "network.language_model."


def settings(base: Path, **others: Any) -> ExportSettings:
    """Those of a run on `base` with the trained template."""
    return ExportSettings(base, TRAINED_TEMPLATE, [END], **others)


@torch.no_grad()
def shake(model: nn.Module, seed: int = 1) -> None:
    """Anything that makes the trained weights differ from what they were."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def save_checkpoint(model: nn.Module, file: Path, step: int = 3) -> Path:
    """One file, as Lightning writes it, with things that are none of the export's business."""
    state = {f"{PREFIX}{name}": tensor for name, tensor in trained_state(dict(model.state_dict()), model).items()}
    torch.save({"state_dict": state, "global_step": step, "callbacks": {}, "optimizer_states": [{}]}, file)
    return file


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    """[1, 12, vocabulary]"""
    return model.eval()(input_ids=IDS).logits


def load(path: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """As plain transformers does it."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype)


def stored(path: Path) -> dict[str, Tensor]:
    """All tensors of a directory's safetensors files."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)
    return tensors
