"""Linux's system calls by name: their numbers on x86-64 and aarch64, and a way to make one."""

import ctypes
import errno
import os
import platform
import sys
from functools import cache

MACHINES = ("x86_64", "aarch64")
"""Machines with a table, as the kernel names them; the columns of `NUMBERS`."""

NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "access": (21, None),
    "brk": (12, 214),
    "capset": (126, 91),
    "clock_getres": (229, 114),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "clone": (56, 220),
    "clone3": (435, 435),
    "close": (3, 57),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_pwait": (281, 22),
    "epoll_wait": (232, None),
    "eventfd2": (290, 19),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "fcntl": (72, 25),
    "fstat": (5, 80),
    "futex": (202, 98),
    "getcwd": (79, 17),
    "getdents64": (217, 61),
    "getegid": (108, 177),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "getrandom": (318, 278),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "gettid": (186, 178),
    "gettimeofday": (96, 169),
    "getuid": (102, 174),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioctl": (16, 29),
    "landlock_add_rule": (445, 445),
    "landlock_create_ruleset": (444, 444),
    "landlock_restrict_self": (446, 446),
    "lseek": (8, 62),
    "lstat": (6, None),
    "madvise": (28, 233),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munmap": (11, 215),
    "nanosleep": (35, 101),
    "newfstatat": (262, 79),
    "open": (2, None),
    "openat": (257, 56),
    "openat2": (437, 437),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "poll": (7, None),
    "ppoll": (271, 73),
    "prctl": (157, 167),
    "pread64": (17, 67),
    "prlimit64": (302, 261),
    "pselect6": (270, 72),
    "read": (0, 63),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "readv": (19, 65),
    "recvfrom": (45, 207),
    "restart_syscall": (219, 128),
    "rseq": (334, 293),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_getaffinity": (204, 123),
    "sched_yield": (24, 124),
    "seccomp": (317, 277),
    "select": (23, None),
    "sendto": (44, 206),
    "set_robust_list": (273, 99),
    "sigaltstack": (131, 132),
    "socketpair": (53, 199),
    "stat": (4, None),
    "statx": (332, 291),
    "sysinfo": (99, 179),
    "time": (201, None),
    "times": (100, 153),
    "uname": (63, 160),
    "unshare": (272, 97),
    "write": (1, 64),
    "writev": (20, 66),
}
"""Number of each call on x86-64 and on aarch64; None where the machine has no such call."""


def machine() -> str:
    """The machine whose calls this process makes.

    Raises:
        OSError: there is no table for it.
    """
    name = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())
    if not sys.platform.startswith("linux"):
        raise OSError(f"it needs Linux, and this is {sys.platform}")
    if name not in MACHINES or sys.maxsize < 2**32 or sys.byteorder != "little":
        raise OSError(f"it needs x86-64 or aarch64 with 64 bits, and this is {name}")
    return name


def number(name: str, machine: str) -> int | None:
    """The number of a call; None where the machine has no such call.

    Args:
        name: name of the call.
        machine: one of `MACHINES`.

    Example:
        >>> number("openat", "aarch64"), number("open", "aarch64")
        (56, None)
    """
    return NUMBERS[name][MACHINES.index(machine)]


def call(name: str, *arguments: int | bytes | None) -> int:
    """Makes a system call.

    Args:
        name: name of the call.
        arguments: numbers; bytes, of which the kernel gets the address; None for a null pointer.

    Returns:
        What the kernel returned.

    Raises:
        OSError: the kernel refused; it has the kernel's number of the error.
    """
    wanted = number(name, machine())
    if wanted is None:
        raise OSError(errno.ENOSYS, f"{name}: no such call on this machine")
    words = [ctypes.c_char_p(one) if isinstance(one, bytes) else ctypes.c_long(one or 0) for one in arguments]
    result = _libc().syscall(ctypes.c_long(wanted), *words)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return int(result)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
