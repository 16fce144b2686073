"""The system calls that a program may make: a filter that the kernel runs before each call, and that none can take off.

It is a list of what is allowed. Everything else is answered with EPERM, which Python raises as a PermissionError, or
with ENOSYS where the C library then takes an older way. A call in the manner of another machine (32-bit, x32) kills.
"""

import ctypes
import errno
import struct
from typing import NamedTuple

from ts2_lightning.sandbox.inside.system_calls import call, number

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""Name of each machine in what the kernel tells a filter."""

ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
"""Answers of a filter; the number of the error is added to `ERRNO`. `KILL` ends the whole process."""

ALLOWED = (
    "access", "brk", "clock_getres", "clock_gettime", "clock_nanosleep", "close", "dup", "dup2", "dup3",
    "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_wait", "eventfd2", "exit", "exit_group", "faccessat",
    "faccessat2", "fstat", "getcwd", "getdents64", "getegid", "geteuid", "getgid", "getpid", "getppid",
    "getrandom", "getrlimit", "getrusage", "gettid", "gettimeofday", "getuid", "lseek", "lstat", "madvise",
    "mmap", "mprotect", "mremap", "munmap", "nanosleep", "newfstatat", "pipe", "pipe2", "poll", "ppoll",
    "pread64", "pselect6", "read", "readlink", "readlinkat", "readv", "restart_syscall", "rseq", "rt_sigaction",
    "rt_sigprocmask", "rt_sigreturn", "sched_getaffinity", "sched_yield", "select", "set_robust_list", "sigaltstack",
    "stat", "statx", "sysinfo", "time", "times", "uname", "write", "writev",
)  # fmt: skip
"""Calls that are allowed with any arguments: they touch the program's own memory, threads and open files alone, or read
the file system, where Landlock says what of it."""

ABSENT = ("clone3", "openat2", "io_uring_setup", "io_uring_enter", "io_uring_register")
"""Calls whose arguments a filter cannot see, answered as a kernel does that has not got them."""


class Condition(NamedTuple):
    """What an argument has to be: of its bits in the mask, those and only those of one of the values are set.

    Attributes:
        argument: number of the argument, from 0.
        mask: bits that are looked at.
        values: permitted values of these bits.
        wide: whether all 64 bits of the argument count, as for addresses; else the kernel takes the lower 32.
    """

    argument: int
    mask: int
    values: tuple[int, ...]
    wide: bool = False


_ALL, _ALL_WIDE = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
_WRITING = 0o1 | 0o2 | 0o100 | 0o1000 | 0o20000000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_TMPFILE
_THREAD, _THREAD_FLAGS = 0x10000, 0x7D0F00  # CLONE_THREAD; all flags with which glibc and musl start threads
_NULL = (0,)

CONDITIONS: dict[str, tuple[Condition, ...]] = {
    # A thread, and no flag that would make a namespace.
    "clone": (Condition(0, _THREAD, (_THREAD,)), Condition(0, _ALL & ~_THREAD_FLAGS, (0,))),
    "open": (Condition(1, _WRITING, (0,)),),
    "openat": (Condition(2, _WRITING, (0,)),),
    # Duplicates, close-on-exec, O_NONBLOCK; not F_SETOWN and F_SETSIG, which send signals, and no locks.
    "fcntl": (Condition(1, _ALL, (0, 1, 2, 3, 4, 1030)),),
    # What mutexes and conditions need, private or not; not those that inherit priorities, where errors were many.
    "futex": (Condition(1, _ALL & ~0x180, (0, 1, 3, 4, 5, 9, 10)),),
    # TCGETS, which asks for a terminal; FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
    "ioctl": (Condition(1, _ALL, (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)),),
    # Limits are read, and those of this process alone.
    "prlimit64": (Condition(0, _ALL, (0,)), Condition(2, _ALL_WIDE, _NULL, wide=True)),
    # A pair of connected sockets within the process, for asyncio: AF_UNIX and SOCK_STREAM, with its two flags.
    "socketpair": (Condition(0, _ALL, (1,)), Condition(1, _ALL & ~0o2004000, (1,))),
    "sendto": (Condition(3, _ALL, (0,)), Condition(4, _ALL_WIDE, _NULL, wide=True)),
    "recvfrom": (Condition(3, _ALL, (0,)), Condition(4, _ALL_WIDE, _NULL, wide=True)),
}
"""Calls that are allowed if all of some conditions hold."""

_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # places in struct seccomp_data
_X32 = 0x40000000

Instruction = tuple[int, int, int, int]
"""Code, instructions to skip if true, and if false, operand: BPF's struct sock_filter."""


def make_filter(machine: str) -> list[Instruction]:
    """The filter of a machine, as instructions of BPF.

    Args:
        machine: `x86_64` or `aarch64`.
    """
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, AUDIT_ARCH[machine]), _answer(KILL), (_LOAD, 0, 0, _NUMBER),
    ]  # fmt: skip
    if machine == "x86_64":
        program += [(_AT_LEAST, 0, 1, _X32), _answer(KILL)]
    for name in ABSENT:
        program += _if_number(name, machine, [_answer(ERRNO | errno.ENOSYS)])
    for name, conditions in CONDITIONS.items():
        block = [instruction for condition in conditions for instruction in _refuse_unless(condition)]
        program += _if_number(name, machine, [*block, _answer(ALLOW)])
    for name in ALLOWED:
        program += _if_number(name, machine, [_answer(ALLOW)])
    return [*program, _answer(ERRNO | errno.EPERM)]


def _answer(answer: int) -> Instruction:
    return (_RETURN, 0, 0, answer)


def _if_number(name: str, machine: str, block: list[Instruction]) -> list[Instruction]:
    """A block for one call, which ends in answers; nothing where the machine has no such call."""
    wanted = number(name, machine)
    return [] if wanted is None else [(_EQUAL, 0, len(block), wanted), *block]


def _refuse_unless(condition: Condition) -> list[Instruction]:
    """Instructions that answer EPERM unless a condition holds, and are passed through if it does."""
    low = _ARGUMENTS + 8 * condition.argument
    program = _refuse_word(low, condition.mask & _ALL, [value & _ALL for value in condition.values])
    if condition.wide:
        program += _refuse_word(low + 4, condition.mask >> 32, [value >> 32 for value in condition.values])
    return program


def _refuse_word(place: int, mask: int, values: list[int]) -> list[Instruction]:
    tests = [(_EQUAL, len(values) - index, 0, value) for index, value in enumerate(values)]
    return [(_LOAD, 0, 0, place), (_AND, 0, 0, mask), *tests, _answer(ERRNO | errno.EPERM)]


def packed(program: list[Instruction]) -> bytes:
    """A filter as the kernel reads it, 8 bytes an instruction."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def install(code: bytes) -> None:
    """Puts a filter on this thread and all that it starts, for good.

    Args:
        code: packed filter.

    Raises:
        OSError: the kernel has no such filters, or something around this process forbids them.
    """
    memory = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(code) // 8, ctypes.addressof(memory))
    call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS, without which only root may
    call("seccomp", 1, 0, header)  # SECCOMP_SET_MODE_FILTER
