"""An adapter without its base model, in PEFT's format."""

import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from ts2_lightning.export.shards import as_written
from ts2_lightning.modules.adapters import NAME

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def is_hub_name(base: str) -> bool:
    """Whether a base model has a name on the hub, `owner/name`, and is not a local directory.

    >>> is_hub_name("meta-llama/Llama-3.2-1B"), is_hub_name("/home/me/llama"), is_hub_name("mine?seed=1")
    (True, False, False)
    """
    return re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None and not base.startswith(".") and not Path(base).exists()


def write_adapter(
    model: PreTrainedModel, directory: Path, dtype: torch.dtype | None, base: str, share: float = 1.0
) -> None:
    """Writes `adapter_config.json`, which names the base model, and `adapter_model.safetensors`.

    Args:
        model: model with an adapter.
        directory: directory to write to; it exists.
        dtype: dtype of the written weights; None leaves them as they are.
        base: name of the base model.
        share: share of the adapter's product that is left: the weights of B are multiplied by it.

    Raises:
        UserError: if a weight is not finite.
    """
    from peft import get_peft_model_state_dict

    config = model.peft_config[NAME]
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.save_pretrained(str(directory))
    # An adapted head would have PEFT put the embeddings beside it, which were not trained.
    state = get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
    scaled = {key: _multiplied(value, share) if ".lora_B." in key else value for key, value in state.items()}
    tensors = {f"base_model.model.{key}": as_written(key, value, dtype).contiguous() for key, value in scaled.items()}
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def _multiplied(weight: Tensor, share: float) -> Tensor:
    """A share of a weight, calculated in float32 at least and given in the weight's dtype."""
    return (weight.detach().to(torch.promote_types(weight.dtype, torch.float32)) * share).to(weight.dtype)
