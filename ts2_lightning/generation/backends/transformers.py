"""The usual backend: transformers in this process, with a decoding loop that leaves no row of a batch idle.

Prompts of like length are decoded together, the samples of a prompt share its prefill, rows that have ended are dropped
from the cache, and waiting requests take their places. The tokens are drawn from numbers that each response has for
itself, so it depends on nothing that it is decoded with (but for the last digits of its logits, which may), and the
global random generators are not touched.
"""

import gc
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
from ts2_lightning.generation.backends.caches import has_rows
from ts2_lightning.generation.backends.rows import Job, Rows, padded, padding_id, uniforms_of
from ts2_lightning.generation.decoders import Decoder, draw
from ts2_lightning.generation.requests import Asked, GenerationSettings, Request, Response
from ts2_lightning.hardware import is_out_of_memory
from ts2_lightning.model_limits import ModelLimits, limits_of
from ts2_lightning.ranges import COUNT, check_number
from ts2_lightning.types import UserError

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

    @property
    def device(self) -> tuple[str, int]:
        """The device of the model."""
        device = self.model.device
        return (torch.cuda.get_device_name(device) if device.type == "cuda" else device.type), 1

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

    def _jobs(self, requests: Sequence[Request]) -> list[Job]:
        limits = limits_of(self.model.config)
        ids: dict[Asked, list[int]] = {}
        for request in requests:
            if _hashable(request.prompt) not in ids:
                of_prompt = prompt_ids(self.tokenizer, request.prompt)
                check_prompt(of_prompt, limits, self.tokenizer)
                ids[_hashable(request.prompt)] = of_prompt
        return [Job(request, ids[_hashable(request.prompt)], limits) for request in requests]

    def _response(self, job: Job) -> Response:
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

    def _by_rows(self, waiting: "_Waiting", settings: GenerationSettings) -> Iterator[Job]:
        """Decodes all jobs, and hands each over when it has ended."""
        rows = Rows(self.model, settings)
        while True:
            free = self.batch_size - len(rows.jobs)
            is_due = not rows.jobs or (2 * free >= self.batch_size and not self._synced)
            taken = waiting.take(free) if is_due else []
            jobs = [*rows.jobs, *taken]
            if not jobs:
                return
            if not self._advance(rows, taken):
                rows = Rows(self.model, settings)
                waiting.put_back([job for job in jobs if not job.has_ended])
                self._halve()
            yield from (job for job in jobs if job.has_ended)

    def _advance(self, rows: Rows, taken: list[Job]) -> bool:
        """Adds jobs to the rows, and decodes a few tokens of all; false if memory does not do."""
        try:
            rows.add(taken)
            rows.decode(self._synced)
        except (RuntimeError, MemoryError) as error:
            if self._synced or not is_out_of_memory(error):  # ranks would have to agree on another batch
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

    def _by_generate(self, waiting: "_Waiting", settings: GenerationSettings) -> Iterator[Job]:
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

    def _generate(self, batch: list[Job], settings: GenerationSettings) -> bool:
        """Decodes whole responses; false if memory does not do."""
        draws = _Draws(settings.decoder, uniforms_of(batch, self.model.device))
        ids, mask = padded([job.ids for job in batch], self.model)
        pad = padding_id(self.model, settings.end_ids)
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
            if self._synced or not is_out_of_memory(error):
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


class _Waiting:
    """Responses that nobody works on yet, in the order of the length of their prompts.

    Args:
        source: requests that are still to be taken.
        jobs: function that makes jobs of requests.
        is_whole: whether all of them are taken at once.
    """

    def __init__(
        self, source: Iterator[Request], jobs: Callable[[Sequence[Request]], list[Job]], is_whole: bool
    ) -> None:
        self._source = source
        self._make = jobs
        self._is_whole = is_whole
        self._jobs: deque[Job] = deque()

    def take(self, count: int) -> list[Job]:
        """The next jobs, at most so many; a batch more is taken from the source, so that there are some to sort."""
        missing = 2 * count - len(self._jobs)
        if missing > 0 and (more := list(self._source if self._is_whole else islice(self._source, missing))):
            jobs = [*self._jobs, *self._make(more)]
            self._jobs = deque(sorted(jobs, key=lambda job: (len(job.ids), job.ids)))
        return [self._jobs.popleft() for _ in range(min(count, len(self._jobs)))]

    def put_back(self, jobs: Sequence[Job]) -> None:
        """Puts jobs before all others."""
        self._jobs.extendleft(reversed(jobs))


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
