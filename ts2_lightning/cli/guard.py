"""Turns what ends a command into an exit status and, where the user can mend it, one line on stderr."""

import os
import sys
import traceback
from collections.abc import Callable


class CommandLineError(SystemExit):
    """A wrong command line, already explained in one line.

    It derives from `SystemExit` because the parser is left from deep inside, through code that catches every
    `ValueError`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Interrupted(SystemExit):
    """Ctrl-C, or another signal, after Lightning has shut down what was running; `message` is the parting line."""

    def __init__(self, message: str, status: int = 130) -> None:
        super().__init__(status)
        self.message = message


def guarded(command: Callable[[], int], debug: bool = False) -> int:
    """Runs a command; see `ts2_lightning.cli.main` for the statuses.

    Args:
        command: returns the exit status.
        debug: print the traceback of errors that otherwise take one line.

    Raises:
        Exception: whatever is not the user's to mend, unchanged.
    """
    try:
        return command()
    except (CommandLineError, Interrupted) as stop:
        status = int(stop.code or 0)
        message = stop.message if isinstance(stop, Interrupted) else f"error: {stop.message}"
        return _end(message, status, debug)
    except SystemExit as stop:
        return _status_of(stop)
    except KeyboardInterrupt:
        return _end("interrupted", 130, debug)
    except Exception as error:
        users = users_error(error)
        if users is None:
            raise
        end = _end_together if _is_shared(users) else _end
        return end(f"error: {one_line(str(users))}", 2, debug)


def one_line(text: str) -> str:
    """The text with every run of white space as one blank."""
    return " ".join(text.split())


def users_error(error: BaseException) -> BaseException | None:
    """The `UserError` that this is, or that a library caught and raised again as its own; None if there is none."""
    from ts2_lightning.types import UserError  # here, because it imports torch

    found: BaseException | None = error
    while found is not None and not isinstance(found, UserError):
        found = found.__cause__
    return found


def _is_shared(error: BaseException) -> bool:
    """Whether all ranks end with the same error."""
    from ts2_lightning.types import SharedError

    return isinstance(error, SharedError)


def _end(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    sys.stdout.flush()
    rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
    if message:
        message = message if rank == "0" else f"[rank {rank}] {message}"
        print(message, file=sys.stderr, flush=True)
    return status


def _end_together(message: str, status: int, debug: bool) -> int:
    """As `_end`, but rank 0 alone tells it; the others wait for it, as a launcher that sees one gone ends all."""
    from torch import distributed

    from ts2_lightning.cli.launch import is_rank_zero

    status = _end(message if is_rank_zero() else "", status, debug)
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
    return status


def _status_of(stop: SystemExit) -> int:
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code
    print(stop.code, file=sys.stderr)
    return 1
