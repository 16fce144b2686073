"""Settings of an export, and what follows from them for the files that tell of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ts2_lightning.export.base_files import base_json
from ts2_lightning.export.model_card import CardSubject
from ts2_lightning.export.run_facts import public_name, read_facts
from ts2_lightning.ranges import SHARE, check_number
from ts2_lightning.types import UserError

WEIGHT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ExportSettings:
    """Settings of an export: the form of the weights, and the files beside them.

    Args:
        tokenizer_source: directory or hub name whose tokenizer files are copied.
        chat_template: jinja source of the trained template; None keeps that of the tokenizer's files.
        end_of_turn_ids: ids of the tokens that close an assistant turn.
        dtype: dtype of the weights, one of `WEIGHT_DTYPES`; None: for whole weights bfloat16 if the base model on disk
            is bfloat16, or was held in 4 bits, else their own dtype; for a separate adapter its own.
        adapter: form of an adapter's export: `merged` into whole weights, or `separate`, in PEFT's format.
        base: name of the base model in a separate adapter's config and in the card; None: the model's `name_or_path`.
        toward_base: share of the way from the base model to the tuned one at which the weights are taken, base + share
            (tuned - base), in float32 at least: 1 is the tuned model, 0 the base. Of an adapter, its product's factor.
        ema: whether the moving averages that the callback `EMA` has kept are exported in place of the weights.
        origin: plain values that `export.json` says of the weights besides.
        run: directory of the run whose records the model card tells of.
        step: optimizer steps that the weights have seen, for the card; None for all of the run.
        repository: name of the model on the hub, `owner/name`, for the card.

    Raises:
        UserError: if `dtype`, `adapter` or `toward_base` has another value.
    """

    tokenizer_source: str | Path
    chat_template: str | None = None
    end_of_turn_ids: Sequence[int] = ()
    dtype: str | None = None
    adapter: Literal["merged", "separate"] = "merged"
    base: str | None = None
    toward_base: float = 1.0
    ema: bool = False
    origin: Mapping[str, Any] = field(default_factory=dict)
    run: Path | None = None
    step: int | None = None
    repository: str | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in WEIGHT_DTYPES:
            raise UserError(f"export dtype must be null or one of {', '.join(WEIGHT_DTYPES)}, got {self.dtype!r}")
        if self.adapter not in ("merged", "separate"):
            raise UserError(f"export adapter must be merged or separate, got {self.adapter!r}")
        check_number("export toward_base", self.toward_base, SHARE)


def origin_of(settings: ExportSettings, base: str | None, revision: str | None) -> dict[str, Any]:
    """What `export.json` says of the weights; nothing of those of one checkpoint."""
    origin = dict(settings.origin)
    if settings.ema:
        origin["ema"] = True
    if settings.toward_base != 1:
        origin |= {"toward_base": settings.toward_base, "base_model": public_name(settings.base or base or "")}
    return origin | ({"revision": revision} if origin and revision else {})


def subject_of(
    settings: ExportSettings, base: str | None, revision: str | None, directory: Path, chats: bool
) -> CardSubject:
    """What the model card is of.

    Args:
        settings: settings of the export.
        base: directory or hub name of the base model.
        revision: revision of the base model on the hub.
        directory: directory of the export, whose config is written.
        chats: whether it has a chat template.
    """
    facts = read_facts(settings.run, settings.step)
    return CardSubject(
        base=None if facts.from_scratch else base,
        base_name=None if facts.from_scratch else settings.base,
        revision=revision,
        repository=settings.repository,
        adapter=settings.adapter == "separate",
        chats=chats,
        dtype=base_json(str(directory), "config.json", None).get("dtype"),
        origin=origin_of(settings, base, revision),
        facts=facts,
    )
