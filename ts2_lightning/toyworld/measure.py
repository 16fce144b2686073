"""The exact measures of the toy world."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ts2_lightning.evaluation.measure import Measure, Measured
from ts2_lightning.evaluation.model import Model
from ts2_lightning.toyworld import load_world
from ts2_lightning.toyworld.descriptions import VALUES
from ts2_lightning.toyworld.domain import ToyWorldDomain
from ts2_lightning.toyworld.exact import Style, evaluate_toyworld
from ts2_lightning.types import UserError
from ts2_lightning.values import Value


@dataclass(frozen=True)
class ToyWorld(Measure):
    """Validity, diversity and shape where all plausible answers are known, under the decoding of the spec."""

    name: ClassVar[str] = "toyworld"
    usual: ClassVar[bool] = True
    values: ClassVar[tuple[Value, ...]] = VALUES
    planes: ClassVar[tuple[tuple[str, str], ...]] = (
        ("toyworld/seen/distinct_t1", "toyworld/seen/validity_t1"),
        ("toyworld/seen/distinct_papers", "toyworld/seen/validity_papers"),
    )
    note: ClassVar[str] = (
        "On the toy world an answer is valid if it is plausible and in the taught form. All answers are known there, "
        "so that its values are exact; nothing is sampled. T is the temperature."
    )

    def inputs(self, model: Model) -> Any:
        """A tokenizer or template that is not the model's own."""
        return model.asked_with or None

    def check_model(self, model: Model) -> None:
        """Raises UserError unless it is a model of the toy world."""
        if not isinstance(model.domain, ToyWorldDomain):
            raise UserError(f"toyworld: {model.name} is not a model of the toy world; leave the measure out")

    def measure(self, model: Model, beside: Path) -> Measured:
        """All of `evaluate_toyworld`."""
        style: Style = "text" if model.is_asked_in_text else "chat"
        return Measured(evaluate_toyworld(model.network, model.tokenizer, load_world(), style, model.decoding))
