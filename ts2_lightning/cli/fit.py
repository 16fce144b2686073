"""`fit`: a training; with `--find-batch-size`, which micro-batch fits, and no training."""

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from ts2_lightning.cli.lightning_cli import TS2CLI, run_command

FIND_BATCH_SIZE = "--find-batch-size"
_HELP = "Measure the largest micro-batch that fits, with real steps on this device, and print it; nothing is written."


def run(argv: Sequence[str]) -> int:
    """Trains, or measures micro-batches.

    Args:
        argv: the options after the command.

    Returns:
        The exit status, 0.
    """
    if FIND_BATCH_SIZE not in argv:
        return run_command("fit", argv, FitCLI)
    finder = import_module("ts2_lightning.cli.find_batch_size").BatchSizeCLI  # with all that plans, which no fit needs
    return run_command("fit", [word for word in argv if word != FIND_BATCH_SIZE], finder)


class FitCLI(TS2CLI):
    """`fit`, whose help and nearest names have the option that is no setting of a run."""

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Adds the option; a value of it is refused, and it is no key of a configuration."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(FIND_BATCH_SIZE, action=_Flag, help=_HELP)


class _Flag(argparse.Action):
    """An option without a value that leaves nothing in the settings."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        kwargs.pop("default", None)
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: `run` has looked for it."""
