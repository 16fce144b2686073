"""The exact measures of the toy world."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ts2_lightning.data.toyworld import load_world
from ts2_lightning.evaluation.toyworld import VALUES, Style, evaluate_toyworld
from ts2_lightning.experiments.measures.base import Measure, Measured
from ts2_lightning.experiments.measures.target import Target
from ts2_lightning.types import UserError
from ts2_lightning.values import Value


@dataclass(frozen=True)
class ToyWorld(Measure):
    """Validity, diversity and shape where all plausible answers are known, under the decoding of the spec."""

    name: ClassVar[str] = "toyworld"
    values: ClassVar[tuple[Value, ...]] = VALUES

    def inputs(self, target: Target) -> Any:
        """A tokenizer or template that is not the model's own."""
        return target.asked_with or None

    def check_target(self, target: Target) -> None:
        """Raises UserError unless it is a model of the toy world."""
        if not target.is_toy_world:
            raise UserError(f"toyworld: {target.name} is not a model of the toy world; leave the measure out")

    def measure(self, target: Target, beside: Path) -> Measured:
        """All of `evaluate_toyworld`."""
        style: Style = "text" if target.asked_in_sentences else "chat"
        world = load_world()
        return Measured(evaluate_toyworld(target.model, target.tokenizer, world, style, target.decoding))
