"""A directory that appears when it is complete, and not before."""

import errno
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from safetensors import SafetensorError

from ts2_lightning.checkpoint_files import hidden, sync
from ts2_lightning.types import UserError


def check_place(out: Path, sources: Sequence[str | Path | None], own_files: Sequence[str]) -> None:
    """Refuses an output directory in which something would be lost.

    Args:
        out: directory to make.
        sources: directories that are read, and so cannot be written.
        own_files: patterns of the files that an earlier export may have left in it.

    Raises:
        UserError: if `out` is one of the sources, a file, or a directory that holds something else.
    """
    for source in sources:
        if source is not None and Path(source).exists() and Path(source).resolve() == out.resolve():
            raise UserError(f"export directory {out} is the model's own source: choose another one")
    if out.exists() and not out.is_dir():
        raise UserError(f"export directory {out} is a file: choose another one")
    for entry in sorted(out.iterdir()) if out.is_dir() else []:
        if entry.is_dir() or not any(fnmatch(entry.name, pattern) for pattern in own_files):
            raise UserError(
                f"export directory {out} holds something that is not an export ({entry.name}): choose another one"
            )


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A new directory beside `out` to write into; it takes the place of `out` when the block has ended well.

    Whatever ends the block otherwise (an error, Ctrl-C) removes it, and leaves `out` as it was.

    Raises:
        UserError: if the disk is full, or something cannot be written or read.
    """
    partial, old = hidden(out, "partial"), hidden(out, "old")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed export may have left
    if old.exists() and not out.exists():
        old.rename(out)  # it was killed between its two renames
    try:
        partial.mkdir(parents=True)
        yield partial
        sync(partial)
        _swap(partial, out)
    except (OSError, SafetensorError) as error:
        kept = "; the earlier export there is kept" if out.exists() else ""
        raise UserError(f"export to {out}: {_reason(error)}{kept}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_room(directory: Path, needed: int) -> None:
    """Refuses an export that does not fit on the disk, before an hour of writing.

    Raises:
        UserError: if fewer than `needed` bytes are free where `directory` lies.
    """
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise UserError(f"export needs {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free in {directory.parent}")


def _reason(error: Exception) -> str:
    """The message of the system, which safetensors wraps in its own words."""
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT) or re.search(r"\(os error (28|122)\)", str(error)):
        return "no space left on the disk"
    return " ".join(str(error).split())[:300]


def _swap(new: Path, place: Path) -> None:
    """Rename `new` to `place`; an old directory there steps aside first, and comes back if that fails."""
    old = hidden(place, "old")
    shutil.rmtree(old, ignore_errors=True)
    replaces = place.exists()
    if replaces:
        place.rename(old)
    try:
        new.rename(place)
    except BaseException:
        if replaces:
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)
