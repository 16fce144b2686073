"""Says in one line what the parser's many lines mean, where the wrong value came from, and what was meant."""

import argparse
import inspect
import os
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ts2_lightning.cli.errors.guard import one_line
from ts2_lightning.cli.errors.origins import Origin, find_origin
from ts2_lightning.cli.errors.parser import KEY, MESSAGES, SUBTYPES, annotation_of, arguments_of
from ts2_lightning.config_files import no_such_file
from ts2_lightning.suggestions import did_you_mean

_LONGEST = 400


@dataclass(frozen=True)
class Complaint:
    """A message of the parser, and what is needed to understand it.

    Attributes:
        message: The parser's own words, usually several lines.
        parser: Parser of the command.
        arguments: Command line after the command.
    """

    message: str
    parser: argparse.ArgumentParser
    arguments: Sequence[str]

    @property
    def key(self) -> str:
        """The setting that is complained about, dotted: `model.loss.alpha`."""
        parts = re.findall(KEY, self.message)
        key = ".".join(dict.fromkeys(part.rstrip("+") for part in parts))
        return re.sub(r"^(fit|validate|test|predict)\.", "", key)

    def origin(self, key: str) -> Origin | None:
        """The option or line that gave the value of `key`; of a class the line of its `class_path`, if it has one."""
        return find_origin(key, self.arguments, f"{key}.class_path")

    def about(self, key: str, text: str) -> str:
        """The whole line: place, setting, what is wrong with it."""
        origin = self.origin(key)
        return f"{origin.describe(key) if origin else f'--{key}'}: {text}"


def explain(message: str, parser: argparse.ArgumentParser, arguments: Sequence[str]) -> str:
    """What is wrong with a command line, in one line for the user.

    Args:
        message: Message of jsonargparse.
        parser: Parser of the command, for the names that would have been right.
        arguments: Command line after the command.
    """
    complaint = Complaint(message, parser, arguments)
    for name, pattern in MESSAGES.items():
        match = re.search(pattern, message)
        if match:
            return one_line(_ANSWERS[name](complaint, match))
    return _shortened(one_line(message))


def explain_interpolation(message: str, key: str, parser: argparse.ArgumentParser, arguments: Sequence[str]) -> str:
    """What is wrong with a `${...}` that leads nowhere, in one line for the user.

    Args:
        message: Message of OmegaConf.
        key: Setting that holds the `${...}`.
        parser: See `explain`.
        arguments: See `explain`.
    """
    first = one_line(message.splitlines()[0])
    target = re.search(r"resolved to '([\w.]+)'", first) or re.search(r"Interpolation key '\.*([\w.]+)'", first)
    if target:
        wanted = re.sub(r"^(fit|validate|test|predict)\.", "", target[1])
        first = f"${{{wanted}}}: no such setting{did_you_mean(wanted, option_names(parser))}"
    return Complaint(message, parser, arguments).about(key, first) if key else first


def option_names(parser: argparse.ArgumentParser) -> list[str]:
    """Every dotted setting of a parser, with the hyper-parameters of the classes that `model.*` may name."""
    names: list[str] = []
    for action in arguments_of(parser):
        names.extend(option.removeprefix("--") for option in action.option_strings if option.startswith("--"))
        if action.dest.startswith("model."):
            for cls in concrete_classes(action):
                names.extend(f"{action.dest}.{parameter}" for parameter in parameter_names(cls))
    return [name for name in dict.fromkeys(names) if not name.endswith(".help")]


def concrete_classes(action: argparse.Action | None) -> list[type]:
    """The concrete classes that may be named for a setting: every imported subclass of its annotation."""
    classes: dict[type, None] = {}
    for base in _classes_in(annotation_of(action)):
        for cls in _with_subclasses(base):
            if not inspect.isabstract(cls) and not cls.__name__.startswith("_"):
                classes[cls] = None
    return list(classes)


def parameter_names(cls: type) -> list[str]:
    """The names of a class's constructor arguments, those of its parents included where it takes `**kwargs`."""
    names: dict[str, None] = {}
    for parent in cls.__mro__:
        if "__init__" not in vars(parent) or parent is object:
            continue
        parameters = list(inspect.signature(parent.__init__).parameters.values())[1:]  # type: ignore[misc]
        names.update((p.name, None) for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return list(names)


def _unrecognized(complaint: Complaint, match: re.Match[str]) -> str:
    word = next(iter(match["rest"].split()), "")
    name = word.partition("=")[0]
    if not word.startswith("-"):
        hint = f"; did you mean -c {word}?" if word.endswith((".yaml", ".yml", ".json")) else ""
        return f"unexpected argument {word!r}{hint}"
    return f"{name}: no such option{did_you_mean(name.lstrip('-'), option_names(complaint.parser), '--')}"


def _unknown_key(complaint: Complaint, match: re.Match[str]) -> str:
    key = match["key"]
    if match["group"]:
        key = f"{match['group']}.{key}"
    key = next((shorter for shorter in _prefixes(key) if not _is_prefix(complaint.parser, shorter)), key)
    names = option_names(complaint.parser)
    hint = did_you_mean(key, [*names, *_sections(names)])
    return complaint.about(key, f"no such setting{hint}")


def _unknown_parameter(complaint: Complaint, match: re.Match[str]) -> str:
    key, parameter = complaint.key, match["parameter"]
    cls = _import(match["path"])
    names = parameter_names(cls) if cls else []
    hint = did_you_mean(parameter, names) or (f"; it takes {', '.join(names)}" if names else "; it takes none")
    name = match["path"].rpartition(".")[2]
    return complaint.about(f"{key}.{parameter}", f"{name} has no such setting{hint}")


def _missing_parameter(complaint: Complaint, match: re.Match[str]) -> str:
    name = match["path"].rpartition(".")[2]
    wanted = " ".join(f"--{complaint.key}.{part.strip()} VALUE" for part in match["names"].split(","))
    return complaint.about(complaint.key, f"{name} needs {wanted}")


def _unknown_class(complaint: Complaint, match: re.Match[str]) -> str:
    key, word = complaint.key, match["word"]
    if word.endswith((".yaml", ".yml")):
        return _missing_file(complaint, key, word)
    names = [cls.__name__ for cls in concrete_classes(_action(complaint.parser, key))]
    wanted = re.findall(SUBTYPES, complaint.message)
    if word in names and wanted:  # a class of ours, but not for this setting
        return complaint.about(key, f"{word} is not a {wanted[-1]}")
    if word == "null":
        hint = ""
    else:
        hint = did_you_mean(word, names) or "; a class of your own is named MODULE.CLASS"
        if not did_you_mean(word, names) and 0 < len(names) <= 12:
            hint += f", ours are {', '.join(sorted(names))}"
    return complaint.about(key, f"no class named {word!r}{hint}")


def _abstract_class(complaint: Complaint, match: re.Match[str]) -> str:
    names = sorted(cls.__name__ for cls in concrete_classes(_action(complaint.parser, complaint.key)))
    return complaint.about(
        complaint.key,
        f"name a class that is not abstract, with --{complaint.key} CLASS; one of {_shortened(', '.join(names))}",
    )


def _failed_import(complaint: Complaint, match: re.Match[str]) -> str:
    path, reason = match["path"], match["reason"]
    if path.endswith((".yaml", ".yml")):
        return _missing_file(complaint, complaint.key, path)
    names = [cls.__name__ for cls in concrete_classes(_action(complaint.parser, complaint.key))]
    hint = did_you_mean(path.rpartition(".")[2], names)
    return complaint.about(complaint.key, f"cannot import {path}: {reason}{hint}")


def _wrong_class(complaint: Complaint, match: re.Match[str]) -> str:
    return complaint.about(complaint.key, f"{match['path']} is not a {match['base'].rpartition('.')[2]}")


def _required(complaint: Complaint, match: re.Match[str]) -> str:
    keys = [re.sub(r"^(fit|validate|test|predict)\.", "", key.strip()) for key in match["names"].split(",")]
    first = _action(complaint.parser, keys[0])
    text = one_line((first.help or "") if first else "").split(" (type:")[0].split(" (required")[0].rstrip(". ")
    more = f" (and {', '.join(f'--{key}' for key in keys[1:])})" if keys[1:] else ""
    return f"--{keys[0]} is required{': ' + text if text else ''}{more}"


def _no_sub_config(complaint: Complaint, match: re.Match[str]) -> str:
    return _missing_file(complaint, complaint.key, match["value"])


def _missing_file(complaint: Complaint, key: str, word: str) -> str:
    origin = complaint.origin(key)
    path = os.path.normpath(os.path.join(os.path.dirname(origin.file), word)) if origin and origin.file else word
    return complaint.about(key, no_such_file(path))


def _wrong_value(complaint: Complaint, match: re.Match[str]) -> str:
    expected = _readable(match["type"])
    value = match["value"].strip()
    if value.endswith((".yaml", ".yml")) and concrete_classes(_action(complaint.parser, complaint.key)):
        return _missing_file(complaint, complaint.key, value)
    words = re.findall(r"'([^']*)'", match["type"]) if "Literal" in match["type"] else []
    return complaint.about(complaint.key, f"expected {expected}, got {value!r}{did_you_mean(value, words)}")


def _needs_value(complaint: Complaint, match: re.Match[str]) -> str:
    option = match["option"].split("/")[-1]
    words = list(complaint.arguments)
    follows = next(iter(words[words.index(option) + 1 :]), "") if option in words else ""
    is_value = re.match(r"-[\d.]", follows)  # taken for an option, as the parser does not recognise every number
    return f"{option}: {match['reason']}{f'; write {option}={follows}' if is_value else ''}"


def _readable(types: str) -> str:
    """The parser's description of a type in a user's words.

    >>> _readable("<class 'str'>, list[str | data.sources.Source], <class 'NoneType'>")
    'text or list[str | Source] or null'
    """
    literals = re.findall(r"Literal\[([^\]]*)\]", types)
    rest = re.sub(r"(typing\.)?Literal\[[^\]]*\]", "", types)
    values = [value.strip().strip("'") for literal in literals for value in literal.split(",")]
    names = re.findall(r"<class '(\w+)'>|(\w+\[(?:[^\[\]]|\[[^\[\]]*\])*\])", re.sub(r"\w+\.", "", rest))
    words = [plain or subscripted for plain, subscripted in names]
    words = [{"NoneType": "null", "str": "text", "bool": "true or false"}.get(word, word) for word in words]
    if values:
        words.insert(0, "one of " + ", ".join(dict.fromkeys(values)))
    return " or ".join(dict.fromkeys(words)) or one_line(types)


def _action(parser: argparse.ArgumentParser, key: str) -> argparse.Action | None:
    by_dest = {action.dest: action for action in arguments_of(parser)}
    return next((by_dest[prefix] for prefix in reversed(list(_prefixes(key))) if prefix in by_dest), None)


def _prefixes(key: str) -> Iterator[str]:
    parts = key.split(".")
    for length in range(1, len(parts) + 1):
        yield ".".join(parts[:length])


def _sections(names: Sequence[str]) -> list[str]:
    """What settings are grouped under: `model`, `model.lm`, ..."""
    return list(dict.fromkeys(prefix for name in names for prefix in _prefixes(name) if prefix != name))


def _is_prefix(parser: argparse.ArgumentParser, key: str) -> bool:
    return any(action.dest == key or action.dest.startswith(f"{key}.") for action in arguments_of(parser))


def _classes_in(annotation: Any) -> Iterator[type]:
    arguments = typing.get_args(annotation)
    if arguments:
        for argument in arguments:
            yield from _classes_in(argument)
    elif inspect.isclass(annotation) and annotation.__module__ not in ("builtins", "typing", "pathlib"):
        yield annotation


def _with_subclasses(base: type) -> Iterator[type]:
    yield base
    children: list[type] = base.__subclasses__()
    for child in children:
        yield from _with_subclasses(child)


def _import(path: str) -> type | None:
    module, _, name = path.rpartition(".")
    try:
        return typing.cast(type, getattr(import_module(module), name))
    except (ImportError, AttributeError, ValueError):
        return None


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 4] + " ..."


_ANSWERS: dict[str, Callable[[Complaint, re.Match[str]], str]] = {
    "unrecognized": _unrecognized,
    "unknown parameter": _unknown_parameter,
    "missing parameter": _missing_parameter,
    "unknown key": _unknown_key,
    "no import path": _unknown_class,
    "null for a class": lambda complaint, match: complaint.about(complaint.key, "a class is needed, got null"),
    "wrong class": _wrong_class,
    "abstract class": _abstract_class,
    "failed import": _failed_import,
    "required": _required,
    "no such fragment": _no_sub_config,
    "wrong value": _wrong_value,
    "none of a union": _wrong_value,
    "needs a value": _needs_value,
}
assert _ANSWERS.keys() == MESSAGES.keys()
