"""New rows of the embedding and of the head, for tokens that a model does not have yet.

Every new row is the mean of the old ones: of all rows the likeliest to fit, and the same on every machine. Source:
Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models",
https://nlp.stanford.edu/~johnhew/vocab-expansion.html.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ts2_lightning.model_limits import ModelLimits
from ts2_lightning.modules.config import LanguageModelConfig
from ts2_lightning.types import UserError

_BLOCK = 4096  # rows that are read at a time, in float64


def with_number_of_rows(
    config: LanguageModelConfig, limits: ModelLimits, tokens: int | None = None
) -> LanguageModelConfig:
    """A config that says how many rows the embedding has, where it says that it is resized.

    Args:
        config: Which model.
        limits: Limits of the model as it lies on the disk.
        tokens: Number of tokens of the tokenizer; None if there is none.

    Raises:
        UserError: fewer rows than there are, or `true` and no tokenizer.

    Example:
        >>> lm, limits = LanguageModelConfig("gpt2", resize_embeddings=True), ModelLimits("gpt2", 1024, True, 50257)
        >>> with_number_of_rows(lm, limits, tokens=50259).resize_embeddings
        50259
        >>> with_number_of_rows(lm, limits, tokens=50000).resize_embeddings  # a padded vocabulary stays as it is
        50257
    """
    wanted = config.resize_embeddings
    if wanted is True:
        if tokens is None:
            raise UserError(
                "model.lm.resize_embeddings is true, and there is no tokenizer whose tokens could be counted; name one "
                "with data.tokenizer, or set the number of rows"
            )
        wanted = max(limits.embeddings, tokens)
    if wanted and wanted < limits.embeddings:
        raise UserError(
            f"model.lm.resize_embeddings is {wanted:,}, and the embedding of {limits.model} has {limits.embeddings:,} "
            "rows; none is taken away, so set it to more, or to null"
        )
    return replace(config, resize_embeddings=wanted or None)


@torch.no_grad()
def resize_embeddings(model: PreTrainedModel, rows: int, dtype: torch.dtype | None = None) -> None:
    """Gives embedding and head of a model, in place, so many rows; new ones at the mean of the old ones.

    What is tied stays tied, and the model's config states the number.

    Args:
        model: with its weights, whole in this process.
        rows: at least as many as there are.
        dtype: to which the mean is rounded, so that it is the same whether the files were mapped into memory in their
            own, or read into a wider one. Default: that of the weights.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=3, n_embd=4, n_layer=1, n_head=1))
        >>> resize_embeddings(model, 5)
        >>> model.get_output_embeddings().weight.shape, model.config.vocab_size
        (torch.Size([5, 4]), 5)
    """
    before: int = model.get_input_embeddings().weight.shape[0]  # type: ignore[assignment, index]
    if rows == before:
        return
    model.resize_token_embeddings(rows, mean_resizing=False)
    for values in _tables(model):
        values[before:] = _mean(values[:before]).to(dtype or values.dtype)


def _tables(model: PreTrainedModel) -> Iterator[Tensor]:
    """What has a row for every token: the embedding, and weight and bias of the head; a tied weight once."""
    seen: set[int] = set()
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        for name in ("weight", "bias"):
            values = getattr(module, name, None)
            if isinstance(values, Tensor) and id(values) not in seen:
                seen.add(id(values))
                yield values.data


def _mean(values: Tensor) -> Tensor:
    total = torch.zeros(values.shape[1:], dtype=torch.float64, device=values.device)
    for block in values.split(_BLOCK):
        total += block.double().sum(0)
    return total / len(values)
