"""YAML that may come from elsewhere: plain values only, and a bounded number of them."""

from typing import Any

import yaml

from ts2_lightning.types import UserError

MOST_VALUES = 100_000
"""Values of a document with every alias written out; the largest configuration of a run has some hundreds."""

FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Loader of libyaml, which takes a tenth of the time of PyYAML's own; that where PyYAML was built without it."""

_MOST_LEVELS = 5_000
"""Levels for which libyaml's composer has room: it recurses in C, and a far deeper document would end the process."""

_OF_A_LEVEL = "[{-?:"
"""Characters of which every level of a document has one."""


class PlainValues(yaml.SafeLoader):
    """Makes plain values of nodes. For a scalar that is no value of its type its errors are those of YAML, too."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; of one with parts it may be filled later.

        Raises:
            yaml.constructor.ConstructorError: it has none.
        """
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, OverflowError) as error:  # all of these come from PyYAML
            what = f"{str(node.value)[:40]!r} is no {node.tag.rpartition(':')[2]}; put it in quotes if it is a text"
            raise yaml.constructor.ConstructorError(problem=what, problem_mark=node.start_mark) from error


def compose_yaml(text: str, name: str) -> yaml.Node | None:
    """The nodes of a document, with their lines; None if it is empty.

    Args:
        text: text of one document.
        name: name of the file, for messages.

    Raises:
        UserError: if it is nested too deeply, or if its aliases (`*NAME`) contain themselves, or stand for so many
            values that a walk through them would never end.
        yaml.YAMLError: if it is not YAML.
    """
    try:
        root = _composed(text)
        values = 0 if root is None else _values(root, {})
    except RecursionError:
        raise UserError(f"{name}: nested too deeply to be read") from None
    if values > MOST_VALUES:
        raise UserError(
            f"{name}: with its aliases (*NAME) written out it has more than {MOST_VALUES:,} values; write out what is "
            "meant"
        )
    return root


def load_yaml(text: str, name: str) -> Any:
    """The plain values of a document.

    Args:
        text: text of one document.
        name: name of the file, for messages.

    Raises:
        UserError: see `compose_yaml`; or if it is not YAML, with the line.

    Example:
        >>> load_yaml("a: &x [1, 2]\\nb: *x", "a.yaml")
        {'a': [1, 2], 'b': [1, 2]}
        >>> load_yaml("a: [1", "a.yaml")
        Traceback (most recent call last):
        ts2_lightning.types.UserError: a.yaml:1: not valid YAML: expected ',' or ']', but got '<stream end>'
    """
    try:
        root = compose_yaml(text, name)
        return None if root is None else PlainValues("").construct_document(root)
    except yaml.YAMLError as error:
        raise UserError(yaml_complaint(error, name)) from error


def yaml_complaint(error: yaml.YAMLError, name: str) -> str:
    """The error of a document, in one line with the file and its line."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = f"{name}:{mark.line + 1}" if mark else name
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"{place}: not valid YAML: {problem}"


def _composed(text: str) -> yaml.Node | None:
    """The nodes of a document.

    What libyaml refuses is left to PyYAML's, whose errors say what was expected.
    """
    root: yaml.Node | None
    if sum(map(text.count, _OF_A_LEVEL)) <= _MOST_LEVELS:
        try:
            root = yaml.compose(text, Loader=FAST_LOADER)
            return root
        except (yaml.YAMLError, UnicodeEncodeError):
            pass
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    return root


def _values(node: yaml.Node, sizes: dict[int, int]) -> int:
    """The number of values of a node with its aliases written out; each node is looked at once."""
    if id(node) not in sizes:
        sizes[id(node)] = MOST_VALUES + 1  # until it is counted: who meets it again before is inside of it
        items = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            items = [part for pair in node.value for part in pair]
        sizes[id(node)] = min(1 + sum(_values(item, sizes) for item in items), MOST_VALUES + 1)
    return sizes[id(node)]
