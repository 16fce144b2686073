"""What a measure is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from ts2_lightning.experiments.measures.target import Target
from ts2_lightning.values import Value


class Measured(NamedTuple):
    """What a measure has found.

    Attributes:
        values: by their names without the measure's. What is not finite counts as not there.
        documents: plain values from which pictures are drawn, by name.
    """

    values: Mapping[str, float]
    documents: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Measure(ABC):
    """One thing that is measured of models. The fields of a subclass are its settings; all have defaults."""

    name: ClassVar[str]
    """In a spec, of files, and before the names of values."""

    values: ClassVar[tuple[Value, ...]] = ()
    """Descriptions of its values, in the order of tables. A value without one is called by its name."""

    decoded: ClassVar[bool] = True
    """Whether the values depend on how the model is decoded. If not, they are made once for all decodings."""

    def check(self) -> None:  # noqa: B027 - most have nothing to look at
        """Looks at the settings, as far as they can be judged without a model.

        Raises:
            UserError: one is out of its range.
        """

    def inputs(self, target: Target) -> Any:
        """What the values depend on beside model, settings and decoding, as plain values; None for nothing.

        Raises:
            UserError: rows or prompts that are not there.
        """
        return None

    def check_target(self, target: Target) -> None:  # noqa: B027 - most can be made of any model
        """Looks at the model, before it is loaded.

        Raises:
            UserError: the measure does not apply to it.
        """

    @abstractmethod
    def measure(self, target: Target, beside: Path) -> "Measured":
        """Makes it.

        Args:
            target: the model.
            beside: path without ending for what is kept beside the values, such as `BESIDE.jsonl`.
        """
