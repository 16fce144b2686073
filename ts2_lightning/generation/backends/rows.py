"""Responses that are decoded together, a row of the cache for each; rows come and go."""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ts2_lightning.generation.backends.caches import RowCache
from ts2_lightning.generation.decoders import draw
from ts2_lightning.generation.requests import GenerationSettings, Request
from ts2_lightning.model_limits import ModelLimits, limits_of
from ts2_lightning.ops import widest_float

_LOOK = 16
"""Steps after which rows that have ended are dropped."""


class Job:
    """A response in the making.

    Args:
        request: the request.
        ids: token ids of its prompt.
        limits: limits of the model.
    """

    def __init__(self, request: Request, ids: list[int], limits: ModelLimits) -> None:
        settings = request.settings
        self.request = request
        self.ids = ids
        self.limit = settings.max_new_tokens
        if limits.context is not None:
            self.limit = min(self.limit, limits.context - len(ids))
        self.tokens: list[int] = []
        self.log_probabilities: list[float] = []
        self.has_ended = False

    def append(self, token: int, log_probability: float) -> None:
        """Adds the next token."""
        self.tokens.append(token)
        self.log_probabilities.append(log_probability)
        self.has_ended = token in self.request.settings.end_ids or len(self.tokens) == self.limit


class Rows:
    """Responses that are decoded together, a row of the cache for each.

    Args:
        model: in evaluation mode.
        settings: those of all responses.

    Attributes:
        jobs: what the rows are, in their order.
    """

    def __init__(self, model: PreTrainedModel, settings: GenerationSettings) -> None:
        self.jobs: list[Job] = []
        self._model = model
        self._decoder = settings.decoder
        self._takes = set(inspect.signature(type(model).forward).parameters)
        self._last = (limits_of(model.config).context or torch.iinfo(torch.int64).max) - 1
        """The last position: rows that have ended stay there until they are dropped."""
        self._cache: RowCache
        self._mask: Tensor  # [B, width]
        self._uniforms: Tensor  # [B, T], of which each row has used as many as it has tokens
        self._done: Tensor  # [B], how many these are
        self._positions: Tensor  # [B], of the last token
        self._logits: Tensor  # [B, K], of the next one

    @torch.no_grad()
    def add(self, jobs: list[Job]) -> None:
        """Adds responses: each prompt, with what there is of its response already, is read once for all its samples."""
        if not jobs:
            return
        texts = [tuple(job.ids + job.tokens) for job in jobs]
        distinct = list(dict.fromkeys(texts))
        ids, mask = padded(distinct, self._model)
        cache = RowCache(self._model)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self._forward(ids, mask, positions, cache)
        rows = [distinct.index(text) for text in texts] if len(distinct) < len(texts) else None
        positions = positions[:, -1]
        if rows is not None:
            cache.select(rows)
            logits, mask, positions = logits[rows], mask[rows], positions[rows]
        done = torch.tensor([len(job.tokens) for job in jobs], device=logits.device)
        uniforms = uniforms_of(jobs, logits.device)
        if self.jobs:
            self._cache.join(cache)
            width = max(mask.shape[1], self._mask.shape[1])
            mask = torch.cat([_left_padded(self._mask, width), _left_padded(mask, width)])
            width = max(uniforms.shape[1], self._uniforms.shape[1])
            uniforms = torch.cat([_right_padded(self._uniforms, width), _right_padded(uniforms, width)])
            logits = torch.cat([self._logits, logits])
            positions, done = torch.cat([self._positions, positions]), torch.cat([self._done, done])
            cache = self._cache
        self._cache, self._mask, self._uniforms = cache, mask, uniforms
        self._logits, self._positions, self._done = logits, positions, done
        self.jobs = [*self.jobs, *jobs]

    @torch.no_grad()
    def decode(self, synced: bool) -> None:
        """Decodes tokens of all rows until it is worth while to drop those that have ended, and drops them.

        With `synced` that is when all rows of all ranks have ended.
        """
        step = 0
        while True:
            self._draw()
            ended = sum(job.has_ended for job in self.jobs)
            goes_on = any_rank(ended < len(self.jobs), self._logits.device) if synced else ended < len(self.jobs)
            step += 1
            if not goes_on or (not synced and (step >= _LOOK or ended > len(self.jobs) // 8)):
                break
            self._read_last()
        if ended:
            self._drop_ended()
        if self.jobs:
            self._read_last()

    def _draw(self) -> None:
        """Draws the next token of every row that has not ended."""
        logits = self._logits
        shaped = self._decoder(logits)
        at = self._done.clamp(max=self._uniforms.shape[1] - 1)[:, None]
        chosen = draw(shaped, self._uniforms.gather(1, at)[:, 0]) if self._decoder.temperature else shaped.argmax(-1)
        log_probabilities = logits.gather(-1, chosen[:, None])[:, 0] - logits.logsumexp(-1)
        self._tokens = chosen
        self._done += 1
        both = torch.stack([chosen.to(self._uniforms.dtype), log_probabilities.to(self._uniforms.dtype)]).tolist()
        for job, token, log_probability in zip(self.jobs, *both, strict=True):
            if not job.has_ended:
                job.append(int(token), log_probability)

    def _read_last(self) -> None:
        """Reads the tokens that were drawn last, and makes the logits of the next."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], 1)
        self._positions = (self._positions + 1).clamp(max=self._last)
        self._logits = self._forward(self._tokens[:, None], self._mask, self._positions[:, None], self._cache)

    def _drop_ended(self) -> None:
        left = [row for row, job in enumerate(self.jobs) if not job.has_ended]
        # The last ones take the places of those that have ended, so that the others stay where they are.
        last = [row for row in left if row >= len(left)]
        rows = [last.pop() if job.has_ended else row for row, job in enumerate(self.jobs[: len(left)])]
        self.jobs = [self.jobs[row] for row in rows]
        if not rows:
            return
        self._cache.select(rows)
        self._mask, self._uniforms, self._tokens = self._mask[rows], self._uniforms[rows], self._tokens[rows]
        self._positions, self._done = self._positions[rows], self._done[rows]
        if unread := int(self._mask.argmax(-1).min()):  # columns that only rows that have ended had a token in
            self._cache.trim(unread)
            self._mask = self._mask[:, unread:]

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """The logits [B, K] behind the last of the tokens [B, width], in float32 at least."""
        inputs = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache, "use_cache": True}
        optional = {"position_ids": positions, "logits_to_keep": 1}
        inputs |= {name: value for name, value in optional.items() if name in self._takes}
        logits: Tensor = self._model(**inputs).logits[:, -1]
        return logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)


def padded(rows: Sequence[Sequence[int]], model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, width] of rows that end at the same column."""
    width = max(map(len, rows))
    pad = padding_id(model, ())
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    return ids, mask


def padding_id(model: PreTrainedModel, ends: Sequence[int]) -> int:
    """An id that the embedding has a row for; it is masked."""
    rows = limits_of(model.config).embeddings
    return next((number for number in ends if number < rows), 0)


def uniforms_of(jobs: Sequence[Job], device: torch.device) -> Tensor:
    """The numbers [B, T] that the tokens of responses are drawn with; those behind a response's limit are 0."""
    table = np.zeros((len(jobs), max(job.limit for job in jobs)))
    for row, job in zip(table, jobs, strict=True):
        row[: job.limit] = job.request.uniforms(job.limit)
    return torch.from_numpy(table).to(device, widest_float(device))


def _left_padded(mask: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(mask, (width - mask.shape[1], 0))


def _right_padded(numbers: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(numbers, (0, width - numbers.shape[1]))


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether it is true on any rank."""
    if not torch.distributed.is_initialized():
        return flag
    number = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
    return bool(number)
