"""Macro probe: how sure a model is of what it writes. Source: TS2, figure 5 and appendix C.4."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from tqdm.auto import tqdm

from ts2_lightning.evaluation.models import supervised_logits
from ts2_lightning.evaluation.probes.subject import Prompt, Settings, Subject
from ts2_lightning.generation.sampling import Sample, sample
from ts2_lightning.metrics.functional import gold_probability
from ts2_lightning.types import Batch, UserError

_AT_A_TIME = 32  # responses


def measure(subject: Subject, settings: Settings) -> dict[str, Any]:
    """The mean selected-token probability of every sampled response, before temperature and truncation.

    The probability is that of the distribution with which the model is decoded: for a model decoded with sparsemax,
    sparsemax's.

    Returns:
        `mean`, `standard_deviation` and `median` over the responses; for each of them its `mean_probability`, `tokens`
        (how many, with the ending one) and `prompt` (its number).

    Raises:
        UserError: no prompt.
    """
    if not subject.prompts:
        raise UserError("macro probe: no prompts; give --prompts a file with at least one")
    decoder = replace(subject.projection, temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p)
    means: list[float] = []
    tokens: list[int] = []
    total = len(subject.prompts) * settings.samples
    at_a_time = max(1, _AT_A_TIME // settings.samples)
    with tqdm(total=total, desc=f"Sampling, {subject.name}", unit=" responses") as bar:
        for start in range(0, len(subject.prompts), at_a_time):
            prompts = subject.prompts[start : start + at_a_time]
            answers = sample(
                subject.model,
                subject.tokenizer,
                [prompt.ids for prompt in prompts],
                n=settings.samples,
                decoder=decoder,
                max_new_tokens=settings.max_new_tokens,
                seed=settings.seed + start,  # prompts count from 0 in every call
                eos_ids=subject.end_ids,
                batch_size=_AT_A_TIME,
            )
            for prompt, samples in zip(prompts, answers, strict=True):
                means += mean_probabilities(subject, prompt, samples)
                tokens += [len(answer.ids) for answer in samples]
            bar.update(sum(map(len, answers)))
    return {
        "mean": statistics.fmean(means),
        "standard_deviation": statistics.pstdev(means),
        "median": statistics.median(means),
        "mean_probability": [round(mean, 6) for mean in means],
        "tokens": tokens,
        "prompt": [number for number in range(len(subject.prompts)) for _ in range(settings.samples)],
    }


def mean_probabilities(subject: Subject, prompt: Prompt, samples: Sequence[Sample]) -> list[float]:
    """Mean probability of each sample's tokens under the distribution that the model is decoded with."""
    if subject.decoding == "softmax":
        return [answer.mean_probability for answer in samples]  # which the sampler has read
    return [_under_projection(subject, prompt.ids, answer.ids) for answer in samples]


def _under_projection(subject: Subject, prompt: list[int], answer: list[int]) -> float:
    """The same by teacher forcing: the sampler keeps the softmax's probabilities only."""
    row = torch.tensor([prompt + answer])
    batch: Batch = {
        "input_ids": row,
        "attention_mask": torch.ones_like(row),
        "supervised": torch.arange(len(prompt) - 1, row.shape[1] - 1),
        "labels": torch.tensor(answer),
    }
    found = [
        gold_probability(subject.projection(logits), batch["labels"][here].to(logits.device)).cpu()
        for here, logits in supervised_logits(subject.model, batch)
    ]
    return float(torch.cat(found).mean())
