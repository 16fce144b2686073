"""Macro probe: how sure a model is of what it writes. Source: TS2, figure 5 and appendix C.4."""

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from ts2_lightning.evaluation.loading import supervised_logits
from ts2_lightning.evaluation.model import Model
from ts2_lightning.evaluation.prompts import Prompt
from ts2_lightning.generation import Decoder, Response, sample
from ts2_lightning.metrics.functional import gold_probability
from ts2_lightning.types import Batch

_AT_A_TIME = 32  # responses


def measure(
    model: Model,
    prompts: Sequence[Prompt],
    decoder: Decoder,
    samples: int = 1,
    max_new_tokens: int = 512,
    seed: int = 0,
) -> dict[str, Any]:
    """The mean selected-token probability of every sampled response, before temperature and truncation.

    The probability is that of the distribution with which the model is decoded: for a model decoded with sparsemax,
    sparsemax's.

    Args:
        model: the model.
        prompts: at least one.
        decoder: how responses are sampled.
        samples: responses to each prompt.
        max_new_tokens: tokens of a response, at most.
        seed: seed of what is sampled.

    Returns:
        `mean`, `standard_deviation` and `median` over the responses; for each of them its `mean_probability`, `tokens`
        (how many, with the ending one) and `prompt` (its number).
    """
    settings = model.generation_settings(max_new_tokens, seed, decoder.temperature, decoder.top_k, decoder.top_p)
    answers = sample(
        model.make_backend(_AT_A_TIME),
        [prompt.ids for prompt in prompts],
        settings,
        n=samples,
        progress=f"Sampling, {model.title}",
    )
    means = [
        mean
        for prompt, of_prompt in zip(prompts, answers, strict=True)
        for mean in mean_probabilities(model, prompt, of_prompt)
    ]
    tokens = [answer.tokens for of_prompt in answers for answer in of_prompt]
    return {
        "mean": statistics.fmean(means),
        "standard_deviation": statistics.pstdev(means),
        "median": statistics.median(means),
        "mean_probability": [round(mean, 6) for mean in means],
        "tokens": tokens,
        "prompt": [number for number in range(len(prompts)) for _ in range(samples)],
    }


def mean_probabilities(model: Model, prompt: Prompt, responses: Sequence[Response]) -> list[float]:
    """Mean probability of each response's tokens under the distribution that the model is decoded with."""
    if model.decoding == "softmax":
        return [response.mean_probability or 0.0 for response in responses]  # which was read while it was decoded
    return [_under_projection(model, prompt.ids, list(response.ids or ())) for response in responses]


def _under_projection(model: Model, prompt: list[int], answer: list[int]) -> float:
    """The same by teacher forcing: the sampler keeps the softmax's probabilities only."""
    row = torch.tensor([prompt + answer])
    batch: Batch = {
        "input_ids": row,
        "attention_mask": torch.ones_like(row),
        "supervised": torch.arange(len(prompt) - 1, row.shape[1] - 1),
        "labels": torch.tensor(answer),
    }
    probabilities = [
        gold_probability(model.projection(logits), batch["labels"][here].to(logits.device)).cpu()
        for here, logits in supervised_logits(model.network, batch)
    ]
    return float(torch.cat(probabilities).mean())
