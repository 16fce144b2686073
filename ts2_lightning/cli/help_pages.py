"""The help of the commands with the settings of `fit`, made once per installation and then read from the cache.

`fit --help` lists every setting of Lightning's trainer, so making it imports Lightning, and with it torchmetrics,
matplotlib, scipy and torch._dynamo: seconds of processor time for a page that does not change. The text is kept under a
digest of all that decides it: interpreter, installed packages, files of this package, program name, terminal width.
"""

import hashlib
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path

from ts2_lightning.cli.terminal import put
from ts2_lightning.program import cache_setting, program

_KEPT = 64  # pages on disk: each command, width and installation has its own
_PACKAGE = Path(__file__).resolve().parents[1]
_DECIDING_VARIABLES = ("TS2_", "JSONARGPARSE_", "NO_COLOR", "FORCE_COLOR")


def with_help_page(command: str, run: Callable[[], int]) -> int:
    """Prints the help of a command: the page that is kept, or what the command prints, which is then kept.

    Args:
        command: Name of the command.
        run: Runs the command with `--help` as its only option, and returns the exit status.

    Returns:
        The exit status: 0 if a page was kept, else that of `run`.
    """
    page = Path(os.path.expanduser(cache_setting()), "help", f"{command}-{_digest(command)}.txt")
    with suppress(OSError, UnicodeError):
        put(page.read_text(encoding="utf-8"))
        return 0
    printed = io.StringIO()
    with redirect_stdout(printed):
        status = run()
    text = printed.getvalue().rstrip("\n")
    put(text)
    if status == 0:
        with suppress(OSError):  # without a cache directory the page is made again
            _keep(page, text)
    return status


def _digest(command: str) -> str:
    columns, _ = shutil.get_terminal_size()
    variables = [item for item in os.environ.items() if item[0].startswith(_DECIDING_VARIABLES)]
    started_as = (program(), Path(sys.argv[0]).name, sys.executable, sys.version)
    deciding = [command, columns, started_as, sorted(variables), *_stamps()]
    return hashlib.sha256(repr(deciding).encode()).hexdigest()[:32]


def _stamps() -> Iterator[tuple[str, int, int]]:
    """Name, size and time of every file of this package, and of the record of every installed package."""
    files = sorted(_PACKAGE.rglob("*.py"))
    for directory in map(Path, sys.path):
        if directory.is_dir():
            files += sorted(path for path in directory.iterdir() if path.suffix in (".dist-info", ".egg-info"))
    for file in files:
        state = file.stat()
        yield str(file), state.st_size, state.st_mtime_ns


def _keep(page: Path, text: str) -> None:
    page.parent.mkdir(parents=True, exist_ok=True)
    beside = page.with_name(f".{page.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, page)
    pages = sorted(page.parent.glob("*.txt"), key=lambda kept: kept.stat().st_mtime_ns)
    for old in pages[:-_KEPT]:
        old.unlink(missing_ok=True)
