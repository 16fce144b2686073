"""The files that a program may read: Landlock, where the kernel has it (5.13, or backported)."""

import os
import struct
from collections.abc import Iterable

from ts2_lightning.sandbox.inside.system_calls import call

_READ_FILE, _READ_DIRECTORY = 1 << 2, 1 << 3


def handled(version: int) -> tuple[int, int, int]:
    """The rights that a version of Landlock can take away: on files, on the network, on what lies outside.

    Args:
        version: version of Landlock's interface; one that is newer than this list is taken for the newest on it.

    Returns:
        Three sets of bits, as the kernel numbers the rights.

    Example:
        >>> [tuple(f"{bits:b}".count("1") for bits in handled(version)) for version in (0, 1, 3, 4, 6, 99)]
        [(0, 0, 0), (13, 0, 0), (15, 0, 0), (15, 2, 0), (16, 2, 2), (16, 2, 2)]
    """
    files = (1 << 13) - 1 if version >= 1 else 0
    files |= 1 << 13 if version >= 2 else 0  # to another directory
    files |= 1 << 14 if version >= 3 else 0  # truncation
    files |= 1 << 15 if version >= 5 else 0  # ioctl of devices
    network = 0b11 if version >= 4 else 0  # bind and connect of TCP
    outside = 0b11 if version >= 6 else 0  # abstract Unix sockets, signals
    return files, network, outside


def version() -> int:
    """The version of Landlock's interface; 0 where the kernel has none, or has it switched off."""
    try:
        return call("landlock_create_ruleset", None, 0, 1)
    except OSError:
        return 0


def make_ruleset(readable: Iterable[str]) -> int | None:
    """A ruleset that leaves nothing but reading some files and directories.

    Args:
        readable: paths of files and directories; one that is not there is left out.

    Returns:
        The ruleset's descriptor; None without Landlock.
    """
    current = version()
    if current < 1:
        return None
    files, network, outside = handled(current)
    size = 8 if current < 4 else 16 if current < 6 else 24
    ruleset = call("landlock_create_ruleset", struct.pack("=QQQ", files, network, outside)[:size], size, 0)
    for path in readable:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        rights = _READ_FILE | _READ_DIRECTORY if os.path.isdir(path) else _READ_FILE
        call("landlock_add_rule", ruleset, 1, struct.pack("=Qi", rights, place), 0)
        os.close(place)
    return ruleset


def restrict(ruleset: int) -> None:
    """Puts a ruleset on this thread and all that it starts, for good.

    Args:
        ruleset: descriptor of the ruleset.
    """
    call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    call("landlock_restrict_self", ruleset, 0)
