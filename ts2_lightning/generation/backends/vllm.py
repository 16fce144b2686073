"""Responses that vLLM makes, under another interpreter: it pins torch and transformers at versions of its own.

`vllm_worker.py` runs there, one process for each GPU, or one on the CPU. It gets prompts as token ids, each request
with its own seed, and hands responses over as they finish. A worker that dies is started again, and what it had is made
anew. None outlives this process, however that ends.
"""

import json
import math
import os
import re
import subprocess
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from transformers import AutoConfig, PreTrainedTokenizerBase

from ts2_lightning.generation.backends.base import Backend
from ts2_lightning.generation.backends.transformers import check_prompt, prompt_ids
from ts2_lightning.generation.backends.vllm_processes import WORKER, Answer, Job, Run, Worker, end_all, environment
from ts2_lightning.generation.decoders import Decoder
from ts2_lightning.generation.requests import FINISHES, Asked, Request, Response
from ts2_lightning.model_limits import ModelLimits, limits_of
from ts2_lightning.ranges import COUNT, COUNT_OR_ZERO, POSITIVE, check_number
from ts2_lightning.types import UserError
from ts2_lightning.yaml_files import load_yaml

PREFIX = "vllm:"
LEAST, BELOW = (0, 11), (1, 0)
"""The oldest version with the engine and the log-probabilities that are used, and the first that may lack them."""

OWN_ARGUMENTS: Mapping[str, Any] = {
    "skip_tokenizer_init": True,  # it gets ids and gives ids
    "generation_config": "vllm",  # the model's own settings do not apply
    "logprobs_mode": "raw_logprobs",  # those of the softmax of the logits, before temperature and truncation
    "load_format": "safetensors",  # nothing is unpickled
    "trust_remote_code": False,
    "disable_log_stats": True,
    "seed": 0,
}
"""What vLLM's engine is always given."""

_ON_CPU: Mapping[str, Any] = {"enable_chunked_prefill": False}
"""There vLLM cannot put back the random number of a token that it drops, one after a part of a prompt: it dies."""

_REFUSED = {
    *OWN_ARGUMENTS, "model", "tokenizer", "override_generation_config", "data_parallel_size", "logits_processors",
    "worker_cls", "worker_extension_cls", "scheduler_cls",
}  # fmt: skip
"""What `vllm_args` cannot set: what responses follow from, and names of code."""

_LEAST_TEMPERATURE = 0.01
"""vLLM raises temperatures between 0 and this one to it."""
SILENCE = 3600.0
"""Seconds that a worker may say nothing. Loading takes minutes; one whose engine goes on says so every ten seconds."""
_VERSIONS_SECONDS = 300.0
_SHOWN = 40


@dataclass(frozen=True)
class Installation:
    """What is installed under an interpreter.

    Attributes:
        python: version of the interpreter.
        vllm: version of vLLM.
        torch: version of torch.
        gpus: number of GPUs that torch sees there.
        gpu: the driver's name of the first.
    """

    python: str
    vllm: str
    torch: str | None
    gpus: int
    gpu: str = ""

    @classmethod
    def of(cls, interpreter: str) -> "Installation":
        """Asks an interpreter, which imports torch, but no vLLM; seconds.

        Raises:
            UserError: there is no interpreter, no vLLM, or a version that is not supported.
        """
        command = [interpreter, "-I", str(WORKER), "--versions"]
        try:
            asked = subprocess.run(
                command, env=environment({}), capture_output=True, text=True, errors="replace",
                timeout=_VERSIONS_SECONDS, check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = error.strerror if isinstance(error, OSError) else "no answer"
            raise UserError(
                f"{PREFIX}{interpreter}: not a Python interpreter ({reason}); name its bin/python"
            ) from None
        try:
            told = cls(**json.loads(asked.stdout.strip().splitlines()[-1]))
        except (ValueError, TypeError, IndexError):
            last = next(
                reversed((asked.stderr or asked.stdout).strip().splitlines()), f"exit status {asked.returncode}"
            )
            raise UserError(f"{PREFIX}{interpreter}: does not run as a Python interpreter ({last})") from None
        least, below = (".".join(map(str, version)) for version in (LEAST, BELOW))
        install = f"install it in an environment of its own: {interpreter} -m pip install 'vllm>={least},<{below}'"
        if told.vllm is None:
            raise UserError(f"{PREFIX}{interpreter}: has no vLLM; {install}")
        if not LEAST <= _number(told.vllm) < BELOW:
            raise UserError(f"{PREFIX}{interpreter}: has vLLM {told.vllm}, which is not supported; {install}")
        return told


class VLLMBackend(Backend):
    """Makes responses with vLLM under another interpreter.

    The workers load the model when the first response is wanted, and keep it until `close`, or the end of this process.

    Args:
        interpreter: path of the interpreter that has vLLM.
        model: directory of the model, or its name on the hub.
        tokenizer: its tokenizer, which makes ids of prompts, and text of responses.
        arguments: arguments of vLLM's engine, such as `dtype`, `max_model_len` or `tensor_parallel_size`.
        restarts: number of times that a worker may die one after the other without a response in between.

    `arguments` may have `silence` too, which is ours: the seconds after which a worker that has something to do, and
    says nothing, is ended and started again (`SILENCE`); loading the model is among them.

    Raises:
        UserError: an interpreter without vLLM or with a version that is not supported, or an argument that cannot be
            set.
    """

    def __init__(
        self,
        interpreter: str,
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        arguments: Mapping[str, Any] | None = None,
        restarts: int = 3,
    ) -> None:
        check_number("vllm: restarts", restarts, COUNT_OR_ZERO)
        self._arguments = dict(arguments or {})
        self._silence = self._arguments.pop("silence", SILENCE)
        check_number("vllm_args: silence", self._silence, POSITIVE)
        if wrong := next((name for name in self._arguments if name in _REFUSED), None):
            raise UserError(f"vllm_args: {wrong} cannot be set, because responses would not follow from what is asked")
        self._interpreter = os.path.expanduser(interpreter)  # no shell does, behind a colon
        self._model = model
        self._tokenizer = tokenizer
        self._restarts = restarts
        self._last: tuple[Asked, list[int]] | None = None
        self._installation = Installation.of(self._interpreter)
        self._slots = _slots(self._installation.gpus, self._arguments)
        self._workers: dict[int, Worker] = {}
        self._at_exit = weakref.finalize(self, end_all, self._workers)

    @property
    def versions(self) -> Mapping[str, str]:
        """Name and versions: vLLM, and torch and python beside it."""
        told = self._installation
        return {"backend": "vllm", "vllm": told.vllm, "torch": str(told.torch), "python": told.python}

    @property
    def device(self) -> tuple[str, int]:
        """The GPUs of all workers, or `cpu`."""
        visible = sum(len(slot["CUDA_VISIBLE_DEVICES"].split(",")) for slot in self._slots if slot)
        return (self._installation.gpu, visible) if visible else ("cpu", 1)

    def close(self) -> None:
        """As the base class: it ends the workers."""
        end_all(self._workers)

    def check(self, requests: Sequence[Request]) -> None:
        """Raises UserError for a decoder that vLLM does not have, or a prompt that the model does not take."""
        for request in requests:
            self._job(request)

    def complete(self, requests: Iterable[Request]) -> Iterator[Response]:
        """As the base class. After Ctrl-C the responses that have come are handed over, and the workers ended."""
        run = Run(self._workers, len(self._slots), self._start, map(self._job, requests), self._restarts, self._silence)
        is_whole = False
        try:
            for job, answer in run.answers():
                yield self._response(job, answer)
            is_whole = True
        except KeyboardInterrupt:
            for job, answer in run.arrived():
                yield self._response(job, answer)
            raise
        finally:
            if not is_whole:  # they would go on with what nobody waits for
                self.close()

    def _start(self, slot: int) -> Worker:
        if not self._workers:
            count = len(self._slots)
            rank_zero_info(f"vLLM {self._installation.vllm} loads {self._model}" + f" {count} times" * (count > 1))
        arguments = {**({} if self._installation.gpus else _ON_CPU), **self._arguments, **OWN_ARGUMENTS}
        return Worker(self._interpreter, self._slots[slot], {"model": self._model, "arguments": arguments})

    @cached_property
    def _limits(self) -> ModelLimits:
        try:
            return limits_of(AutoConfig.from_pretrained(self._model))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self._model}: cannot read the config of this model ({_last_line(str(error))})"
            ) from error

    def _job(self, request: Request) -> Job:
        """A request as a worker gets it.

        Raises:
            UserError: it cannot be made.
        """
        _check_decoder(request.settings.decoder)
        ids, limits = self._ids(request.prompt), self._limits
        check_prompt(ids, limits, self._tokenizer)
        limit = request.settings.max_new_tokens
        if limits.context is not None:
            limit = min(limit, limits.context - len(ids))
        longest = self._arguments.get("max_model_len")
        if isinstance(longest, int) and len(ids) + limit > longest:  # a response depends on the model's context alone
            raise UserError(
                f"the prompt {self._beginning(ids)} has {len(ids):,} tokens, which with {limit:,} new ones is more "
                f"than max_model_len, {longest:,}; raise it in vllm_args or lower max_new_tokens"
            )
        return Job(request, ids, limit)

    def _ids(self, prompt: Asked) -> list[int]:
        if self._last is None or self._last[0] != prompt:  # samples of a prompt follow one another
            self._last = prompt, prompt_ids(self._tokenizer, prompt)
        return self._last[1]

    def _beginning(self, ids: Sequence[int]) -> str:
        return f"{str(self._tokenizer.decode(list(ids[:_SHOWN]), skip_special_tokens=True))[:_SHOWN]!r}..."

    def _response(self, job: Job, answer: Answer) -> Response:
        if (error := answer.get("error")) is not None:
            raise UserError(f"vLLM does not take the prompt {self._beginning(job.ids)} ({error})")
        if answer["finish"] not in FINISHES:
            raise UserError(
                f"vLLM ended a response to {self._beginning(job.ids)} with {answer['finish']!r}; start again"
            )
        ids, log_probabilities = tuple(answer["ids"]), tuple(map(float, answer["log_probabilities"]))
        return Response(
            key=job.request.key,
            text=str(self._tokenizer.decode(list(ids), skip_special_tokens=True)),
            tokens=len(ids),
            finish=answer["finish"],
            mean_probability=math.fsum(map(math.exp, log_probabilities)) / len(ids) if ids else None,
            ids=ids,
            log_probabilities=log_probabilities,
        )


def read_arguments(text: str) -> dict[str, Any]:
    """The arguments of vLLM's engine in a text.

    Args:
        text: a mapping in YAML or JSON, or the path of a file with one.

    Raises:
        UserError: no such file, or something else than a mapping.

    Example:
        >>> read_arguments("{dtype: float32, max_model_len: 4096}")
        {'dtype': 'float32', 'max_model_len': 4096}
    """
    name = "vllm_args"
    if not text.lstrip().startswith("{"):
        name = f"vllm_args: {text}"
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{name}: must be a mapping such as {{dtype: float32}}, or a file with one ({error})"
            ) from error
    content = load_yaml(text, name)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{name}: must be a mapping such as {{dtype: float32}}, got {type(content).__name__}")
    return content


def _check_decoder(decoder: Decoder) -> None:
    if decoder.projection != "softmax":
        raise UserError(
            f"vLLM samples from the softmax only, not with {decoder.projection}; take the transformers backend"
        )
    if 0 < decoder.temperature < _LEAST_TEMPERATURE:
        raise UserError(
            f"vLLM has no temperature between 0 and {_LEAST_TEMPERATURE}, got {decoder.temperature}; take 0 for the "
            "most probable token"
        )


def _slots(gpus: int, arguments: Mapping[str, Any]) -> list[dict[str, str]]:
    """The environment variables of each worker: which GPUs it has. On the CPU there is one.

    Raises:
        UserError: fewer GPUs than one worker wants.
    """
    sizes = [arguments.get(name, 1) for name in ("tensor_parallel_size", "pipeline_parallel_size")]
    for name, size in zip(("tensor_parallel_size", "pipeline_parallel_size"), sizes, strict=True):
        check_number(f"vllm_args: {name}", size, COUNT)
    size = math.prod(sizes)
    if not gpus:
        return [{}]
    if size > gpus:
        raise UserError(f"vllm_args: a worker is to have {size} GPUs, but there are {gpus}; lower tensor_parallel_size")
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = visible if len(visible) >= gpus else [str(number) for number in range(gpus)]
    groups = [names[start : start + size] for start in range(0, gpus - size + 1, size)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups]


def _number(version: str) -> tuple[int, ...]:
    """The numbers of a version, as far as there are some: `0.32.0rc1+cpu` -> (0, 32, 0)."""
    return tuple(int(part) for part in re.match(r"(\d+(\.\d+)*)?", version)[0].split(".") if part)  # type: ignore[index]


def _last_line(text: str) -> str:
    return next(reversed(text.strip().splitlines()), "")
