"""What the commands share of the terminal: their options, text on the screen, and the libraries' noise kept off it."""

import argparse
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from ts2_lightning.cli.errors.guard import CommandLineError
from ts2_lightning.program import program
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError

_WIDTHS = (60, 100)  # least and most columns of the text, whatever the terminal's width
_PIPED = 80  # columns where the output goes to a file or a pipe


class OptionParser(argparse.ArgumentParser):
    """Argument parser of the commands that do not take the settings of `fit`; an error is told in one line.

    Args:
        command: Name of the command.
        about: What the command does, for its help.
    """

    def __init__(self, command: str, about: str) -> None:
        super().__init__(prog=f"{program()} {command}", description=about, allow_abbrev=False)
        self._command = command

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As of the base class, but that a misspelt option is what is told first, with the nearest right one."""
        words = sys.argv[1:] if args is None else list(args)
        options = [option for action in self._actions for option in action.option_strings]
        for word in words:
            if word == "--":
                break
            if (name := word.partition("=")[0]) not in options and _is_an_option(name, options):
                names = [option.lstrip("-") for option in options if option.startswith("--")]
                near = did_you_mean(name.lstrip("-"), names, "--")
                self.error(f"{name}: no such option{near}")
        parsed, rest = super().parse_known_args(words, namespace)
        if rest:
            self.error(f"unexpected argument {rest[0]!r}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Leaves the parser with a message that names the command."""
        raise CommandLineError(f"{self._command}: {message}")


def _is_an_option(word: str, options: Iterable[str]) -> bool:
    """Whether a word that is no option's name was meant as one, as argparse has it.

    >>> [_is_an_option(word, ["-c", "--name"]) for word in ("--nmae", "-x", "-3", "-1e-4", "-", "-cfile", "-a b", "a")]
    [True, True, False, False, False, False, False, False]
    """
    is_number = re.fullmatch(r"-\.?\d.*", word) is not None
    is_joined = word[:2] in options and word[:2] != "--"
    return len(word) > 1 and word.startswith("-") and not (is_number or is_joined or " " in word)


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """The type of an option that takes one of some names; a wrong one is told with the nearest right one.

    Args:
        names: names that there are.

    Example:
        >>> one_of(["merged", "separate"])("merged")
        'merged'
        >>> one_of(["merged", "separate"])("mmerged")
        Traceback (most recent call last):
            ...
        argparse.ArgumentTypeError: expected one of merged, separate, got 'mmerged'; did you mean merged?
    """
    names = list(names)

    def chosen(word: str) -> str:
        if word not in names:
            near = did_you_mean(word, names)
            raise argparse.ArgumentTypeError(f"expected one of {', '.join(names)}, got {word!r}{near}")
        return word

    return chosen


def choice(names: Iterable[str]) -> dict[str, Any]:
    """What `add_argument` is given for an option that takes one of some names, and shows them in the help.

    Args:
        names: names that there are.
    """
    names = list(names)
    return {"type": one_of(names), "metavar": f"{{{','.join(names)}}}"}


def check_out(directory: str | Path | None) -> None:
    """Raises UserError if the directory that a command is to write, `--out`, is a file."""
    if directory is not None and Path(directory).exists() and not Path(directory).is_dir():
        raise UserError(f"--out {directory}: this is a file; name a directory")


def page_width() -> int:
    """Columns of the text: the terminal's width between 60 and 100, or 80 where the output is no terminal."""
    columns = shutil.get_terminal_size((_PIPED, 24)).columns if sys.stdout.isatty() else _PIPED
    return min(max(columns, _WIDTHS[0]), _WIDTHS[1])


def rounded(count: int) -> str:
    """A large number.

    >>> rounded(8_030_261_248), rounded(436_992)
    ('8.03 billion', '0.44 million')
    """
    return f"{count / 1e9:,.2f} billion" if count >= 1e8 else f"{count / 1e6:,.2f} million"


def in_colour() -> bool:
    """Whether the text may have colours: on a terminal, unless NO_COLOR is set (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def put(text: str) -> None:
    """Prints text. A reader that stops early, as in `losses | head`, is no error, and neither is any character."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# Noise of the libraries -----------------------------------------------------------------------------------------

_PACKAGE = Path(__file__).resolve().parents[1]
_WARNINGS = (
    r".*does not have many workers.*",
    r".*LeafSpec.*is deprecated.*",
    r".*treespec.*is deprecated.*",
    r".*Checkpoint directory .* exists and is not empty.*",  # a resumed run writes where it wrote before
    r".*The number of training batches .* is smaller than the logging interval.*",
    r".*`srun` command is available on your system but is not used.*",
    r".*Unable to serialize instance.*",
    r".*no current accelerator.*|.*pin_memory.*argument is set as true but no accelerator.*",
    r".*GPU available but not used.*",
    r".*recommended to use .*sync_dist=True.*",  # the module sums over ranks before it logs
    r".*LightningCLI's args parameter is intended.*",
    r".*`torch.distributed.(all_gather_into|reduce_scatter)_tensor` is deprecated.*",  # DeepSpeed's calls
    r".*When saving the DeepSpeed Stage 3 checkpoint.*",  # export makes the single file
)
_CALLBACKS_WARNING = r".*callbacks used to create the checkpoint need to be provided.*"
_MESSAGES = (
    "Tip:",
    "Seed set to",
    "LOCAL_RANK:",
    "GPU available",
    "TPU available",
    "HPU available",
    "Loading `train_dataloader` to estimate",
    "Restoring states from the checkpoint path",
    "Initializing distributed: GLOBAL_RANK",
    "initializing deepspeed distributed: GLOBAL_RANK",
    "Detected KeyboardInterrupt",
    "While redistributing from",  # tensor parallelism: the norm of the gradient in two exchanges
    "Failed to load CPU gemm_4bit_forward",  # bitsandbytes has another way, and who imports peft imports it
)


class _Unwanted(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a message is worth showing."""
        message = record.getMessage()
        return not any(unwanted in message for unwanted in _MESSAGES)


def _tell_plainly() -> None:
    """Has warnings of this package tell what they say alone: the file and line of the code are no use to a user."""
    before = warnings.formatwarning
    if getattr(before, "is_plain", False):
        return

    def plainly(message: Any, category: Any, filename: str, lineno: int, line: str | None = None) -> str:
        is_ours = Path(filename).is_relative_to(_PACKAGE)
        return f"warning: {message}\n" if is_ours else before(message, category, filename, lineno, line)

    plainly.is_plain = True  # type: ignore[attr-defined]
    warnings.formatwarning = plainly


def quieten(command: str) -> None:
    """Filters the warnings and log lines of the libraries that are of no use on the command line.

    Args:
        command: Name of the command that runs. All but `fit` may load a checkpoint without the callbacks that it was
            trained with, so Lightning's warning about them is filtered there too.
    """
    for pattern in _WARNINGS if command == "fit" else (*_WARNINGS, _CALLBACKS_WARNING):
        warnings.filterwarnings("ignore", message=pattern)
    _tell_plainly()
    # Said outright, since tokenizers would warn in every worker process otherwise.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    names = [name for name in logging.root.manager.loggerDict if name.startswith("lightning")]
    named = (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.seed",
        "bitsandbytes.backends.cpu.ops",
        "torch.distributed.tensor._redistribute",
    )
    for name in (*named, *names):
        logger = logging.getLogger(name)
        if not any(isinstance(existing, _Unwanted) for existing in logger.filters):
            logger.addFilter(_Unwanted())
