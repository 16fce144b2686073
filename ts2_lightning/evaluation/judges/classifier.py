"""Judges that classify texts, such as reward models: token ids in, numbers out, as responses like all others.

On one device the model computes in this process; on several there is a process for each (`classifier_processes`).
"""

import gc
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar, cast

import torch
import transformers
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from ts2_lightning.data.tokenizer import load_tokenizer
from ts2_lightning.evaluation.judges.base import AskedJudge, Case, JudgeCost
from ts2_lightning.evaluation.judges.classifier_processes import Workers
from ts2_lightning.evaluation.loading import explained
from ts2_lightning.generation import Decoder, GenerationSettings
from ts2_lightning.generation.backends import Backend
from ts2_lightning.generation.requests import Request, Response
from ts2_lightning.hardware import is_out_of_memory
from ts2_lightning.model_limits import ModelLimits, limits_of
from ts2_lightning.modules.model_files import check_weight_files, read_classifier
from ts2_lightning.runs.stamps import digest, file_stamps
from ts2_lightning.types import UserError

_WINDOW = 16
"""Batches that are taken together, so that there are some to sort by length."""
_DIGITS = ".9g"
"""As many digits as tell float32 numbers apart."""


class Classifier:
    """A model that gives each text some numbers.

    Rows of like length are computed together, the longest first, with the padding on the right. Where memory runs out
    the batch is halved.

    Args:
        place: a transformers directory, or a name on the hub; its weights are safetensors.
        labels: number of its outputs.
        device: where it computes. On a CPU the weights become float32; elsewhere they keep the dtype of their files.
        batch_size: number of rows at a time, at most.
        separator: token behind which a row's second text begins, for models that are told of two; None for one text.

    Attributes:
        batch_size: number of rows at a time, by now.

    Raises:
        UserError: there is no such model, or it is of another kind.
    """

    def __init__(
        self, place: str, labels: int, device: str = "cpu", batch_size: int = 32, separator: int | None = None
    ) -> None:
        dtype = torch.float32 if torch.device(device).type == "cpu" else "auto"
        with explained(place):
            architecture = read_classifier(place, labels)
            check_weight_files(place)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                place, trust_remote_code=False, use_safetensors=True, dtype=dtype, output_loading_info=True
            )
            if missing := sorted(info["missing_keys"]):  # transformers has made them up
                raise ValueError(f"its files lack {missing[0]}" + f" and {len(missing) - 1} more" * (len(missing) > 1))
        self._pad = int(architecture.get_text_config().pad_token_id)
        self._model = model.to(device).eval()
        self._separator = separator
        self.batch_size = batch_size

    def batches(self, rows: Sequence[Sequence[int]]) -> Iterator[list[tuple[int, list[float]]]]:
        """The numbers of rows, a batch at a time, each with the place of its row.

        Args:
            rows: token ids of each text.

        Raises:
            UserError: memory does not do for one row.
        """
        waiting = sorted(range(len(rows)), key=lambda place: (-len(rows[place]), place))
        while waiting:
            batch = waiting[: self.batch_size]
            try:
                numbers = self._numbers([rows[place] for place in batch])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(len(rows[batch[0]]))
                continue
            waiting = waiting[len(batch) :]
            yield list(zip(batch, numbers, strict=True))

    @torch.inference_mode()
    def _numbers(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        device, width = self._model.device, max(map(len, rows))
        ids = torch.tensor([[*row, *[self._pad] * (width - len(row))] for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        more = {} if self._separator is None else {"token_type_ids": self._second_texts(ids)}
        logits: Tensor = self._model(input_ids=ids, attention_mask=mask, **more).logits
        numbers: list[list[float]] = logits.float().tolist()
        return numbers

    def _second_texts(self, ids: Tensor) -> Tensor:
        """[B, width], 1 behind the first separator of each row; what is padding does not matter."""
        ends = ids.eq(cast(int, self._separator)).long()
        return (ends.cumsum(-1) - ends).gt(0).long()

    def _halve(self, length: int) -> None:
        free_memory()  # of what the failed pass has left behind
        if self.batch_size == 1:
            raise UserError(f"out of memory with one text of {length:,} tokens at a time; take a larger device")
        self.batch_size //= 2
        rank_zero_warn(f"out of memory: batch_size is {self.batch_size:,} from here on; nothing is lost")


class ClassifierBackend(Backend):
    """Gives the numbers of texts, as a JSON list; `tokens` of a response is how many were read.

    Args:
        place: see `Classifier`, as for the following.
        labels: number of outputs.
        devices: where it computes, a process for each if there are several.
        batch_size: number of rows at a time, at most.
        separator: token behind which a second text begins.
    """

    def __init__(
        self, place: str, labels: int, devices: Sequence[str], batch_size: int = 32, separator: int | None = None
    ) -> None:
        self._arguments: dict[str, Any] = {
            "place": place, "labels": labels, "batch_size": batch_size, "separator": separator,
        }  # fmt: skip
        self._devices = list(devices)
        self._classifier: Classifier | None = None
        self._workers: Workers | None = None
        self._to_say = ""

    @property
    def versions(self) -> Mapping[str, str]:
        """Name and versions: transformers and torch."""
        return {"backend": "classifier", "transformers": transformers.__version__, "torch": torch.__version__}

    def check(self, requests: Sequence[Request]) -> None:
        """Raises UserError for a text without a token, with a foreign one, or longer than the model takes."""
        limits, place = self._limits, self._arguments["place"]
        for request in requests:
            _check_row(_ids(request), limits, place)
        tokens = sum(len(_ids(request)) for request in requests)
        texts = "1 text" if len(requests) == 1 else f"{len(requests):,} texts"
        self._to_say = f"{texts} of {tokens:,} tokens by {place} on {', '.join(self._devices)}"

    @cached_property
    def _limits(self) -> ModelLimits:
        with explained(self._arguments["place"]):
            return limits_of(read_classifier(self._arguments["place"], self._arguments["labels"]))

    def complete(self, requests: Iterable[Request]) -> Iterator[Response]:
        """As the base class; a window of requests is taken at a time, and handed over batch by batch."""
        if self._to_say:
            rank_zero_info(self._to_say)
            self._to_say = ""
        source = iter(requests)
        count = _WINDOW * self._arguments["batch_size"] * len(self._devices)
        while window := list(islice(source, count)):
            rows = [_ids(request) for request in window]
            for batch in self._batches(rows):
                for place, numbers in batch:
                    yield self._response(window[place], numbers)

    def _batches(self, rows: Sequence[Sequence[int]]) -> Iterator[list[tuple[int, list[float]]]]:
        if len(self._devices) == 1:
            if self._classifier is None:
                self._classifier = Classifier(device=self._devices[0], **self._arguments)
            yield from self._classifier.batches(rows)
            return
        if self._workers is None:
            self._workers = Workers([{**self._arguments, "device": device} for device in self._devices])
        is_whole = False
        try:
            yield from self._workers.batches(rows, self._arguments["batch_size"])
            is_whole = True
        finally:
            if not is_whole:  # they would go on with what nobody waits for
                self.close()

    def _response(self, request: Request, numbers: Sequence[float]) -> Response:
        text = json.dumps([float(format(number, _DIGITS)) for number in numbers])
        if "NaN" in text or "Infinity" in text:
            raise UserError(
                f"{self._arguments['place']}: it gives {text}, which are no finite numbers; look at its weights"
            )
        return Response(request.key, text, len(_ids(request)), "stop")

    def close(self) -> None:
        """Lets go of the model, and ends the processes."""
        if self._classifier is not None:
            self._classifier = None
            free_memory()
        if self._workers is not None:
            self._workers.close()
            self._workers = None


def free_memory() -> None:
    """Gives memory back that nothing holds any more, to other processes too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _ids(request: Request) -> tuple[int, ...]:
    assert isinstance(request.prompt, tuple)
    return request.prompt  # type: ignore[return-value]


def _check_row(ids: Sequence[int], limits: ModelLimits, place: str) -> None:
    if not ids:
        raise UserError(f"{place}: there is a text without a token")
    if (largest := max(ids)) >= limits.embeddings:
        raise UserError(
            f"{place}: token id {largest} has no row in its embedding, which has {limits.embeddings:,}; its tokenizer "
            "is another model's"
        )
    if limits.context is not None and len(ids) > limits.context:
        raise UserError(
            f"{place}: a text of {len(ids):,} tokens is longer than {limits.context_text}; set its max_tokens to "
            f"{limits.context}, which cuts off what is behind"
        )


class ClassifierJudge(AskedJudge):
    """A judge that is a model that classifies texts.

    Args:
        model: a transformers directory, or a name on the hub.
        tokenizer: the same of its tokenizer.
        devices: where it computes; see `chosen_devices`.
        batch_size: number of texts at a time, at most.
    """

    labels: ClassVar[int]
    """Number of outputs of the model."""

    def __init__(self, model: str, tokenizer: str, devices: str | None, batch_size: int) -> None:
        self.model = model
        self._tokenizer_place = tokenizer
        self._devices, self._batch_size = devices, batch_size
        self._backend: ClassifierBackend | None = None

    @property
    def title(self) -> str:
        """The name of the model, for people."""
        return self.model

    @property
    def model_identity(self) -> list[Any]:
        """Plain values that change when the model or its tokenizer does: files by their stamps, or names on the hub."""
        places = dict.fromkeys([self.model, self._tokenizer_place])
        return [file_stamps(place) or place for place in places]

    @cached_property
    def settings(self) -> GenerationSettings:
        """What its answers are kept under."""
        return GenerationSettings(digest(self.identity), Decoder(temperature=0), 1)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return load_tokenizer(self._tokenizer_place, self.name)

    @property
    def separator(self) -> int | None:
        """The token behind which a second text begins; None for one text."""
        return None

    def check(self) -> None:
        """As the base class; looks at config, weight files and tokenizer."""
        chosen_devices(self._devices)
        with explained(self.model):
            read_classifier(self.model, self.labels)
            check_weight_files(self.model)
        _ = self.tokenizer

    def cost(self, cases: Sequence[Case]) -> JudgeCost:
        """The number of texts and of their tokens; nothing is written."""
        missing = self.missing(cases)
        return JudgeCost(len(missing), sum(len(_ids(request)) for request in missing))

    def make_backend(self) -> Backend:
        """What computes its answers; kept until `close`."""
        if self._backend is None:
            devices = chosen_devices(self._devices)
            self._backend = ClassifierBackend(self.model, self.labels, devices, self._batch_size, self.separator)
        return self._backend

    def close(self) -> None:
        """Lets go of the model; it is loaded again when it is needed."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    @cached_property
    def _numbers(self) -> list[int]:
        """The ids of the vocabulary, each once in memory: else a token of 100,000 texts took 36 bytes instead of 8."""
        return list(range(max(self.tokenizer.vocab.values(), default=0) + 1))

    def compact(self, ids: Iterable[int]) -> tuple[int, ...]:
        """Token ids in little memory."""
        return tuple(map(self._numbers.__getitem__, ids))


def chosen_devices(devices: str | None) -> list[str]:
    """Where a judge computes.

    Args:
        devices: devices with commas between them, such as `cuda:0,cuda:1`; None takes every GPU, or else the CPU.

    Raises:
        UserError: there is no such device.

    Example:
        >>> chosen_devices("cpu,cpu")
        ['cpu', 'cpu']
    """
    if devices is None:
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]
    names = [name.strip() for name in devices.split(",")]
    for name in names:
        try:
            torch.zeros(1, device=name)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"device {name!r}: {str(error).splitlines()[0]}") from error
    return names
