"""Macro probe: how sure a model is of what it writes. Source: TS2, figure 5 and appendix C.4."""

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from ts2_lightning.evaluation.loading import supervised_logits
from ts2_lightning.evaluation.model import Model
from ts2_lightning.evaluation.prompts import Prompt
from ts2_lightning.generation.sampling import Decoder, Sample, sample
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
    means: list[float] = []
    tokens: list[int] = []
    at_a_time = max(1, _AT_A_TIME // samples)
    with tqdm(total=len(prompts) * samples, desc=f"Sampling, {model.title}", unit=" responses") as bar:
        for start in range(0, len(prompts), at_a_time):
            some = prompts[start : start + at_a_time]
            answers = sample(
                model.network,
                model.tokenizer,
                [prompt.ids for prompt in some],
                n=samples,
                decoder=decoder,
                max_new_tokens=max_new_tokens,
                seed=seed + start,  # prompts count from 0 in every call
                eos_ids=model.end_ids,
                batch_size=_AT_A_TIME,
            )
            for prompt, of_prompt in zip(some, answers, strict=True):
                means += mean_probabilities(model, prompt, of_prompt)
                tokens += [len(answer.ids) for answer in of_prompt]
            bar.update(sum(map(len, answers)))
    return {
        "mean": statistics.fmean(means),
        "standard_deviation": statistics.pstdev(means),
        "median": statistics.median(means),
        "mean_probability": [round(mean, 6) for mean in means],
        "tokens": tokens,
        "prompt": [number for number in range(len(prompts)) for _ in range(samples)],
    }


def mean_probabilities(model: Model, prompt: Prompt, samples: Sequence[Sample]) -> list[float]:
    """Mean probability of each sample's tokens under the distribution that the model is decoded with."""
    if model.decoding == "softmax":
        return [answer.mean_probability for answer in samples]  # which the sampler has read
    return [_under_projection(model, prompt.ids, answer.ids) for answer in samples]


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
