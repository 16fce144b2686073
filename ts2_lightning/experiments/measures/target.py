"""The model that is measured, and the rows and prompts that it is measured on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ts2_lightning.data import SFTData
from ts2_lightning.data.datamodule import load_tokenizer
from ts2_lightning.data.formats import Conversation
from ts2_lightning.data.sets import SPLITS, Files
from ts2_lightning.data.templates import ChatTemplate, make_template
from ts2_lightning.evaluation.inputs import encode_prompt, read_messages, toy_world_text
from ts2_lightning.evaluation.models import load_model, read_limits
from ts2_lightning.evaluation.probes import Prompt, is_toy_world
from ts2_lightning.generation.sampling import end_ids
from ts2_lightning.model_limits import ModelLimits
from ts2_lightning.modules.head import check_head
from ts2_lightning.runs.stamps import file_stamps
from ts2_lightning.types import UserError

Rows = Files | dict[str, Files]
"""Files or other sources of the data room, or several sets of them; None: the validation rows of the run."""

_OF_TEMPLATE = ("train_on", "train_on_end", "thinking")
_TOY_WORLD_ROWS = "toyworld:validation"


@dataclass
class Target:
    """A model, with what is known of where it comes from. Nothing of it is loaded before it is needed.

    Attributes:
        name: for messages.
        identity: plain values that change when the model does.
        locate: gives the directory, or the name on the hub, that transformers loads.
        out: directory in which `measures/` is.
        run: directory of the run that trained it; None if it comes from none.
        data: the settings of `data.*` that it was, or that others like it were, trained with.
        in_sentences: it is the toy world's base model, which has never seen the chat tokens.
        decoding: one of `DECODINGS`.
        template: name of the chat template that it is asked with; `auto`: the one that it was trained with.
        device: where it computes.
    """

    name: str
    identity: Any
    locate: Callable[[], str]
    out: Path
    run: Path | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    in_sentences: bool = False
    decoding: str = "softmax"
    template: str = "auto"
    device: str = "cpu"

    @property
    def title(self) -> str:
        """Its name in pictures, with the decoding where it is not the usual one."""
        name = "/".join(Path(self.name).parts[-2:])
        return name if self.decoding == "softmax" else f"{name} ({self.decoding})"

    @cached_property
    def place(self) -> str:
        """The directory or name that transformers loads."""
        return self.locate()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its own; of a model that comes from no run the one that `data.tokenizer` names, if it does."""
        return load_tokenizer(self._of_data("tokenizer") or self.place)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model, in evaluation mode on the device."""
        model, _ = load_model(self.place, self.device)
        try:
            check_head(model)
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from error
        return model

    @cached_property
    def limits(self) -> ModelLimits:
        """What it takes, by its config."""
        return read_limits(self.place)

    @property
    def asked_in_sentences(self) -> bool:
        """Whether it is asked in sentences of its pretraining text instead of a chat."""
        return self.in_sentences and self.template == "auto"

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """How it is asked, and what of it is learnt. A run's export carries the template that it was trained with."""
        if self.asked_in_sentences:
            return toy_world_text(self.tokenizer)
        name = self._template_name
        learnt = {option: self.data[option] for option in _OF_TEMPLATE if option in self.data}
        return make_template(name, self.tokenizer, arguments=self._of_data("chat_template_kwargs"), **learnt)

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
        found: list[Any] = [] if tokenizer is None else (list(file_stamps(tokenizer)) or [tokenizer])
        return found + (list(file_stamps(template)) if template.endswith(".jinja") else [])

    @cached_property
    def is_toy_world(self) -> bool:
        """Whether it is a model of the toy world."""
        return is_toy_world(self.tokenizer)

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end its responses."""
        return sorted({*self.chat_template.end_of_turn_ids, *end_ids(self.model, self.tokenizer)})

    def validation_data(self, option: str, rows: Rows, **overrides: Any) -> SFTData:
        """The data room with nothing but validation rows, as the model's own training reads them.

        Args:
            option: which asks for them, for messages.
            rows: sources; None takes the run's validation rows.
            overrides: settings of `data.*` instead of the run's; None is left alone.

        Raises:
            UserError: no rows are named, or settings that the data room does not take.
        """
        settings = {**self.data, "packing": "none", "num_workers": 0}
        settings |= {name: value for name, value in overrides.items() if value is not None}
        if rows is None and not settings.get("validation") and self.is_toy_world:
            rows = _TOY_WORLD_ROWS
        if rows is not None:
            whole = {f"limit_{split}": None for split in SPLITS} | dict.fromkeys(SPLITS)
            format = overrides.get("format") or "auto"
            settings |= whole | {"validation": rows, "streaming": False, "format": format}
            settings["limit_validation"] = overrides.get("limit_validation")
        if not settings.get("validation"):
            raise UserError(f"{option}: {self.name} has no validation rows of its own; name a file")
        return _instantiate(settings, self.name)

    def read_rows(self, data: SFTData) -> SFTData:
        """Makes tokens of the rows of `validation_data`, this model's own."""
        data.tokenizer, data.template, data.limits = self.tokenizer, self.chat_template, self.limits
        recorded = self.data.get("max_length") if self.run is not None else None
        if recorded is not None and data.max_length == recorded and self.limits.is_behind(recorded):
            data.max_length = self.limits.context  # it is from before there was a check: no row of the run was longer
        data.setup("validate")
        return data

    def prompts(self, option: str, data: SFTData, limit: int | None) -> list[Prompt]:
        """The first conversations of `validation_data` up to where the assistant answers last, each once in its set.

        Raises:
            UserError: a row is no prompt, unless `data.max_rejects` allows for bad rows; or there is none.
        """
        found: list[Conversation] = []
        for name in data.sets.of("validation"):
            if limit is None or len(found) < limit:
                left = None if limit is None else limit - len(found)
                found += read_messages(data.sets.selection(name), option, left, tolerant=data.max_rejects > 0)
        return [encode_prompt(self.chat_template, messages) for messages in found]

    def row_identity(self, data: SFTData) -> dict[str, Any]:
        """What determines the rows of `validation_data`, and how they become tokens; files by their content."""
        if data.max_length is None:  # the number of tokens decides, whoever has set it
            data.limits = self.limits
        names = data.sets.of("validation")
        for name in names:
            data.sets.prepare(name)
        sets = {name: data.sets.selection(name).identity() for name in names}
        for found in sets.values():
            found["files"] = [content for _, *content in found["files"]]  # wherever they lie
        how = {name: getattr(data, name) for name in (*_OF_TEMPLATE, "chat_template_kwargs", "overlong", "format")}
        how["max_length"] = data.row_length
        return {"sets": sets, "template": [data.template_name, self.template, *self.asked_with], **how}


def _instantiate(settings: Mapping[str, Any], name: str) -> SFTData:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SFTData, "data")
    try:
        data: SFTData = parser.instantiate(parser.parse_object({"data": dict(settings)})).data
    except ArgumentError as error:
        said = " ".join(str(error).split())
        raise UserError(f"{name}: its configuration has settings of data that are not understood ({said})") from error
    return data
