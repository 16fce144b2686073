"""Measures: what is measured of a model."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from ts2_lightning.evaluation.model import Model
from ts2_lightning.values import Value

ASKED = "asked"
"""Document with what tells the items of each part apart, by the label of the part and the id of the item."""

PER_ITEM = "per_item"
"""Document with the number of each item, by the name of the value and the id of the item."""


class Measured(NamedTuple):
    """The outcome of a measure.

    With the documents `PER_ITEM` and `ASKED` models can be compared on the same items, such as prompts or rows.

    Attributes:
        values: number by its name without the measure's; one that is not finite counts as not there.
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

    titles_with_name: ClassVar[bool] = False
    """Whether its name stands before the titles of its values, since other measures have values of the same titles."""

    planes: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Pairs of values, x and y, by their whole names: pictures of a report that asks for no others."""

    note: ClassVar[str] = ""
    """What readers of a report have to know of all values together."""

    usual: ClassVar[bool] = False
    """Whether it is made, if it applies to the model, where nobody has said what is to be measured."""

    decoded: ClassVar[bool] = True
    """Whether the values depend on how the model is decoded. If not, they are made once for all decodings."""

    @classmethod
    def titled_values(cls) -> tuple[Value, ...]:
        """Descriptions of its values, with titles as tables of several measures need them."""
        if not cls.titles_with_name:
            return cls.values
        return tuple(replace(value, title=f"{cls.name}: {value.title}") for value in cls.values)

    def plain_settings(self) -> dict[str, Any]:
        """The settings as plain values.

        One that a later version has added is left out where it has its default, so that what was measured before is
        recognised. Such a field has the version in its metadata: `field(default=None, metadata={"added": "0.2"})`.
        """
        plain = asdict(self)
        return {
            field.name: plain[field.name]
            for field in fields(self)
            if not ("added" in field.metadata and plain[field.name] == field.default)
        }

    def check(self) -> None:  # noqa: B027 - most have nothing to look at
        """Looks at the settings, as far as they can be judged without a model.

        Raises:
            UserError: one is out of its range.
        """

    def inputs(self, model: Model) -> Any:
        """What the values depend on beside model, settings and decoding, as plain values; None for nothing.

        Raises:
            UserError: rows or prompts that are not there.
        """
        return None

    def check_model(self, model: Model) -> None:  # noqa: B027 - most can be made of any model
        """Looks at the model, before it is loaded.

        Raises:
            UserError: the measure does not apply to it.
        """

    @abstractmethod
    def measure(self, model: Model, beside: Path) -> "Measured":
        """Measures a model.

        Args:
            model: the model.
            beside: path without ending for what is kept beside the values, such as `BESIDE.jsonl`.
        """

    def draw(self, model: Model, measured: "Measured", directory: Path) -> None:  # noqa: B027 - most have no pictures
        """Draws what was measured.

        Args:
            model: the model.
            measured: what `measure` returned.
            directory: directory of the pictures, which is made if need be.
        """
