"""Protocols whose responses a reward model rates: what it is asked."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ts2_lightning.evaluation.judges import RewardModel, RewardSettings
from ts2_lightning.evaluation.judges.reward import SAID, RewardFormat
from ts2_lightning.evaluation.model import Model
from ts2_lightning.evaluation.protocols.asking import AskedPart
from ts2_lightning.evaluation.protocols.base import PAPERS_CODE
from ts2_lightning.evaluation.protocols.creative import said_of
from ts2_lightning.evaluation.protocols.stored import stores_of
from ts2_lightning.types import UserError

USUAL_REWARD = RewardSettings()


def reward_model(settings: RewardSettings, variant: str) -> RewardModel:
    """The reward model of settings, whose format follows from the variant where they leave it open."""
    usual: RewardFormat = "papers_code" if variant == PAPERS_CODE else "model"
    return RewardModel(replace(settings, format=settings.format or usual))


def check_format(name: str, reward: RewardModel, model: Model) -> None:
    """Raises UserError where the format needs the model's own prompt, and nothing says it."""
    if reward.format == "papers_code" and model.endpoint is not None:
        raise UserError(
            f"{name}: the format papers_code shows the reward model a model's whole prompt, and an endpoint does not "
            "say its template; set reward.format to model"
        )


def with_said(asked: AskedPart, model: Model) -> AskedPart:
    """The same questions, each with what the papers' code shows a reward model in its place."""
    items = [
        replace(item, details={**item.details, SAID: said_of(model, prompt)})
        for item, prompt in zip(asked.items, asked.prompts, strict=True)
    ]
    return replace(asked, items=items)


def responses_beside(option: str, place: str) -> Path | None:
    """The directory with a run's responses that a setting names; None if it names something else.

    Args:
        option: the setting.
        place: what it names.

    Raises:
        UserError: a directory in which several models have theirs, such as `--out` of `evaluate`.
    """
    path = Path(place).expanduser()
    if path.is_dir() and stores_of(path):
        return path
    if inside := [below for below in sorted(path.glob("*")) if below.is_dir() and stores_of(below)]:
        raise UserError(f"{option} {place}: no responses but those of models in it; name one, such as {inside[0]}")
    return None


def plain_said(details: Any) -> dict[str, str]:
    """Of an item's details those that a reward model is shown."""
    return {SAID: str(details[SAID])} if SAID in details else {}
