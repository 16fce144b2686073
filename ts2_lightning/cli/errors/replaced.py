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
class _Given:
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
    for given in _all(arguments):
        state.take(given)
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
        self._lists: dict[str, _Given] = {}
        self._settings: dict[str, _Given] = {}

    def take(self, given: _Given) -> None:
        """Applies what is given next.

        Raises:
            CommandLineError: an option does not count any more.
        """
        key = given.key
        before = self._named.get(key)
        if given.is_list or (given.names is not None and key in self._lists):
            self._take_list(given)
        elif key != _MODULE and (given.names is not None or before is not None):
            self._named[key] = names = given.names or (given.text,)
            if before is not None and _leaf(before) != _leaf(names):
                self._replace(given, _leaf(before), _leaf(names))
        self._settings[key] = given

    def _take_list(self, given: _Given) -> None:
        before = self._lists.pop(given.key, None)
        if before is not None and not given.adds:
            names = ", ".join(name.rpartition(".")[2] for name in before.names or ())
            self.lines.append(
                f"{given.key}: what {given.where} names takes the place of the list of {before.where} ({names}); write "
                f"`{given.key.rpartition('.')[2]}+` to add to it"
            )
        if given.is_list:
            self._lists[given.key] = given

    def _replace(self, given: _Given, before: str, now: str) -> None:
        under = f"{given.key}."
        gone = [self._settings.pop(name) for name in list(self._settings) if name.startswith(under)]
        for name in [name for name in self._named if name.startswith(under)]:
            del self._named[name]
        if typed := next((one for one in gone if one.typed), None):
            first = given.where if given.typed else "-c"
            raise CommandLineError(
                f"{typed.where} comes before {given.where}, which would reset it; give {first} first"
            )
        if gone:
            parts = ", ".join(f"{one.key.removeprefix(under)} ({one.where})" for one in gone)
            place = f"{given.key}: {now} ({given.where}) takes the place of {before}"
            self.lines.append(f"{place}, whose settings no longer count: {parts}")


def _leaf(names: Sequence[str]) -> str:
    return names[0].rpartition(".")[2]


def _all(arguments: Sequence[str]) -> Iterator[_Given]:
    """What files and options give, in the order in which it is applied."""
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        value = value if equals else next(iter(arguments[position + 1 : position + 2]), "")
        if name in CONFIG_OPTIONS:
            if value and not is_text(value):
                yield from _of_node(compose_config(value), "", value)
        elif name.startswith("--"):
            yield from _of_option(name, value)


def _of_option(name: str, value: str) -> Iterator[_Given]:
    """An option: a class by its name or in a file of settings, or the value of a setting."""
    adds, key = name.endswith("+"), plain(name.removeprefix("--"))
    if adds:  # its settings are those of the object that was added last
        return
    if key.endswith(f".{_CLASS}"):
        yield _Given(key.removesuffix(f".{_CLASS}"), name, True, (value,))
        return
    file = named_file(yaml.ScalarNode("tag:yaml.org,2002:str", value), "")
    if file is None:
        looks_like_a_class = value.rpartition(".")[2][:1].isupper()
        yield _Given(key, name, True, (value,) if looks_like_a_class else None, text=value)
        return
    yield from _of_node(compose_config(file), key, file)


def _of_node(node: yaml.Node | None, key: str, file: str) -> Iterator[_Given]:
    """What a value of a file gives; a class before its settings, wherever it stands."""
    if not isinstance(node, yaml.MappingNode):
        return
    parts = sorted(node.value, key=lambda part: part[0].value != _CLASS)
    for name, value in parts:
        plain_name, where = str(name.value).rstrip("+"), f"{file}:{name.start_mark.line + 1}"
        if plain_name == _CLASS and key:
            yield _Given(key, where, False, (str(value.value),))
            continue
        full = key if plain_name in _INSIDE else f"{key}.{plain_name}".strip(".")
        named = named_file(value, file)
        if named is not None:
            yield from _of_node(compose_config(named), full, named)
        elif isinstance(value, yaml.MappingNode):
            yield from _of_node(value, full, file)
        elif isinstance(value, yaml.SequenceNode) and (classes := _classes_of(value)):
            yield _Given(full, where, False, classes, str(name.value).endswith("+"), True)
        else:
            text = str(value.value) if isinstance(value, yaml.ScalarNode) else ""
            yield _Given(full, where, False, (text,) if text.rpartition(".")[2][:1].isupper() else None, text=text)


def _classes_of(node: yaml.SequenceNode) -> tuple[str, ...]:
    """The classes of the objects of a list; none if it is a list of something else."""
    names = []
    for item in node.value:
        parts = {str(name.value): value for name, value in item.value} if isinstance(item, yaml.MappingNode) else {}
        if _CLASS in parts:
            names.append(str(parts[_CLASS].value))
    return tuple(names)
