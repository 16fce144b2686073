"""The filter of system calls: its numbers, and what it answers, by an interpreter of BPF that knows nothing of it."""

import errno
import os
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sandbox.numbers import NUMBERS
from ts2_lightning.sandbox.inside import seccomp, system_calls

MACHINES = ("x86_64", "aarch64")
ARCHITECTURE = {"x86_64": 62 | 0xC0000000, "aarch64": 183 | 0xC0000000}  # EM_X86_64, EM_AARCH64; 64 bits, little endian
ALLOWED, REFUSED, ABSENT, KILLED = "allowed", errno.EPERM, errno.ENOSYS, "killed"

_FREE = """
access brk clock_getres clock_gettime clock_nanosleep close dup dup2 dup3 epoll_create1 epoll_ctl epoll_pwait epoll_wait
eventfd2 exit exit_group faccessat faccessat2 fstat getcwd getdents64 getegid geteuid getgid getpid getppid
getrandom getrlimit getrusage gettid gettimeofday getuid lseek lstat madvise mmap mprotect mremap munmap
nanosleep newfstatat pipe pipe2 poll ppoll pread64 pselect6 read readlink readlinkat readv restart_syscall rseq
rt_sigaction rt_sigprocmask rt_sigreturn sched_getaffinity sched_yield select set_robust_list sigaltstack stat statx
sysinfo time times uname write writev
"""
FREE = _FREE.split()
MISSING = ["clone3", "openat2", "io_uring_setup", "io_uring_enter", "io_uring_register"]
CONDITIONED = ["clone", "open", "openat", "fcntl", "futex", "ioctl", "prlimit64", "socketpair", "sendto", "recvfrom"]


def answer(code: bytes, arch: int, number: int, arguments: tuple[int, ...] = ()) -> object:
    """What the kernel would do with a call: classic BPF, as Documentation/networking/filter.rst has it."""
    words = [argument & (2**64 - 1) for argument in (*arguments, *[0] * (6 - len(arguments)))]
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, arch, 0, *words)
    accumulator, place = 0, 0
    for _ in range(10_000):
        operation, if_true, if_false, operand = struct.unpack_from("<HBBI", code, 8 * place)
        place += 1
        if operation == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            assert operand % 4 == 0
            accumulator = struct.unpack_from("<I", data, operand)[0]
        elif operation == 0x54:  # BPF_ALU | BPF_AND | BPF_K
            accumulator &= operand
        elif operation == 0x15:  # BPF_JMP | BPF_JEQ | BPF_K
            place += if_true if accumulator == operand else if_false
        elif operation == 0x35:  # BPF_JMP | BPF_JGE | BPF_K
            place += if_true if accumulator >= operand else if_false
        elif operation == 0x06:  # BPF_RET | BPF_K
            action, value = operand & 0xFFFF0000, operand & 0xFFFF
            return {0x7FFF0000: ALLOWED, 0x80000000: KILLED, 0x00050000: value}[action]
        else:
            raise AssertionError(f"operation {operation:#x}")
    raise AssertionError("no end")


def answer_of(machine: str, name: str, *arguments: int) -> object:
    code = seccomp.packed(seccomp.make_filter(machine))
    return answer(code, ARCHITECTURE[machine], NUMBERS[machine][name], arguments)


def test_the_numbers_are_those_of_the_kernel() -> None:
    ours = {
        machine: {
            name: number for name in system_calls.NUMBERS if (number := system_calls.number(name, machine)) is not None
        }
        for machine in MACHINES
    }
    for machine in MACHINES:
        theirs = {name: number for name, number in NUMBERS[machine].items() if name in system_calls.NUMBERS}
        assert ours[machine] == theirs


def test_the_numbers_are_those_of_the_headers_of_this_machine() -> None:
    files = {"x86_64": "x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "asm-generic/unistd.h"}
    checked = 0
    for machine, file in files.items():
        if not (header := Path("/usr/include", file)).exists():
            continue
        lines = [line.replace("__NR3264_", "__NR_").split() for line in header.read_text().splitlines()]
        theirs = {line[1]: line[2] for line in lines if line[:1] == ["#define"] and len(line) == 3}
        for name, number in NUMBERS[machine].items():
            if (stated := theirs.get(f"__NR_{name}", "")).isdigit():
                assert int(stated) == number, name
                checked += 1
    if not checked:
        pytest.skip("needs the kernel's headers in /usr/include, which are absent")
    assert checked > 100


@pytest.mark.parametrize("machine", MACHINES)
def test_every_number_has_its_answer(machine: str) -> None:
    """Those that are allowed are; every other number is refused, also such as no kernel has yet."""
    code = seccomp.packed(seccomp.make_filter(machine))
    numbers = NUMBERS[machine]
    expected = {numbers[name]: ALLOWED for name in FREE if name in numbers}
    expected |= {numbers[name]: ABSENT for name in MISSING}
    conditioned = {numbers[name] for name in CONDITIONED if name in numbers}
    for number in [*range(1200), 2**30 - 1, 2**31 - 1]:
        if number in conditioned or (machine == "x86_64" and number >= 2**30):
            continue
        assert answer(code, ARCHITECTURE[machine], number, (0,) * 6) == expected.get(number, REFUSED), number
    assert {*numbers} & {*FREE, *MISSING, *CONDITIONED} >= {"read", "openat", "clone3"}
    assert len(code) % 8 == 0
    assert len(code) // 8 < 4096  # the kernel's limit


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_in_the_manner_of_another_machine_kill(machine: str) -> None:
    code = seccomp.packed(seccomp.make_filter(machine))
    others = {
        "i386": 0x40000003,
        "arm": 0x40000028,
        "x86_64": 0xC000003E,
        "aarch64": 0xC00000B7,
        "aarch64_be": 0x800000B7,
    }
    for name, arch in others.items():
        for number in range(500):
            killed = answer(code, arch, number) == KILLED
            assert killed == (name != machine), (name, number)


def test_x32_kills() -> None:
    code = seccomp.packed(seccomp.make_filter("x86_64"))
    for number in (0, 1, 39, 59, 512, 547):
        assert answer(code, ARCHITECTURE["x86_64"], 0x40000000 | number) == KILLED
    assert answer(code, ARCHITECTURE["x86_64"], 0xFFFFFFFF) == KILLED  # -1, with which a tracer skips a call


THREAD = 0x3D0F00  # what glibc gives to clone for a thread
CASES: list[tuple[str, tuple[int, ...], object]] = [
    ("clone", (THREAD,), ALLOWED),
    ("clone", (0x7D0F00,), ALLOWED),  # musl
    ("clone", (17,), REFUSED),  # fork: SIGCHLD
    ("clone", (0x4111,), REFUSED),  # vfork
    ("clone", (0x01200011,), REFUSED),  # glibc's fork
    ("clone", (THREAD & ~0x10000,), REFUSED),
    *[("clone", (THREAD | space,), REFUSED) for space in (0x20000, 0x02000000, *(1 << bit for bit in range(26, 32)))],
    ("clone", (THREAD | 0x1000,), REFUSED),  # CLONE_PIDFD
    ("clone", (THREAD << 32,), REFUSED),
    ("openat", (-100, 1, os.O_RDONLY | os.O_CLOEXEC), ALLOWED),
    ("openat", (-100, 1, os.O_PATH), ALLOWED),
    ("openat", (-100, 1, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK), ALLOWED),
    *[
        ("openat", (-100, 1, flag), REFUSED)
        for flag in (os.O_WRONLY, os.O_RDWR, 3, os.O_CREAT, os.O_TRUNC, os.O_TMPFILE, os.O_RDWR | os.O_CLOEXEC)
    ],
    ("fcntl", (3, 1), ALLOWED),
    ("fcntl", (3, 1030, 0), ALLOWED),
    *[("fcntl", (3, command), REFUSED) for command in (5, 6, 7, 8, 10, 15, 37, 1024, 1026, 1031, 1033, 1036)],
    *[("futex", (4096, command | flags), ALLOWED) for command in (0, 1, 3, 4, 5, 9, 10) for flags in (0, 128, 384)],
    *[("futex", (4096, command | flags), REFUSED) for command in (2, 6, 7, 8, 11, 12, 13, 14) for flags in (0, 128)],
    ("futex", (4096, 512), REFUSED),
    ("ioctl", (1, 0x5401), ALLOWED),
    *[("ioctl", (1, command), REFUSED) for command in (0x5412, 0x541C, 0x540E, 0x5402, 0x4004667F, 0xC0045877)],
    ("prlimit64", (0, 9, 0, 4096), ALLOWED),
    ("prlimit64", (0, 9, 4096, 0), REFUSED),
    ("prlimit64", (0, 9, 1 << 32, 0), REFUSED),  # an address whose lower half is zero
    ("prlimit64", (1, 9, 0, 4096), REFUSED),
    ("socketpair", (1, 1 | 0o2004000, 0), ALLOWED),
    ("socketpair", (1, socket.SOCK_DGRAM, 0), REFUSED),
    ("socketpair", (2, 1, 0), REFUSED),
    ("socketpair", (16, 3, 0), REFUSED),
    ("sendto", (3, 4096, 9, 0, 0, 0), ALLOWED),
    ("sendto", (3, 4096, 9, 0, 4096, 16), REFUSED),
    ("sendto", (3, 4096, 9, 0, 1 << 40, 16), REFUSED),
    ("sendto", (3, 4096, 9, socket.MSG_OOB, 0, 0), REFUSED),
    ("recvfrom", (3, 4096, 9, 0, 0, 0), ALLOWED),
    ("recvfrom", (3, 4096, 9, socket.MSG_OOB, 0, 0), REFUSED),
]  # fmt: skip


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("name", "arguments", "expected"), CASES)
def test_arguments_are_looked_at(machine: str, name: str, arguments: tuple[int, ...], expected: object) -> None:
    assert answer_of(machine, name, *arguments) == expected


@pytest.mark.parametrize("machine", MACHINES)
@settings(derandomize=True, deadline=None, max_examples=300)
@given(flags=st.integers(0, 2**64 - 1) | st.sets(st.integers(0, 63)).map(lambda bits: sum(1 << bit for bit in bits)))
def test_flags_of_all_kinds(machine: str, flags: int) -> None:
    """Against the meaning of the flags, not their masks; the kernel takes an int, so the upper half is nothing."""
    low = flags & 0xFFFFFFFF
    writes = low & os.O_ACCMODE or any(low & one for one in (os.O_CREAT, os.O_TRUNC, 0o20000000))
    assert answer_of(machine, "openat", -100, 1, flags) == (REFUSED if writes else ALLOWED)
    if machine == "x86_64":
        assert answer_of(machine, "open", 1, flags) == (REFUSED if writes else ALLOWED)
    thread = {8, 9, 10, 11, 16, 18, 19, 20, 21, 22}  # VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS, three of ids
    bits = {bit for bit in range(32) if low >> bit & 1}
    assert answer_of(machine, "clone", flags) == (ALLOWED if 16 in bits and bits <= thread else REFUSED)
