"""A YAML file as a tree whose every entry knows its line, its text as written, and how to complain."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ts2_lightning.config_files import check_config, no_such_file
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError


@dataclass(frozen=True)
class Entry:
    """A value in a YAML file.

    Attributes:
        file: as the user named it.
        node: what PyYAML has composed.
        line: 1-based, of its key if it has one.
        name: where it is: `axes.objective`, `runs #2`; empty for the whole file.
    """

    file: str
    node: yaml.Node
    line: int = 1
    name: str = ""

    def error(self, text: str) -> UserError:
        """A complaint about this entry, in one line that begins with file and line."""
        return UserError(": ".join(filter(None, [f"{self.file}:{self.line}", self.name, text])))

    @property
    def value(self) -> Any:
        """The plain Python value.

        Raises:
            UserError: for tags that are not of plain YAML.
        """
        try:
            return yaml.SafeLoader("").construct_document(self.node)
        except yaml.YAMLError as error:
            raise self.error(f"not plain YAML: {getattr(error, 'problem', error)}") from None

    @property
    def text(self) -> str:
        """A scalar as it is written: `5.0e-4` stays that.

        Raises:
            UserError: if it is a list or a mapping.
        """
        if not isinstance(self.node, yaml.ScalarNode):
            raise self.error(f"expected a single value, got {self.kind}")
        return str(self.node.value)

    @property
    def kind(self) -> str:
        """What it is, for messages."""
        if isinstance(self.node, yaml.ScalarNode):
            return repr(self.node.value) if self.node.value else "nothing"
        what = "mapping" if isinstance(self.node, yaml.MappingNode) else "list"
        return f"a {what}" if self.node.value else f"an empty {what}"

    @property
    def is_list(self) -> bool:
        """Whether it is a list."""
        return isinstance(self.node, yaml.SequenceNode)

    @property
    def is_empty_mapping(self) -> bool:
        """Whether it is `{}`."""
        return isinstance(self.node, yaml.MappingNode) and not self.node.value

    def mapping(self, expected: str = "`key: value` lines") -> dict[str, "Entry"]:
        """The entries of a mapping that is not empty, by their keys as they are written.

        Args:
            expected: what to say that it should be.

        Raises:
            UserError: if it is none.
        """
        if not isinstance(self.node, yaml.MappingNode) or not self.node.value:
            raise self.error(f"expected {expected}, got {self.kind}")
        yaml.SafeLoader("").flatten_mapping(self.node)  # `<<: *anchor`
        prefix = f"{self.name}." if self.name else ""
        # What a `<<` brings along now stands before the mapping's own keys, which win.
        return {
            key.value: Entry(self.file, value, key.start_mark.line + 1, f"{prefix}{key.value}")
            for key, value in self.node.value
        }

    def items(self, expected: str = "a list") -> list["Entry"]:
        """The entries of a list that is not empty.

        Args:
            expected: what to say that it should be.

        Raises:
            UserError: if it is none.
        """
        if not self.is_list or not self.node.value:
            raise self.error(f"expected {expected}, got {self.kind}")
        return [
            Entry(self.file, node, node.start_mark.line + 1, f"{self.name} #{number}")
            for number, node in enumerate(self.node.value, 1)
        ]

    def one_or_more(self, expected: str) -> list["Entry"]:
        """The entries of a list, or this one alone."""
        return self.items(expected) if self.is_list else [self]

    def known(self, keys: Collection[str], required: Collection[str] = ()) -> dict[str, "Entry"]:
        """The entries of a mapping that may have only certain keys.

        Raises:
            UserError: naming the first key that is not one of them, with what was probably meant, or one that misses.
        """
        found = self.mapping(f"a mapping with {', '.join(keys)}")
        for key, entry in found.items():
            if key not in keys:
                hint = did_you_mean(key, keys) or f"; there are {', '.join(keys)}"
                raise entry.error(f"no such key{hint}")
        for key in required:
            if key not in found:
                raise self.error(f"{key} is missing")
        return found


def read_entries(file: Path) -> Entry:
    """The tree of a YAML file.

    Raises:
        UserError: if there is no such file, it does not parse, is empty, or gives a key twice.
    """
    if not file.is_file():
        raise UserError(no_such_file(str(file)))
    node = check_config(str(file))
    if node is None:
        raise UserError(f"{file}: the file is empty; it needs at least base and axes")
    return Entry(str(file), node)


def choose(name: str, known: Collection[str], what: str, at: Entry) -> str:
    """A name that must be one of some names.

    Args:
        name: what came.
        known: the names.
        what: they are, for the message.
        at: where it came.

    Raises:
        UserError: with what was probably meant, or all that there are.
    """
    if name not in known:
        hint = did_you_mean(name, known) or f"; there are {', '.join(known)}"
        raise at.error(f"no {what} {name!r}{hint}")
    return name
