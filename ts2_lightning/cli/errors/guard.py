"""Turns what ends a command into an exit status and, where the user can mend it, one line on stderr."""

import errno
import os
import re
import sys
import tempfile
import tomllib
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path


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


class UnexpectedError(Exception):
    """An error that is no user's: `__cause__` is the error itself.

    Args:
        doing: What was being done, such as `in step 12 of the training`.
        directory: Directory of the run, where the traceback is saved; None if there is none.
    """

    def __init__(self, doing: str, directory: Path | None) -> None:
        super().__init__(doing)
        self.doing = doing
        self.directory = directory


def guarded(command: Callable[[], int], debug: bool = False, name: str = "the command") -> int:
    """Runs a command; see `ts2_lightning.cli.main` for the statuses.

    Args:
        command: Function that runs the command and returns the exit status.
        debug: Whether to print the traceback of errors that otherwise take one line.
        name: Name of the command, for messages.
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
    except GeneratorExit:
        raise
    except BaseException as error:  # some libraries' errors are no `Exception`, such as torch's CheckpointException
        return _end_with(error, debug, name)


def _end_with(error: BaseException, debug: bool, name: str) -> int:
    cause = error.__cause__ if isinstance(error, UnexpectedError) and error.__cause__ else error
    package = _absent_package(cause)
    if package is not None:
        need = f"{package} is not installed in {sys.executable}; README.md has the command that installs everything"
        return _end(f"error: {need}", 2, debug)
    users = users_error(cause)
    if users is not None:
        end = _end_together if _is_shared(users) else _end
        return end(f"error: {one_line(str(users))}", 2, debug)
    refusal = _refusal(cause)
    if refusal is not None:
        return _end(f"error: {refusal}", 2, debug)
    doing, directory = (error.doing, error.directory) if isinstance(error, UnexpectedError) else ("", None)
    file = save_traceback(cause, directory)
    what = f"{type(cause).__name__}: {one_line(str(cause))[:300]}".rstrip(": ")
    hint = "" if debug else "; TS2_DEBUG=1 shows it"
    return _end(f"error: {' '.join(filter(None, [name, doing]))}: {what}; the traceback is in {file}{hint}", 1, debug)


def save_traceback(error: BaseException, directory: Path | None) -> Path:
    """Appends the traceback of an error to `traceback.txt` (`traceback-rank-R.txt`) of a run's directory.

    Args:
        error: The error.
        directory: Directory of the run. Without one, or if it cannot be written, a temporary file takes its place.

    Returns:
        The file with the traceback.
    """
    text = "".join(traceback.format_exception(error))
    if directory is not None and directory.is_dir():
        file = directory / ("traceback.txt" if _rank() == "0" else f"traceback-rank-{_rank()}.txt")
        try:
            with file.open("a", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(text)
            return file
        except OSError:  # what ended the run may be the full disk that it lies on
            pass
    descriptor, name = tempfile.mkstemp(prefix="ts2-traceback-", suffix=".txt")
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write(text)
    return Path(name)


def _absent_package(error: BaseException) -> str | None:
    """The package without which nothing runs, if it is that which is missing."""
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    try:
        lines = [line for line in requires("ts2-lightning") or () if "extra ==" not in line]
    except PackageNotFoundError:  # a cloned folder that was never installed; its pyproject.toml says what it needs
        project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        lines = project["dependencies"]
    needed = {re.split(r"[^\w-]", line)[0].replace("-", "_").lower() for line in lines}
    return name if name and name.lower() in {*needed, *_MODULES_OF_OTHER_NAMES} else None


_MODULES_OF_OTHER_NAMES = ("yaml", "pil")
"""What needed packages are imported as, where that is not their own name."""


_OF_THE_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ELOOP, errno.EIO),
)


def _refusal(error: BaseException) -> str | None:
    """What Lightning or the file system say of the user's settings, where they say it themselves."""
    if isinstance(error, OSError) and error.filename is not None and error.errno in _OF_THE_DISK:
        return f"{os.fsdecode(error.filename)}: {(error.strerror or '').lower()}"
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    raised_in = str(frame.f_globals.get("__name__", ""))
    by_lightning = isinstance(error, ValueError | RuntimeError) and raised_in.startswith("lightning.")
    if by_lightning or type(error).__name__ == "MisconfigurationException":
        return f"Lightning refuses these settings: {one_line(str(error))}"
    return None


def one_line(text: str) -> str:
    """The text with every run of white space as one blank."""
    return " ".join(text.split())


def users_error(error: BaseException) -> BaseException | None:
    """The `UserError` that this is, or that a library caught and raised again as its own; None if there is none."""
    from ts2_lightning.types import UserError  # here, because it imports torch

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__
    return cause


def _is_shared(error: BaseException) -> bool:
    """Whether all ranks end with the same error."""
    from ts2_lightning.types import SharedError

    return isinstance(error, SharedError)


def _end(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    sys.stdout.flush()
    if message:
        message = message if _rank() == "0" else f"[rank {_rank()}] {message}"
        print(message, file=sys.stderr, flush=True)
    return status


def _rank() -> str:
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))


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
