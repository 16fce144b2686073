"""`losses`: the catalogue of objectives, read from the docstrings and signatures of the loss classes.

A formula has one home, the docstring of its class (`loss_docstrings`). Defaults of arguments come from the
constructor's signature.
"""

import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import ts2_lightning.losses
from ts2_lightning.cli import program
from ts2_lightning.cli.terminal import OptionParser, page_width, put
from ts2_lightning.loss_docstrings import described_arguments, formula, gradient, own_docstring, source, text_of
from ts2_lightning.losses import TokenLoss
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError

REQUIRED = inspect.Parameter.empty
_NOTATION = "One token: z its K logits, y its gold token, p = softmax(z), e_y one-hot. Logarithms are natural."


@dataclass(frozen=True)
class Argument:
    """One hyper-parameter.

    Attributes:
        name: Name of the setting, as in `--model.loss.NAME`.
        default: Default value in the constructor; `REQUIRED` where there is none.
        description: Description in the docstring, on one line; empty where it has none.
    """

    name: str
    default: Any
    description: str = ""

    @property
    def shown(self) -> str:
        """The default as one would write it on the command line, or `required`.

        >>> [Argument("a", value).shown for value in (0.25, None, False, "linear", REQUIRED)]
        ['0.25', 'null', 'false', 'linear', 'required']
        """
        if self.default is REQUIRED:
            return "required"
        return self.default if isinstance(self.default, str) else json.dumps(self.default, default=_loss_shown)


@dataclass(frozen=True)
class Entry:
    """One objective.

    Attributes:
        name: Name as in `--model.loss NAME`: the bare name of one of ours, the import path of another.
        formula: Value of the loss of one token; None where the docstring has none, as for `gradient` and `source`.
        gradient: Gradient of the value with respect to the logits.
        source: Paper, with equation or section.
        text: Docstring up to its first section.
        arguments: Arguments of the constructor, in their order.
    """

    name: str
    formula: str | None
    gradient: str | None
    source: str | None
    text: str
    arguments: tuple[Argument, ...]

    @property
    def command(self) -> str:
        """A command line that selects the objective with its defaults.

        The numbers are spelt out, because a configuration that names the same class may have set others.
        """
        options = ["fit", "-c", "configs/experiment/quickstart.yaml", "--model.loss", self.name]
        for argument in self.arguments:
            if isinstance(argument.default, int | float) and not isinstance(argument.default, bool):
                options += [f"--model.loss.{argument.name}", argument.shown]
        return " ".join([program(), *options])

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints; a required argument has no `default`."""
        arguments = [
            {"name": a.name, "description": a.description, **({} if a.default is REQUIRED else {"default": a.default})}
            for a in self.arguments
        ]
        return {
            "name": self.name,
            "formula": self.formula,
            "gradient": self.gradient,
            "source": self.source,
            "arguments": arguments,
            "command": self.command,
        }


def run(argv: Sequence[str]) -> int:
    """Prints all objectives, or one.

    Args:
        argv: the options after the command, see `--help`.

    Returns:
        The exit status, 0.

    Raises:
        UserError: there is no loss of that name.
    """
    options = _parser().parse_args(argv)
    if options.json:
        entries = [find(options.name)] if options.name else catalogue()
        text = json.dumps([entry.as_dict() for entry in entries], indent=2, default=_loss_shown)
    else:
        text = describe(find(options.name), page_width()) if options.name else overview(catalogue(), page_width())
    put(text)
    return 0


def loss_classes() -> dict[str, type[TokenLoss]]:
    """Every objective that `ts2_lightning.losses` exports: bare name -> class, in alphabetical order."""
    exported = {name: getattr(ts2_lightning.losses, name) for name in ts2_lightning.losses.__all__}
    return {
        name: exported[name]
        for name in sorted(exported)
        if inspect.isclass(exported[name])
        and issubclass(exported[name], TokenLoss)
        and not inspect.isabstract(exported[name])
    }


def catalogue() -> list[Entry]:
    """The entries of all exported objectives."""
    return [read_entry(cls, name) for name, cls in loss_classes().items()]


def find(name: str) -> Entry:
    """The entry of one objective: ours by its bare name, any by its import path, `my_losses.Focal`.

    Raises:
        UserError: there is none; says which name is near.
    """
    classes = loss_classes()
    if name in classes:
        return read_entry(classes[name], name)
    if "." in name:
        return read_entry(_import(name), name)
    near = did_you_mean(name, classes) or did_you_mean(f"{name}Loss", classes)
    raise UserError(f"losses: no loss named {name!r}{near or '; without a name, all are listed'}")


def read_entry(cls: type, name: str) -> Entry:
    """Reads a class's docstring and signature.

    Example:
        >>> class Half(TokenLoss):
        ...     '''Half of cross-entropy.
        ...
        ...     L = -weight log p_y,
        ...     dL/dz = weight (p - e_y).
        ...
        ...     Source: nobody.
        ...
        ...     Args:
        ...         weight: what is half
        ...             by default.
        ...     '''
        ...     def __init__(self, weight: float = 0.5) -> None: ...
        >>> entry = read_entry(Half, "Half")
        >>> entry.formula, entry.gradient, entry.source
        ('L = -weight log p_y', 'dL/dz = weight (p - e_y)', 'nobody')
        >>> entry.arguments
        (Argument(name='weight', default=0.5, description='what is half by default.'),)
    """
    text = text_of(cls)
    descriptions: dict[str, str] = {}
    for parent in reversed(cls.__mro__):
        descriptions |= described_arguments(own_docstring(parent))
    parameters = inspect.signature(cls).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return Entry(
        name=name,
        formula=formula(text),
        gradient=gradient(text),
        source=source(text),
        text=text,
        arguments=tuple(Argument(p.name, p.default, descriptions.get(p.name, "")) for p in named),
    )


def overview(entries: Iterable[Entry], width: int) -> str:
    """All entries: name with defaults, formula, source; no line is longer than `width` but for a longer word."""
    blocks = [_wrapped(_NOTATION, width)]
    for entry in entries:
        defaults = "  ".join(f"{a.name}={a.shown}" for a in entry.arguments)
        lines = [_wrapped(f"{entry.name}  {defaults}".rstrip(), width, hanging=" " * 6)]
        lines += [_wrapped(entry.formula or entry.text.split("\n\n")[0], width, "  ", hanging=" " * 6)]
        lines += [_wrapped(f"[{entry.source}]", width, "  ", hanging=" " * 3)] if entry.source else []
        blocks.append("\n".join(lines))
    blocks.append(f"One of them in full: {program()} losses NAME")
    return "\n\n".join(blocks)


def describe(entry: Entry, width: int) -> str:
    """One entry in full: what its docstring says, arguments, command line."""
    blocks = [entry.name]
    blocks += [_refilled(paragraph, width) for paragraph in re.split(r"\n\s*\n", entry.text) if paragraph]
    if entry.arguments:
        lines = ["Arguments, with their defaults:"]
        for argument in entry.arguments:
            head = f"{argument.name} = {argument.shown}" if argument.default is not REQUIRED else argument.name
            lines.append(_wrapped(head, width, "  "))
            lines += [_wrapped(argument.description, width, " " * 6)] if argument.description else []
        blocks.append("\n".join(lines))
    blocks.append("\n".join(["Select it with:", _command_lines(entry.command, width)]))
    return "\n\n".join(blocks)


def _import(path: str) -> type:
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"losses: cannot import {path}: {error}") from error
    if not (inspect.isclass(cls) and issubclass(cls, TokenLoss)):
        raise UserError(f"losses: {path} is not a TokenLoss")
    if inspect.isabstract(cls):
        raise UserError(f"losses: {path} is abstract; name one of its subclasses")
    return cls


def _loss_shown(value: object) -> str:
    """A default that is itself a loss, by its name."""
    return type(value).__name__ if isinstance(value, TokenLoss) else str(value)


def _refilled(paragraph: str, width: int) -> str:
    """A paragraph at another width; formulas and list items keep lines of their own."""
    pieces: list[str] = []
    for line in paragraph.splitlines():
        if pieces and not line.lstrip().startswith(("L = ", "dL/dz", "- ")):
            pieces[-1] += f" {line.strip()}"
        else:
            pieces.append(line.strip())
    formula = ("L = ", "dL/dz")
    return "\n".join(
        _wrapped(piece, width, "    ", hanging=" " * 8) if piece.startswith(formula) else _wrapped(piece, width)
        for piece in pieces
    )


def _wrapped(text: str, width: int, first: str = "", hanging: str | None = None) -> str:
    """The text in lines of at most `width` columns; words are never cut."""
    rest = first if hanging is None else hanging
    return textwrap.fill(
        text,
        width,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _command_lines(command: str, width: int) -> str:
    """The command, continued behind backslashes where it is too long, and never between an option and its value."""
    parts = re.split(r" (?=-)", command)
    lines = ["  " + parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + 1 + len(part) + 2 <= width:
            lines[-1] += f" {part}"
        else:
            lines.append(f"    {part}")
    return " \\\n".join(lines)


def _parser() -> OptionParser:
    parser = OptionParser(
        "losses", "List the objectives: name, formula, defaults, paper. With a NAME, say all about one."
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="TS2Loss, or the import path of your own: mine.Focal")
    parser.add_argument("--json", action="store_true", help="print a list that a program can read")
    return parser
