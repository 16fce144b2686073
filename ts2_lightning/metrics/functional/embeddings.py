"""Differences in meaning between several texts to one prompt: cosines of their sentence embeddings."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ts2_lightning.types import UserError

Embed = Callable[[list[str]], Tensor]
"""From n texts to their embeddings [n, d]."""

PAPERS_EMBEDDER = "sentence-transformers/bert-large-nli-stsb-mean-tokens"
"""The model with which the published code of TS2 and GEM embeds texts."""


def sent_bert_diversity(texts: Sequence[str], embed: Embed) -> float:
    """1 - the mean cosine over all pairs of the texts' sentence embeddings.

    Source: TS2, appendix C.7, and GEM, appendix F.1, after Kirk et al. (2024).

    Args:
        texts: samples of one prompt, at least two.
        embed: function from the texts to their embeddings, for example `sentence_embedder()`.

    Returns:
        0 where all mean the same, 1 where they have nothing to do with each other; the papers print it times 100.

    Raises:
        UserError: fewer than two texts, or no embedding for each.

    Example:
        >>> sent_bert_diversity(["one", "two"], lambda texts: torch.eye(len(texts)))
        1.0
    """
    embeddings = embed(list(texts))
    if embeddings.dim() != 2 or len(embeddings) != len(texts):
        raise UserError(f"embed: expected embeddings [{len(texts)}, d], got shape {list(embeddings.shape)}")
    return mean_pairwise_distance(embeddings)


def mean_pairwise_distance(embeddings: Tensor) -> float:
    """1 - the mean cosine over all pairs of rows. `embeddings`: [n, d], n at least 2; a zero row has cosine 0.

    Example:
        >>> round(mean_pairwise_distance(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])), 4)
        0.6667
    """
    n = len(embeddings)
    if n < 2:
        raise UserError(f"sent_bert_diversity(texts) needs 2 or more samples of a prompt, got {n}")
    unit = torch.nn.functional.normalize(embeddings.detach().cpu().double(), dim=-1)
    # The squared length of the sum is the sum of the cosines of all ordered pairs and of each with itself.
    cosines = unit.sum(0).square().sum() - unit.square().sum()
    return max(0.0, 1 - cosines.item() / (n * (n - 1)))  # rounding could leave copies a hair below zero


@cache
def sentence_embedder(model: str = PAPERS_EMBEDDER, device: str | None = None) -> Embed:
    """An embedding function of sentence-transformers, loaded once. Weights come from safetensors only.

    Args:
        model: directory or hub name of the model.
        device: device of the model. Default: a GPU if there is one.

    Raises:
        UserError: sentence-transformers is not installed, or the model cannot be loaded.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError(
            f"sentence_embedder({model!r}) needs sentence-transformers ({error}): "
            "pip install 'ts2-lightning[sentence-bert]'"
        ) from error
    settings: dict[str, Any] = {"use_safetensors": True}
    try:
        network = SentenceTransformer(model, device=device, model_kwargs=settings)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"sentence_embedder({model!r}): cannot load this model: {reason[0]}") from error

    def embed(texts: list[str]) -> Tensor:
        embeddings: Tensor = network.encode(texts, convert_to_tensor=True, show_progress_bar=False)
        return embeddings

    return embed
