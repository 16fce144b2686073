"""The usual backend: transformers in this process, with a decoding loop that leaves no row of a batch idle.

Prompts of like length are decoded together, the samples of a prompt share its prefill, rows that have ended are dropped
from the cache, and waiting requests take their places. The tokens are drawn from numbers that each response has for
itself, so it depends on nothing that it is decoded with (but for the last digits of its logits, which may), and the
global random generators are not touched.
"""

import gc
import inspect
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
import transformers
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ts2_lightning.generation.backends.base import Backend
from ts2_lightning.generation.backends.caches import RowCache, has_rows
from ts2_lightning.generation.decoders import Decoder, draw
from ts2_lightning.generation.requests import Asked, GenerationSettings, Request, Response
from ts2_lightning.model_limits import ModelLimits, limits_of
from ts2_lightning.ops import widest_float
from ts2_lightning.ranges import COUNT, check_number
from ts2_lightning.types import UserError

_LOOK = 16
"""Steps after which rows that have ended are dropped."""

_SHOWN = 40
"""Characters of a prompt in messages."""


class TransformersBackend(Backend):
    """Decodes with a model of transformers in this process.

    The model's own generation settings (repetition penalties and the like) do not apply: only the decoder counts. The
    model is left in the mode in which it came. Where memory runs out the batch is halved, and what was decoded stays.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        batch_size: number of responses that are decoded together, at most.
        synced: whether the weights are sharded: then all ranks call with equally many requests, and take equally many
            forward passes.
        keep_log_probabilities: whether responses have the log-probability of each token.

    Raises:
        UserError: if `batch_size` is out of its range.

    Example:
        >>> from ts2_lightning.generation import Decoder, GenerationSettings, Request
        >>> from ts2_lightning.toyworld import build_tokenizer
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> tokenizer = build_tokenizer()
        >>> sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> backend = TransformersBackend(LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)), tokenizer)
        >>> settings = GenerationSettings("model", Decoder(top_k=5), max_new_tokens=4)
        >>> [response.tokens for response in backend.complete([Request("name a fruit", 0, settings)])]
        [4]
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 32,
        synced: bool = False,
        keep_log_probabilities: bool = False,
    ) -> None:
        check_number("TransformersBackend: batch_size", batch_size, COUNT)
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        """Halved where memory runs out."""
        self._synced = synced
        self._keep = keep_log_probabilities

    @property
    def versions(self) -> Mapping[str, str]:
        """Name and versions: transformers and torch."""
        return {"backend": "transformers", "transformers": transformers.__version__, "torch": torch.__version__}

    def check(self, requests: Sequence[Request]) -> None:
        """Raises UserError for a prompt without a token, without room for a response, or with a foreign token."""
        self._jobs(requests)

    def complete(self, requests: Iterable[Request]) -> Iterator[Response]:
        """Makes one response to each request, and hands each over as soon as it is made.

        Args:
            requests: requests with the same settings, of different keys. Those of a sequence are sorted by the length
                of their prompts; of another iterable, a batch is taken beforehand and sorted.

        Returns:
            The responses, in any order.

        Raises:
            UserError: a prompt that the model does not take, or memory that does not do for one response.
        """
        source = iter(requests)
        first = next(source, None)
        if first is None:
            return
        settings, count, cut = first.settings, 0, 0
        is_whole = self._synced or isinstance(requests, Sequence)
        waiting = _Waiting(chain([first], source), self._jobs, is_whole)
        make = self._by_rows if has_rows(self.model) else self._by_generate
        with _evaluating(self.model):
            for job in make(waiting, settings):
                response = self._response(job)
                count += 1
                cut += response.finish == "length" and job.limit < settings.max_new_tokens
                yield response
        if cut:
            rank_zero_warn(
                f"{cut:,} of {count:,} responses were cut off before max_new_tokens, {settings.max_new_tokens:,}: "
                f"with their prompts they fill {limits_of(self.model.config).context_text}"
            )

    def _jobs(self, requests: Sequence[Request]) -> list["_Job"]:
        limits = limits_of(self.model.config)
        ids: dict[Asked, list[int]] = {}
        for request in requests:
            if _hashable(request.prompt) not in ids:
                of_prompt = prompt_ids(self.tokenizer, request.prompt)
                check_prompt(of_prompt, limits, self.tokenizer)
                ids[_hashable(request.prompt)] = of_prompt
        return [_Job(request, ids[_hashable(request.prompt)], limits) for request in requests]

    def _response(self, job: "_Job") -> Response:
        return Response(
            key=job.request.key,
            text=str(self.tokenizer.decode(job.tokens, skip_special_tokens=True)),
            tokens=len(job.tokens),
            finish="stop" if job.tokens[-1] in job.request.settings.end_ids else "length",
            mean_probability=float(np.exp(job.log_probabilities).mean()),
            ids=tuple(job.tokens),
            log_probabilities=tuple(job.log_probabilities) if self._keep else None,
        )

    # Rows that come and go ---------------------------------------------------------------------------------------

    def _by_rows(self, waiting: "_Waiting", settings: GenerationSettings) -> Iterator["_Job"]:
        """Decodes all jobs, and hands each over when it has ended."""
        rows = _Rows(self.model, settings)
        while True:
            free = self.batch_size - len(rows.jobs)
            is_due = not rows.jobs or (2 * free >= self.batch_size and not self._synced)
            taken = waiting.take(free) if is_due else []
            jobs = [*rows.jobs, *taken]
            if not jobs:
                return
            if not self._advance(rows, taken):
                rows = _Rows(self.model, settings)
                waiting.put_back([job for job in jobs if not job.has_ended])
                self._halve()
            yield from (job for job in jobs if job.has_ended)

    def _advance(self, rows: "_Rows", taken: list["_Job"]) -> bool:
        """Adds jobs to the rows, and decodes a few tokens of all; false if memory does not do."""
        try:
            rows.add(taken)
            rows.decode(self._synced)
        except (RuntimeError, MemoryError) as error:
            if self._synced or not _is_out_of_memory(error):  # ranks would have to agree on another batch
                raise
            return False
        return True

    def _halve(self) -> None:
        gc.collect()  # what the failed pass has left behind
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.batch_size == 1:
            raise UserError("out of memory with one response at a time; take shorter prompts, or fewer max_new_tokens")
        self.batch_size //= 2
        rank_zero_warn(f"out of memory: batch_size is {self.batch_size:,} from here on; nothing is lost")

    # Models without such rows ------------------------------------------------------------------------------------

    def _by_generate(self, waiting: "_Waiting", settings: GenerationSettings) -> Iterator["_Job"]:
        """The same with `generate`, batch by batch: slower, and for any model that can generate."""
        while jobs := waiting.take(self.batch_size):
            # With left padding a batch has one limit for all its rows, whose prompts may differ in length.
            batch = [job for job in jobs if job.limit == jobs[0].limit]
            waiting.put_back(jobs[len(batch) :])  # they are sorted, so those of one limit come first
            if self._generate(batch, settings):
                yield from batch
            else:
                waiting.put_back(batch)
                self._halve()

    def _generate(self, batch: list["_Job"], settings: GenerationSettings) -> bool:
        """Decodes whole responses; false if memory does not do."""
        draws = _Draws(settings.decoder, _uniforms(batch, self.model.device))
        ids, mask = _padded([job.ids for job in batch], self.model)
        pad = _padding(self.model, settings.end_ids)
        own: Any = self.model
        before, own.generation_config = own.generation_config, GenerationConfig(
            max_new_tokens=batch[0].limit, do_sample=False, use_cache=True,
            eos_token_id=list(settings.end_ids) or None, pad_token_id=pad,
        )  # fmt: skip
        try:
            with torch.no_grad():
                whole = own.generate(
                    inputs=ids, attention_mask=mask, logits_processor=LogitsProcessorList([draws]),
                    synced_gpus=self._synced,
                )  # fmt: skip
        except (RuntimeError, MemoryError) as error:
            if self._synced or not _is_out_of_memory(error):
                raise
            return False
        finally:
            own.generation_config = before
        tokens, log_probabilities = whole[:, ids.shape[1] :].tolist(), torch.stack(draws.log_probabilities, 1).tolist()
        for job, of_job, numbers in zip(batch, tokens, log_probabilities, strict=True):
            for token, number in zip(of_job, numbers, strict=True):
                if not job.has_ended:
                    job.append(token, number)
        return True


class _Job:
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


class _Waiting:
    """Responses that nobody works on yet, in the order of the length of their prompts.

    Args:
        source: requests that are still to be taken.
        jobs: function that makes jobs of requests.
        is_whole: whether all of them are taken at once.
    """

    def __init__(
        self, source: Iterator[Request], jobs: Callable[[Sequence[Request]], list[_Job]], is_whole: bool
    ) -> None:
        self._source = source
        self._make = jobs
        self._is_whole = is_whole
        self._jobs: deque[_Job] = deque()

    def take(self, count: int) -> list[_Job]:
        """The next jobs, at most so many; a batch more is taken from the source, so that there are some to sort."""
        missing = 2 * count - len(self._jobs)
        if missing > 0 and (more := list(self._source if self._is_whole else islice(self._source, missing))):
            jobs = [*self._jobs, *self._make(more)]
            self._jobs = deque(sorted(jobs, key=lambda job: (len(job.ids), job.ids)))
        return [self._jobs.popleft() for _ in range(min(count, len(self._jobs)))]

    def put_back(self, jobs: Sequence[_Job]) -> None:
        """Puts jobs before all others."""
        self._jobs.extendleft(reversed(jobs))


class _Rows:
    """Responses that are decoded together, a row of the cache for each.

    Args:
        model: in evaluation mode.
        settings: those of all responses.

    Attributes:
        jobs: what the rows are, in their order.
    """

    def __init__(self, model: PreTrainedModel, settings: GenerationSettings) -> None:
        self.jobs: list[_Job] = []
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
    def add(self, jobs: list[_Job]) -> None:
        """Adds responses: each prompt, with what there is of its response already, is read once for all its samples."""
        if not jobs:
            return
        texts = [tuple(job.ids + job.tokens) for job in jobs]
        distinct = list(dict.fromkeys(texts))
        ids, mask = _padded(distinct, self._model)
        cache = RowCache(self._model)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self._forward(ids, mask, positions, cache)
        rows = [distinct.index(text) for text in texts] if len(distinct) < len(texts) else None
        positions = positions[:, -1]
        if rows is not None:
            cache.select(rows)
            logits, mask, positions = logits[rows], mask[rows], positions[rows]
        done = torch.tensor([len(job.tokens) for job in jobs], device=logits.device)
        uniforms = _uniforms(jobs, logits.device)
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
            goes_on = _any_rank(ended < len(self.jobs), self._logits.device) if synced else ended < len(self.jobs)
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


class _Draws(LogitsProcessor):
    """Draws the next token of every row, leaves `generate` no choice, and keeps its log-probability.

    Args:
        decoder: distribution that tokens are drawn from.
        uniforms: [B, T] numbers in [0, 1), one for each token of each row.
    """

    def __init__(self, decoder: Decoder, uniforms: Tensor) -> None:
        self._decoder = decoder
        self._uniforms = uniforms
        self.log_probabilities: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[B, K], minus infinity but for the token that was drawn."""
        column = self._uniforms[:, len(self.log_probabilities)]
        shaped = self._decoder(scores)
        chosen = draw(shaped, column)[:, None] if self._decoder.temperature else shaped.argmax(-1, keepdim=True)
        self.log_probabilities.append(scores.log_softmax(-1).gather(-1, chosen)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen, 0.0)


# Prompts --------------------------------------------------------------------------------------------------------


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Asked) -> list[int]:
    """The ids of a prompt: text gets the tokenizer's special tokens, messages end with the generation prompt."""
    untyped: Any = tokenizer  # its type hints are narrower than what it takes
    if isinstance(prompt, str):
        return list(untyped(prompt)["input_ids"])
    if prompt and isinstance(prompt[0], Mapping):
        return list(untyped.apply_chat_template(list(prompt), add_generation_prompt=True, return_dict=False))
    return list(prompt)  # type: ignore[arg-type]


def end_ids(settings: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a response, as a model's generation settings name them, or else its tokenizer."""
    ids = getattr(settings, "eos_token_id", None)
    ids = tokenizer.eos_token_id if ids is None else ids
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def check_prompt(ids: list[int], limits: ModelLimits, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UserError for a prompt without a token, without room for a response, or with a foreign token."""
    if not ids:
        raise UserError("a prompt has no token; leave it out")
    largest = max(ids)
    if largest >= limits.embeddings:
        raise UserError(
            f"token id {largest} of a prompt has no row in the embedding of {limits.model}, which has "
            f"{limits.embeddings:,}; take the model's own tokenizer"
        )
    if limits.context is not None and len(ids) >= limits.context:
        shown = str(tokenizer.decode(ids[:_SHOWN], skip_special_tokens=True))[:_SHOWN]
        raise UserError(
            f"the prompt {shown!r}... has {len(ids):,} tokens, which leaves no room for a response in "
            f"{limits.context_text}; shorten it"
        )


def _hashable(prompt: Asked) -> Any:
    is_messages = not isinstance(prompt, str) and prompt and isinstance(prompt[0], Mapping)
    return repr(prompt) if is_messages else prompt


# Tensors --------------------------------------------------------------------------------------------------------


def _padded(rows: Sequence[Sequence[int]], model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, width] of rows that end at the same column."""
    width = max(map(len, rows))
    pad = _padding(model, ())
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    return ids, mask


def _padding(model: PreTrainedModel, ends: Sequence[int]) -> int:
    """An id that the embedding has a row for; it is masked."""
    rows = limits_of(model.config).embeddings
    return next((number for number in ends if number < rows), 0)


def _uniforms(jobs: Sequence[_Job], device: torch.device) -> Tensor:
    """The numbers [B, T] that the tokens of responses are drawn with; those behind a response's limit are 0."""
    table = np.zeros((len(jobs), max(job.limit for job in jobs)))
    for row, job in zip(table, jobs, strict=True):
        row[: job.limit] = job.request.uniforms(job.limit)
    return torch.from_numpy(table).to(device, widest_float(device))


def _left_padded(mask: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(mask, (width - mask.shape[1], 0))


def _right_padded(numbers: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(numbers, (0, width - numbers.shape[1]))


# The model ------------------------------------------------------------------------------------------------------


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Puts the model into evaluation mode, and back."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _any_rank(flag: bool, device: torch.device) -> bool:
    """Whether it is true on any rank."""
    if not torch.distributed.is_initialized():
        return flag
    number = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
    return bool(number)


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU's allocator, had no memory left."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in said
