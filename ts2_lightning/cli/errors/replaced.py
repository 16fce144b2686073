"""What a class, or a list of objects, that is named later takes away from what was given for an earlier one.

A class starts from its own defaults: TS2's alpha, a weight, must not become entmax's alpha, an order. So settings that
were given for another class are gone once a file or an option names one after it, and a list in a later file stands in
the place of the one before. What was typed is never dropped: that is refused. What a file gave may be meant to go, as
an experiment's loss does where another one is named; that is said in a line.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import yaml

from ts2_lightning.cli.errors.guard import CommandLineError
from ts2_lightning.cli.errors.origins import CONFIG_OPTIONS, is_text, plain
from ts2_lightning.config_files import compose_config, named_file

_CLASS = "class_path"
_INSIDE = ("init_args", "dict_kwargs")
_MODULE = "model"
"""The settings of the module stand beside its class, and stay."""


@dataclass(frozen=True)
class _Entry:
    """Something that a place gives.

    Attributes:
        key: dotted setting.
        where: file and line, or the option.
        typed: whether it is an option.
        names: class that is named here, or classes of a list; None for the value of any other setting.
        adds: whether a list is added to the one before.
        is_list: whether it is a list.
        text: value of any other setting, where it is one word.
    """

    key: str
    where: str
    typed: bool
    names: tuple[str, ...] | None = None
    adds: bool = False
    is_list: bool = False
    text: str = ""


def replaced_settings(arguments: Sequence[str], classes: Mapping[str, str]) -> list[str]:
    """What of the files does not count because of what is named later, in a line each.

    Args:
        arguments: command line after the command, whose files have been checked.
        classes: the class of each setting that is one by default.

    Raises:
        CommandLineError: an option does not count.
    """
    state = _State({key: (path,) for key, path in classes.items()})
    for entry in _all(arguments):
        state.take(entry)
    return state.lines


class _State:
    """What counts so far.

    Args:
        named: the class of each setting that is one.

    Attributes:
        lines: what was replaced.
    """

    def __init__(self, named: dict[str, tuple[str, ...]]) -> None:
        self.lines: list[str] = []
        self._named = named
        self._lists: dict[str, _Entry] = {}
        self._settings: dict[str, _Entry] = {}

    def take(self, entry: _Entry) -> None:
        """Applies what is given next.

        Raises:
            CommandLineError: an option does not count any more.
        """
        key = entry.key
        before = self._named.get(key)
        if entry.is_list or (entry.names is not None and key in self._lists):
            self._take_list(entry)
        elif key != _MODULE and (entry.names is not None or before is not None):
            self._named[key] = names = entry.names or (entry.text,)
            if before is not None and _leaf(before) != _leaf(names):
                self._replace(entry, _leaf(before), _leaf(names))
        self._settings[key] = entry

    def _take_list(self, entry: _Entry) -> None:
        before = self._lists.pop(entry.key, None)
        if before is not None and not entry.adds:
            names = ", ".join(name.rpartition(".")[2] for name in before.names or ())
            self.lines.append(
                f"{entry.key}: what {entry.where} names takes the place of the list of {before.where} ({names}); write "
                f"`{entry.key.rpartition('.')[2]}+` to add to it"
            )
        if entry.is_list:
            self._lists[entry.key] = entry

    def _replace(self, entry: _Entry, before: str, now: str) -> None:
        under = f"{entry.key}."
        gone = [self._settings.pop(name) for name in list(self._settings) if name.startswith(under)]
        for name in [name for name in self._named if name.startswith(under)]:
            del self._named[name]
        if typed := next((one for one in gone if one.typed), None):
            first = entry.where if entry.typed else "-c"
            raise CommandLineError(
                f"{typed.where} comes before {entry.where}, which would reset it; give {first} first"
            )
        if gone:
            parts = ", ".join(f"{one.key.removeprefix(under)} ({one.where})" for one in gone)
            place = f"{entry.key}: {now} ({entry.where}) takes the place of {before}"
            self.lines.append(f"{place}, whose settings no longer count: {parts}")


def _leaf(names: Sequence[str]) -> str:
    return names[0].rpartition(".")[2]


def _all(arguments: Sequence[str]) -> Iterator[_Entry]:
    """What files and options give, in the order in which it is applied."""
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        value = value if equals else next(iter(arguments[position + 1 : position + 2]), "")
        if name in CONFIG_OPTIONS:
            if value and not is_text(value):
                yield from _of_node(compose_config(value), "", value)
        elif name.startswith("--"):
            yield from _of_option(name, value)


def _of_option(name: str, value: str) -> Iterator[_Entry]:
    """An option: a class by its name or in a file of settings, or the value of a setting."""
    adds, key = name.endswith("+"), plain(name.removeprefix("--"))
    if adds:  # its settings are those of the object that was added last
        return
    if key.endswith(f".{_CLASS}"):
        yield _Entry(key.removesuffix(f".{_CLASS}"), name, True, (value,))
        return
    file = named_file(yaml.ScalarNode("tag:yaml.org,2002:str", value), "")
    if file is None:
        is_class = value.rpartition(".")[2][:1].isupper()
        yield _Entry(key, name, True, (value,) if is_class else None, text=value)
        return
    yield from _of_node(compose_config(file), key, file)


def _of_node(node: yaml.Node | None, key: str, file: str) -> Iterator[_Entry]:
    """What a value of a file gives; a class before its settings, wherever it stands."""
    if not isinstance(node, yaml.MappingNode):
        return
    parts = sorted(node.value, key=lambda part: part[0].value != _CLASS)
    for name, value in parts:
        plain_name, where = str(name.value).rstrip("+"), f"{file}:{name.start_mark.line + 1}"
        if plain_name == _CLASS and key:
            yield _Entry(key, where, False, (str(value.value),))
            continue
        full = key if plain_name in _INSIDE else f"{key}.{plain_name}".strip(".")
        named = named_file(value, file)
        if named is not None:
            yield from _of_node(compose_config(named), full, named)
        elif isinstance(value, yaml.MappingNode):
            yield from _of_node(value, full, file)
        elif isinstance(value, yaml.SequenceNode) and (classes := _classes_of(value)):
            yield _Entry(full, where, False, classes, str(name.value).endswith("+"), True)
        else:
            text = str(value.value) if isinstance(value, yaml.ScalarNode) else ""
            yield _Entry(full, where, False, (text,) if text.rpartition(".")[2][:1].isupper() else None, text=text)


def _classes_of(node: yaml.SequenceNode) -> tuple[str, ...]:
    """The classes of the objects of a list; none if it is a list of something else."""
    names = []
    for item in node.value:
        parts = {str(name.value): value for name, value in item.value} if isinstance(item, yaml.MappingNode) else {}
        if _CLASS in parts:
            names.append(str(parts[_CLASS].value))
    return tuple(names)
