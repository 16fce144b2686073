"""A checkpoint that is written while training goes on."""

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

_LOOK = 1.0  # seconds between two looks at how far it is, while somebody waits


class BackgroundSave:
    """Writes a checkpoint in a thread of its own, and knows how that ended.

    Args:
        step: number of optimizer steps of the checkpoint.
        partial: place to which it is written, by which progress is measured.
        size: number of bytes that will lie there, about.
        write: function that writes it. It returns the reason of a failure that the disk has caused, or None; ranks that
            write together return the same.

    Attributes:
        failure: what `write` has returned.
        error: error that `write` has raised.
    """

    def __init__(self, step: int, partial: Path, size: int, write: Callable[[], str | None]) -> None:
        self.step = step
        self.failure: str | None = None
        self.error: BaseException | None = None
        self._partial = partial
        self._size = size
        self._ended = threading.Event()
        # A daemon: the interpreter does not wait for it when it ends, which `wait` and `abandon` are for.
        threading.Thread(target=self._run, args=(write,), name=f"checkpoint-{step}", daemon=True).start()

    def _run(self, write: Callable[[], str | None]) -> None:
        try:
            self.failure = write()
        except BaseException as error:  # told where somebody waits: here it would end nothing but this thread
            self.error = error
        finally:
            self._ended.set()

    @property
    def has_ended(self) -> bool:
        """Whether it is written, or has failed."""
        return self._ended.is_set()

    def wait(self, show: bool = False, timeout: float | None = None) -> bool:
        """Wait for the end.

        Args:
            show: whether to show a bar on a terminal when it takes more than a second.
            timeout: seconds to wait at most; None: as long as it takes.

        Returns:
            Whether it has ended.
        """
        start = time.monotonic()
        if self._ended.wait(_LOOK if timeout is None else min(_LOOK, timeout)):
            return True
        title = f"Checkpoint of step {self.step}"
        hidden = None if show else True  # None: shown on a terminal only
        with tqdm(total=self._size, unit="B", unit_scale=True, desc=title, disable=hidden, leave=False) as bar:
            while not self._ended.wait(_LOOK):
                bar.update(max(0, min(self._size, _bytes_in(self._partial)) - bar.n))
                if timeout is not None and time.monotonic() - start > timeout:
                    return False
        return True

    def abandon(self, status: int) -> None:
        """Have the process end without it, if it has not ended by then.

        An interpreter that ends in good order while a thread is inside of torch aborts.

        Args:
            status: exit status of the process in that case.
        """
        atexit.register(_leave, self._ended, status)


def _leave(ended: threading.Event, status: int) -> None:
    if not ended.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _bytes_in(place: Path) -> int:
    """Bytes of a file, or of all in a directory, some of which may be gone by the time they are looked at."""
    try:
        return sum(path.stat().st_size for path in (place, *place.rglob("*")) if path.is_file())
    except OSError:
        return 0
