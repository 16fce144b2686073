"""The model card of an export, `README.md`: metadata as the hub reads it, and what the run's records say.

A card that somebody has changed since it was written is theirs: a later export into the same directory keeps it.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment

from ts2_lightning.export.adapter_files import is_hub_name
from ts2_lightning.export.base_files import base_file
from ts2_lightning.export.card_picture import draw_training
from ts2_lightning.export.run_facts import RunFacts, public_name
from ts2_lightning.runs.stamps import CARD_MARK

CARD = "README.md"
_TEMPLATE = Path(__file__).with_suffix(".md.jinja")
_MARK = re.compile(rf"\n{CARD_MARK}, sha256 ([0-9a-f]{{64}}) -->\n\Z")
_LICENCE = ("license", "license_name", "license_link")
_HUB = "https://huggingface.co"


@dataclass(frozen=True)
class CardSubject:
    """The model that a card is of.

    Attributes:
        base: directory or hub name of the base model; None if there is none.
        base_name: name of the base model for readers; None for `base`.
        revision: revision of the base model on the hub.
        repository: `owner/name` of the model on the hub; None where it has none.
        adapter: whether it is an adapter by itself.
        chats: whether it has a chat template.
        dtype: dtype of the weights; None where it is not one.
        origin: what `export.json` says: the weights are not simply those of a checkpoint.
        facts: what the records of its run say.
        tags: further tags.
    """

    base: str | None
    base_name: str | None = None
    revision: str | None = None
    repository: str | None = None
    adapter: bool = False
    chats: bool = True
    dtype: str | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    facts: RunFacts = field(default_factory=RunFacts)
    tags: Sequence[str] = ()

    @property
    def called(self) -> str:
        """The name of the base model, without the place where it lies."""
        return public_name(self.base_name or self.base or "")

    @property
    def title(self) -> str:
        """The name of the model: that on the hub, else that of the run."""
        return (self.repository or self.facts.name).rpartition("/")[2] or "A fine-tuned model"


def write_card(directory: Path, subject: CardSubject, kept: str | None = None) -> None:
    """Writes `README.md`, and its picture.

    Args:
        directory: directory of the export; it exists.
        subject: model that the card is of.
        kept: text of a card that somebody has changed, which is written in its place.
    """
    picture = draw_training(subject.facts.curves, directory)
    text = kept if kept is not None else card_text(subject, picture)
    (directory / CARD).write_text(text, encoding="utf-8")


def changed_card(directory: Path) -> str | None:
    """The text of the card in an earlier export, if somebody has changed it since it was written; else None."""
    file = directory / CARD
    if not file.is_file():
        return None
    text = file.read_text(encoding="utf-8", errors="surrogateescape")
    mark = _MARK.search(text)
    return None if mark and mark[1] == _digest(text[: mark.start()]) else text


def card_text(subject: CardSubject, picture: str | None = None) -> str:
    """The card of a model.

    Args:
        subject: model that the card is of.
        picture: name of the picture beside the card; None if there is none.

    Example:
        >>> text = card_text(CardSubject("org/base"))
        >>> ModelCard(text).data.base_model, ModelCard(text).data.pipeline_tag
        ('org/base', 'text-generation')
    """
    licence = _licence(subject)
    data = ModelCardData(
        base_model=subject.called if is_hub_name(subject.called) else None,
        base_model_relation=_relation(subject),
        datasets=list(subject.facts.datasets) or None,
        library_name="peft" if subject.adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["ts2_lightning", "sft", *(["lora"] if subject.adapter else []), *_objective(subject), *subject.tags],
        **licence,
    )
    environment = Environment(trim_blocks=True, lstrip_blocks=True)  # of plain text: nothing is HTML here
    environment.filters |= {"cell": _cell, "pythonic": json.dumps}
    body = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        card_data=data.to_yaml().rstrip(),
        title=subject.title,
        opening=_opening(subject),
        facts=subject.facts,
        of_what=", of the weights of the run" if subject.origin else "",
        picture=picture,
        place=subject.repository or "PATH_OF_THIS_DIRECTORY",
        chats=subject.chats,
        notes=_notes(subject),
        licence=_about_licence(subject, licence),
    )
    body = body.rstrip() + "\n"
    return f"{body}\n{CARD_MARK}, sha256 {_digest(body)} -->\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _cell(text: str) -> str:
    """Text inside a table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def _relation(subject: CardSubject) -> str | None:
    if not is_hub_name(subject.called):
        return None
    return "adapter" if subject.adapter else "finetune"


def _objective(subject: CardSubject) -> list[str]:
    """The objective as a tag: `TS2Loss(alpha=0.25)` -> `ts2`."""
    name = subject.facts.objective.partition("(")[0].removesuffix("Loss")
    return [re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()] if name else []


def _opening(subject: CardSubject) -> str:
    base = f"[{subject.called}]({_HUB}/{subject.called})" if is_hub_name(subject.called) else f"`{subject.called}`"
    of_base = f" of {base}" if subject.called else ""
    revision = f" at revision `{subject.revision}`" if subject.revision and of_base else ""
    what = "A LoRA adapter" if subject.adapter else "A fine-tuned model"
    train = next((split for split in subject.facts.splits if split.name == "train" and split.rows), None)
    rows = f", trained on {train.rows} rows with {train.tokens} supervised tokens" if train else ""
    by = f", by `{subject.facts.objective.partition('(')[0]}`" if subject.facts.objective else ""
    return f"{what}{of_base}{revision}{rows}{by}, with ts2_lightning."


def _notes(subject: CardSubject) -> list[str]:
    """What a reader must know of these weights."""
    notes = []
    origin = subject.origin
    if subject.adapter:
        notes.append(
            "It is an adapter in PEFT's format: with `peft` installed transformers loads the base model below it"
            + (". " if is_hub_name(subject.called) else f", which has to be given: `{subject.called}`. ")
            + "`PeftModel.from_pretrained(BASE, ADAPTER)` does the same."
        )
    if subject.dtype:
        notes.append(f"The weights are {subject.dtype}.")
    if (share := origin.get("toward_base")) is not None:
        notes.append(f"They lie between the base model and the tuned one: base + {share:g} (tuned - base).")
    if (averaged := origin.get("average_of")) is not None:
        notes.append(f"They are the mean of those of {len(averaged)} checkpoints.")
    if origin.get("ema"):
        notes.append("They are the exponential moving average that was kept during the training.")
    return notes


def _licence(subject: CardSubject) -> dict[str, Any]:
    """The licence in the card of the base model. An export asks the hub for that card only where it goes there itself:
    a node without a network would wait for it."""
    goes_there = subject.repository is not None
    file = None if subject.base is None else base_file(subject.base, CARD, subject.revision, fetch=goes_there)
    if file is None:
        return {}
    try:
        stated = ModelCard(file.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    licence = {key: str(stated[key]) for key in _LICENCE if isinstance(stated.get(key), str)}
    link = licence.get("license_link", "")
    if link and "://" not in link:  # a file beside the base model's card
        licence.pop("license_link")
        if is_hub_name(subject.called):
            licence["license_link"] = f"{_HUB}/{subject.called}/blob/main/{link}"
    return licence


def _about_licence(subject: CardSubject, licence: Mapping[str, Any]) -> str:
    if not subject.called:
        return "The training began with random weights, so no base model's licence holds; choose one."
    name = licence.get("license_name") or licence.get("license")
    if not name or name == "unknown":
        return (
            "No licence was found beside the base model. This model is made from it, so its terms hold here too: look "
            "them up, and put `license` into the head of this file before you publish it."
        )
    link = f" ({licence['license_link']})" if "license_link" in licence else ""
    return f"The base model has the licence `{name}`{link}. This model is made from it, so its terms hold here too."
