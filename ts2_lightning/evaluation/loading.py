"""Models to evaluate, from directories that transformers loads."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ts2_lightning.engines.chunked import logits_in_chunks
from ts2_lightning.model_limits import ModelLimits, limits_of
from ts2_lightning.modules.head import backbone, output_head
from ts2_lightning.modules.model_files import FAILURES, auto_class, check_weight_files, read_architecture
from ts2_lightning.types import Batch, UserError


def load_model(path: str | Path, device: str = "cpu") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model in evaluation mode, and its tokenizer.

    Args:
        path: a transformers directory, or a name on the hub.
        device: where it computes. On a CPU the weights become float32; elsewhere they keep the dtype of their files.

    Raises:
        UserError: there is none, or it cannot be loaded.
    """
    dtype = torch.float32 if torch.device(device).type == "cpu" else "auto"
    with explained(path):
        loader = auto_class(read_architecture(str(path)))
        check_weight_files(str(path))
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model: PreTrainedModel = loader.from_pretrained(path, trust_remote_code=False, dtype=dtype)
    return model.to(device).eval(), tokenizer  # type: ignore[arg-type]


def read_limits(path: str | Path) -> ModelLimits:
    """What a model takes, by its config; no weights are read.

    Args:
        path: a transformers directory, or a name on the hub.

    Raises:
        UserError: there is none, or its config cannot be read.
    """
    with explained(path):
        return limits_of(read_architecture(str(path), pretrained=False))


def read_generation_settings(path: str | Path) -> GenerationConfig:
    """The generation settings that a loaded model would have; no weights are read.

    Args:
        path: a transformers directory, or a name on the hub.

    Raises:
        UserError: its config cannot be read.
    """
    try:
        return GenerationConfig.from_pretrained(path)
    except (OSError, ValueError, TypeError):  # there are none, and the config has to do
        with explained(path):
            return GenerationConfig.from_model_config(read_architecture(str(path), pretrained=False))


@contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Turns what a model's files end in where they cannot be loaded into a UserError in one line that names them."""
    try:
        yield
    except FAILURES as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path}: cannot load this model ({reason[0]})") from error


def check_device(device: str) -> None:
    """Raises UserError if there is no such device."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from error


@torch.no_grad()
def supervised_logits(model: PreTrainedModel, batch: Batch) -> Iterator[tuple[slice, Tensor]]:
    """The rows of logits that predict the supervised tokens of a batch, and no others, some at a time.

    They are those that a loss would read in training: the head's product in float32.

    Args:
        model: model in evaluation mode, on any device.
        batch: padded `ts2_lightning.types.Batch` with N supervised tokens.

    Raises:
        UserError: a row is longer than the model has positions for, or has a token that the model has not.

    Yields:
        Which of the N tokens, and their logits [n, K] in float32 at least, in memory that the next ones use again.
    """
    device, width, limits = model.device, batch["input_ids"].shape[1], limits_of(model.config)
    if (largest := int(batch["input_ids"].max())) >= limits.embeddings:
        raise UserError(
            f"token id {largest} of a prompt or row has no row in the embedding of {limits.model}, which has "
            f"{limits.embeddings:,}"
        )
    if limits.is_behind(width):
        raise UserError(f"{width:,} tokens of a prompt or row are more than {limits.context_text}; shorten it")
    inputs = {"input_ids": batch["input_ids"].to(device), "attention_mask": batch["attention_mask"].to(device)}
    hidden = backbone(model)(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)
    yield from logits_in_chunks(output_head(model), hidden.index_select(0, batch["supervised"].to(device)))
