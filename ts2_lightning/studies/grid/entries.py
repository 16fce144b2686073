"""A YAML file as a tree of values that know their line, and data classes that are filled from it.

A part of a grid file is described by a data class: a key is a field, read by the field's type (`read_part`). It is not
jsonargparse that reads them: of an error it tells the key at the top of the file alone, not where in a list or a
mapping, and its values no longer tell how they were written, as which a choice is called (1 and 1.0 are two).
"""

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from ts2_lightning.config_files import check_config, no_such_file
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError
from ts2_lightning.yaml_files import PlainValues

T = TypeVar("T")
_YAML = PlainValues("")  # its constructors have no state, and depend on no file


@dataclass(frozen=True)
class Entry:
    """A value in a YAML file. Whoever asks for what it is not gets a `UserError` that says what was expected, and came.

    Attributes:
        file: path of the file, as the user named it.
        line: 1-based, of its key if it has one; 0 of the command line, an option of which is the file then.
        name: where it is: `axes.objective`, `runs #2`; empty for the whole file.
        value: plain Python value.
        scalar: a scalar as it is written, `5.0e-4`; None for a list and a mapping.
        children: entries of a mapping by their keys as they are written, or those of a list.
    """

    file: str
    line: int
    name: str
    value: Any
    scalar: str | None = None
    children: "Mapping[str, Entry] | Sequence[Entry]" = ()

    def error(self, text: str) -> UserError:
        """A complaint about this entry, in one line that begins with file and line."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return UserError(": ".join(filter(None, [place, self.name, text])))

    def unlike(self, expected: str) -> UserError:
        """A complaint that something else was expected here."""
        if self.scalar is not None:
            return self.error(f"expected {expected}, got {repr(self.scalar) if self.scalar else 'nothing'}")
        what = "mapping" if isinstance(self.value, dict) else "list"
        return self.error(f"expected {expected}, got {'a' if self.value else 'an empty'} {what}")

    @property
    def text(self) -> str:
        """A scalar as it is written."""
        if self.scalar is None:
            raise self.unlike("a single value")
        return self.scalar

    def mapping(self, expected: str = "`key: value` lines", empty: bool = False) -> "dict[str, Entry]":
        """The entries of a mapping, which may be empty if so said, by their keys as they are written."""
        if not isinstance(self.children, Mapping) or not (self.children or empty):
            raise self.unlike(expected)
        return dict(self.children)

    def items(self, expected: str) -> "Sequence[Entry]":
        """The entries of a list that is not empty."""
        if not isinstance(self.value, list) or isinstance(self.children, Mapping) or not self.children:
            raise self.unlike(expected)
        return self.children

    def one_or_more(self, expected: str) -> "Sequence[Entry]":
        """The entries of a list, or this one alone."""
        return self.items(expected) if isinstance(self.value, list) else [self]

    def one_of(self, names: Collection[str], what: str, name: str | None = None) -> str:
        """A name, by default the text of a scalar, that is one of the names of something, such as an axis."""
        name = self.text if name is None else name
        if name not in names:
            raise self.error(f"no {what} {name!r}{_right_names(name, names)}")
        return name

    def beside(self, name: str) -> str:
        """A path that is relative to the file, from the working directory."""
        return from_here(Path(self.file).parent / Path(name).expanduser())


def _right_names(name: str, names: Collection[str]) -> str:
    return did_you_mean(name, names) or f"; there are {', '.join(names)}"


def from_here(path: str | Path) -> str:
    """A path from the working directory where it lies below it, else the whole."""
    whole, here = os.path.abspath(path), os.getcwd()
    return os.path.relpath(whole, here) if os.path.commonpath([whole, here]) == here else whole


def read_entries(file: Path) -> Entry:
    """The tree of a YAML file.

    Raises:
        UserError: there is no such file, it is empty or no plain YAML, or gives a key twice.
    """
    if not file.is_file():
        raise UserError(no_such_file(str(file)))
    node = check_config(str(file))
    if node is None:
        raise UserError(f"{file}: the file is empty; it needs at least base and axes")
    return entry_of(str(file), node, 1, "")


def entry_of(file: str, node: yaml.Node, line: int, name: str) -> Entry:
    """The tree of a YAML node.

    Args:
        file: path of the file.
        node: node with all that is in it.
        line: line of its key, from 1; 0 of the command line.
        name: where it is in the file, see `Entry`.

    Raises:
        UserError: it is no plain YAML.
    """
    try:
        if isinstance(node, yaml.ScalarNode):
            return Entry(file, line, name, _YAML.construct_document(node), str(node.value))
        if isinstance(node, yaml.SequenceNode) and node.tag.endswith(":seq"):
            items = [
                entry_of(file, item, line and item.start_mark.line + 1, f"{name} #{number}")
                for number, item in enumerate(node.value, 1)
            ]
            return Entry(file, line, name, [item.value for item in items], None, items)
        if not isinstance(node, yaml.MappingNode) or not node.tag.endswith(":map"):
            raise yaml.constructor.ConstructorError(problem=f"{node.tag} is neither a list nor a mapping")
        _YAML.flatten_mapping(node)  # what a `<<: *anchor` brings along then stands before the own keys, which win
        prefix, plain, parts = f"{name}." if name else "", {}, {}
        for key, value in node.value:
            text = str(key.value)
            parts[text] = entry_of(file, value, line and key.start_mark.line + 1, prefix + text)
            plain[_YAML.construct_document(key)] = parts[text].value
        return Entry(file, line, name, plain, None, parts)
    except (yaml.YAMLError, TypeError) as error:  # of a key that is a list, Python says that it has no hash
        problem = getattr(error, "problem", None) or error
        raise Entry(file, line, name, None).error(f"not plain YAML: {problem}") from None


def read_part(kind: type[T], entry: Entry) -> T:
    """A part of a file, as a data class describes it.

    A key is a field of the same name (`if` is `if_`), and read by its type: another data class, a tuple, text as it is
    written (`str`), the entry as it is (`Entry`), or what a function makes of it (`Annotated[..., function]`).
    `Annotated[..., "words"]` says what to expect, for messages. A field `entry` gets the part itself.

    Raises:
        UserError: it is no mapping, or has a key that is no field, with what was probably meant, or lacks one.

    Example:
        >>> @dataclass
        ... class Plane:
        ...     x: str
        ...     y: str
        >>> read_part(Plane, entry_of("grid.yaml", yaml.compose("x: 1\\nz: 2"), 1, ""))
        Traceback (most recent call last):
        ts2_lightning.types.UserError: grid.yaml:2: z: no such key; there are x, y
    """
    hints = get_type_hints(kind, include_extras=True)
    fields = {field.name.rstrip("_"): field for field in dataclasses.fields(kind) if field.name != "entry"}  # type: ignore[arg-type]
    parts = entry.mapping(f"a mapping with {', '.join(fields)}", empty=True)
    for key, part in parts.items():
        if key not in fields:
            raise part.error(f"no such key{_right_names(key, fields)}")
    for key, field in fields.items():
        if key not in parts and field.default is field.default_factory is dataclasses.MISSING:
            raise entry.error(f"{key} is missing")
    values = {fields[key].name: _read(hints[fields[key].name], part) for key, part in parts.items()}
    return kind(**({"entry": entry} if "entry" in hints else {}), **values)


def _read(hint: Any, entry: Entry, expected: str = "") -> Any:
    """A value of a type."""
    if get_origin(hint) is Annotated:
        inner, how = get_args(hint)
        return how(entry) if callable(how) else _read(inner, entry, how)
    if get_origin(hint) is tuple:
        every = expected or f"a list, one `- ` for each {entry.name.rpartition('.')[2]}"
        return tuple(_read(get_args(hint)[0], item) for item in entry.items(every))
    (plain,) = [option for option in get_args(hint) or [hint] if option is not type(None)]
    if plain is Entry:
        return entry
    return entry.text if plain is str else read_part(plain, entry)
