"""The model that is measured, with the rows and prompts that it is asked."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ts2_lightning.data import SFTData
from ts2_lightning.data.datamodule import load_tokenizer
from ts2_lightning.data.loader import BatchLoader
from ts2_lightning.data.rejects import BadRowsError
from ts2_lightning.data.sets import SPLITS, Files
from ts2_lightning.data.templates import ChatTemplate, make_template
from ts2_lightning.evaluation.distributions import DECODINGS
from ts2_lightning.evaluation.domains import Domain, domain_of
from ts2_lightning.evaluation.loading import load_model, read_generation_settings, read_limits
from ts2_lightning.evaluation.prompts import Prompt, Question, read_questions
from ts2_lightning.generation import Decoder, GenerationSettings
from ts2_lightning.generation.backends import Backend, end_ids, make_backend
from ts2_lightning.model_limits import ModelLimits
from ts2_lightning.modules.head import check_head
from ts2_lightning.runs.stamps import digest, file_stamps
from ts2_lightning.types import Batch, SettingError, UserError

Rows = Files | dict[str, Files]
"""Files or other sources of the data room, or several sets of them; None: the validation rows of the run."""

_OF_TEMPLATE = ("train_on", "train_on_end", "thinking")


@dataclass
class Model:
    """A model, with what is known of where it comes from. Nothing of it is loaded before it is needed.

    Attributes:
        name: how the user gave it; begins messages.
        identity: plain values that change when the model does.
        locate: function that gives the directory, or the name on the hub, that transformers loads.
        out: directory that gets `measures/`.
        run: directory of the run that trained it; None if it comes from none.
        data: settings of `data.*` that it was, or that models like it were, trained with.
        label: name in pictures; None for the last two parts of `name`.
        text_template: template of a pretrained model that has never seen a chat; `template: auto` takes it.
        decoding: one of `DECODINGS`.
        template: name of the chat template that it is asked with; `auto`: the one that it was trained with.
        files: directory with its config, tokenizer and settings, where these are to be had without making its weights;
            None: where the model is.
        interpolate: share of the way from the base model to the run's own at which its weights are; see `Spec`.
        device: where it computes.
        backend: what makes its responses, one of `generation.backends.BACKENDS`; they do not depend on it.
        vllm_args: arguments of vLLM's engine, where that is the backend.
        endpoint: function that gives what asks a model behind an endpoint, which has its own tokens and template; None
            for a model that is loaded.
        responses: directory of responses that are there: nothing is sampled, nor is a model loaded; else None.
        tables: numbers of every supervised token of rows, by a digest of the rows, that several probes read.
    """

    name: str
    identity: Any
    locate: Callable[[], str]
    out: Path
    run: Path | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    label: str | None = None
    text_template: Callable[[PreTrainedTokenizerBase], ChatTemplate] | None = None
    decoding: str = "softmax"
    template: str = "auto"
    files: str | None = None
    interpolate: float = 1.0
    device: str = "cpu"
    backend: str = "transformers"
    vllm_args: Mapping[str, Any] = field(default_factory=dict)
    endpoint: Callable[[], Backend] | None = None
    responses: Path | None = None
    tables: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)
    _backend: Backend | None = field(default=None, init=False, repr=False)

    @classmethod
    def in_memory(cls, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str = "model") -> "Model":
        """A model that is loaded already.

        Args:
            network: model in evaluation mode.
            tokenizer: its tokenizer.
            name: name for messages and pictures.
        """
        model = cls(name, None, lambda: name, Path())
        model.__dict__.update(network=network, tokenizer=tokenizer)  # before the cached properties load them
        return model

    @property
    def title(self) -> str:
        """Its name in pictures, with the decoding where it is not the usual one."""
        name = "/".join(Path(self.name).parts[-2:]) if self.label is None else self.label
        return name if self.decoding == "softmax" else f"{name} ({_LABELS.get(self.decoding, self.decoding)})"

    @cached_property
    def place(self) -> str:
        """The directory or name that transformers loads."""
        return self.locate()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its own; of a model that comes from no run the one that `data.tokenizer` names, if it does."""
        return load_tokenizer(self._of_data("tokenizer") or self.files or self.place, self.name)

    @cached_property
    def network(self) -> PreTrainedModel:
        """The loaded model, in evaluation mode on the device."""
        self._close_backend()  # it may hold the memory of the device
        network, _ = load_model(self.place, self.device)
        try:
            check_head(network)
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from error
        return network

    @cached_property
    def limits(self) -> ModelLimits:
        """How many tokens it takes, by its config."""
        return read_limits(self.files or self.place)

    @property
    def projection(self) -> Decoder:
        """The map from logits to the distribution that it is decoded with, before temperature and truncation."""
        return DECODINGS[self.decoding]

    @property
    def is_asked_in_text(self) -> bool:
        """Whether it is asked in sentences of its pretraining text instead of a chat."""
        return self.text_template is not None and self.template == "auto"

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """How it is asked, and what of it is learnt. A run's export carries the template that it was trained with."""
        if self.is_asked_in_text:
            assert self.text_template is not None
            return self.text_template(self.tokenizer)
        tokenizer = self.tokenizer
        learnt = {option: self.data[option] for option in _OF_TEMPLATE if option in self.data}
        arguments = self._of_data("chat_template_kwargs")
        try:
            return make_template(self._template_name, tokenizer, arguments=arguments, **learnt)
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from error

    @property
    def _template_name(self) -> str:
        return (self._of_data("template") or "auto") if self.template == "auto" else self.template

    def _of_data(self, setting: str) -> Any:
        """A setting of `data.*` that counts for a model of no run; a run's export carries what it was trained with."""
        return self.data.get(setting) if self.run is None else None

    @property
    def asked_with(self) -> list[Any]:
        """Plain values that change when a tokenizer or a template's file that is not the model's own does."""
        tokenizer, template = self._of_data("tokenizer"), self._template_name
        stamps: list[Any] = [] if tokenizer is None else (list(file_stamps(tokenizer)) or [tokenizer])
        return stamps + (list(file_stamps(template)) if template.endswith(".jinja") else [])

    @cached_property
    def domain(self) -> Domain | None:
        """The domain whose requests have known answers, if the model's tokenizer is that of one."""
        return domain_of(self.tokenizer)

    @cached_property
    def end_ids(self) -> list[int]:
        """Tokens that end its responses. The model itself is not loaded for them."""
        loaded: Any = self.__dict__.get("network")
        settings = read_generation_settings(self.files or self.place) if loaded is None else loaded.generation_config
        return sorted({*self.chat_template.end_of_turn_ids, *end_ids(settings, self.tokenizer)})

    def generation_settings(
        self, max_new_tokens: int, seed: int = 0, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
    ) -> GenerationSettings:
        """What its responses are made with: its decoding, with these settings behind it."""
        decoder = replace(self.projection, temperature=temperature, top_k=top_k, top_p=top_p)
        ends = tuple(self.end_ids) if self.endpoint is None else ()
        return GenerationSettings(digest(self.identity), decoder, max_new_tokens, ends, seed)

    def make_backend(self, batch_size: int) -> Backend:
        """What makes its responses, a batch of so many at a time. One that holds a model of its own is kept."""
        if self.backend == "transformers" and self.endpoint is None:
            return make_backend(self.backend, self, batch_size)
        if self._backend is None:
            make = self.endpoint or partial(make_backend, self.backend, self, batch_size, self.vllm_args)
            self._backend = make()
        return self._backend

    def _close_backend(self) -> None:
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def forget(self) -> None:
        """Lets go of the loaded model and of the tables of its tokens; they are made again when they are needed."""
        self.__dict__.pop("network", None)
        self._close_backend()
        self.tables.clear()

    def encode(self, questions: list[Question], opening: str = "") -> list[Prompt]:
        """Questions in its own tokens, whose answers begin with `opening`."""
        return [question.encode(self.chat_template, opening) for question in questions]

    def validation_data(self, option: str, rows: Rows, **overrides: Any) -> SFTData:
        """The data room with nothing but validation rows, as the model's own training reads them.

        Args:
            option: name of the setting that asks for them, for messages.
            rows: sources; None takes the run's validation rows.
            overrides: settings of `data.*` instead of the run's; None is left alone.

        Raises:
            UserError: no rows are named, or settings that the data room does not take.
        """
        settings = {**self.data, "packing": "none", "num_workers": 0}
        settings |= {name: value for name, value in overrides.items() if value is not None}
        if rows is None and not settings.get("validation") and self.domain is not None:
            rows = self.domain.validation_rows
        if rows is not None:
            whole = {f"limit_{split}": None for split in SPLITS} | dict.fromkeys(SPLITS)
            format = overrides.get("format") or "auto"
            settings |= whole | {"validation": rows, "streaming": False, "format": format}
            settings["limit_validation"] = overrides.get("limit_validation")
        if not settings.get("validation"):
            raise UserError(f"{option}: {self.name} has no validation rows of its own; name a file")
        return _instantiate(settings, self.name, option)

    def read_rows(self, option: str, data: SFTData) -> SFTData:
        """Makes tokens of the rows of `validation_data`, this model's own.

        Raises:
            UserError: naming file and line of a bad row; or there is none.
        """
        data.tokenizer, data.template, data.limits = self.tokenizer, self.chat_template, self.limits
        recorded = self.data.get("max_length") if self.run is not None else None
        if recorded is not None and data.max_length == recorded and self.limits.is_behind(recorded):
            data.max_length = self.limits.context  # it is from before there was a check: no row of the run was longer
        try:
            data.setup("validate")
        except BadRowsError as error:
            raise UserError(f"{option} {error.first.origin}: {error.first.reason}") from error
        except UserError as error:
            raise _of_option(option, error) from error
        return data

    def prompts(self, option: str, data: SFTData, limit: int | None) -> list[Prompt]:
        """The first conversations of `validation_data` up to where the assistant answers last, each once in its set.

        Raises:
            UserError: a row is no prompt, unless `data.max_rejects` allows for bad rows; or there is none.
        """
        return self.encode(self.questions(option, data, limit))

    @staticmethod
    def questions(option: str, data: SFTData, limit: int | None) -> list[Question]:
        """What `prompts` puts into tokens."""
        questions: list[Question] = []
        for name in data.sets.of("validation"):
            if limit is None or len(questions) < limit:
                left = None if limit is None else limit - len(questions)
                try:
                    questions += read_questions(data.sets.selection(name), option, left, tolerant=data.max_rejects > 0)
                except UserError as error:
                    raise _of_option(option, error) from error
        return questions

    def row_identity(self, option: str, data: SFTData) -> dict[str, Any]:
        """Plain values that change when the rows of `validation_data`, or their tokens, do; files by their content.

        Raises:
            UserError: a source that is not there, under the name of the option.
        """
        if data.max_length is None:  # the number of tokens decides, whoever has set it
            data.limits = self.limits
        names = data.sets.of("validation")
        try:
            for name in names:
                data.sets.prepare(name)
            sets = {name: data.sets.selection(name).identity() for name in names}
        except UserError as error:
            raise _of_option(option, error) from error
        for of_set in sets.values():
            of_set["files"] = [content for _, *content in of_set["files"]]  # wherever they lie
        how = {name: getattr(data, name) for name in (*_OF_TEMPLATE, "chat_template_kwargs", "overlong", "format")}
        how["max_length"] = data.row_length
        return {"sets": sets, "template": [data.template_name, self.template, *self.asked_with], **how}


_LABELS = {"entmax": "entmax 1.5"}
"""Names in pictures of decodings whose own name does not say all."""


class ValidationBatches:
    """The batches of all validation sets one after the other, with a number of its own for every row.

    Args:
        data: data room from `Model.read_rows`.
    """

    def __init__(self, data: SFTData) -> None:
        loaders: Any = data.val_dataloader()
        self._loaders: list[BatchLoader] = list(loaders.values()) if isinstance(loaders, Mapping) else [loaders]
        rows = [len(data.rows(name)) for name in data.sets.of("validation")]
        self._before = [sum(rows[:place]) for place in range(len(rows))]

    def __len__(self) -> int:
        return sum(map(len, self._loaders))

    def __iter__(self) -> Iterator[Batch]:
        for before, loader in zip(self._before, self._loaders, strict=True):
            for batch in loader:
                batch["row_index"] = batch["row_index"] + before
                yield batch


def _of_option(option: str, error: UserError) -> UserError:
    """What the data room says of its own settings, said of the option that stands for them."""
    if not isinstance(error, SettingError):
        return UserError(f"{option}: {error}")
    return error.renamed({"data.validation": option, "data.max_length": f"{option.removesuffix('rows')}max_length"})


def _instantiate(settings: Mapping[str, Any], name: str, option: str) -> SFTData:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SFTData, "data")
    try:
        data: SFTData = parser.instantiate(parser.parse_object({"data": dict(settings)})).data
    except ArgumentError as error:
        said = " ".join(str(error).split())
        raise UserError(f"{name}: its configuration has settings of data that are not understood ({said})") from error
    except UserError as error:
        raise _of_option(option, error) from error
    return data
