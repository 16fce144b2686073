"""What the tests of the sandbox share: settings, and a user without any rights."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.sandbox.numbers import NUMBERS
from ts2_lightning.sandbox import Sandbox, SandboxSettings, process, ways

NOBODY = 65534
MACHINE = "aarch64" if platform.machine() in ("aarch64", "arm64") else "x86_64"
SETTINGS = SandboxSettings(run_code=True, workers=1, memory=256 << 20, keep_texts=True)


def edit_server(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """Has servers run with other sources, so that the tests see what their own code prevents."""

    before, after = (json.dumps(text)[1:-1].encode() for text in (old, new))

    def first_line(settings: SandboxSettings) -> bytes:
        line = ways.first_line(settings)
        assert line.count(before) == 1
        return line.replace(before, after)

    monkeypatch.setattr(process, "first_line", first_line)


# Becomes another program, for which some calls fail from then on.
LESSEN = """
import ctypes, json, os, struct, sys
program = struct.pack("=HBBI", 0x20, 0, 0, 0)
for number, code in json.loads(sys.argv[1]):
    program += struct.pack("=HBBIHBBI", 0x15, 0, 1, number, 0x06, 0, 0, 0x00050000 | code)
program += struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
memory = ctypes.create_string_buffer(program, len(program))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.c_char_p(struct.pack("@HP", len(program) // 8, ctypes.addressof(memory)))) == 0
os.execvp(sys.argv[2], sys.argv[2:])
"""


def lessen(monkeypatch: pytest.MonkeyPatch, **errors: int) -> None:
    """Has servers start on a kernel that answers some calls with an error."""
    rules = json.dumps([(NUMBERS[MACHINE][name], code) for name, code in errors.items()])
    before = process.command_line
    monkeypatch.setattr(
        process, "command_line", lambda settings: [sys.executable, "-S", "-c", LESSEN, rules, *before(settings)]
    )


def nobodys_python() -> str:
    """An interpreter that the user without rights can start; skips the test where there is none."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root, and setpriv, to become another user")
    for python in (sys.executable, "/usr/bin/python3"):
        if _can_start(os.path.realpath(python)):
            done = subprocess.run(
                [python, "-S", "-c", "import ctypes, sys; sys.exit(sys.version_info < (3, 10))"],
                user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, cwd="/",
            )  # fmt: skip
            if done.returncode == 0:
                return python
    pytest.skip("needs a Python 3.10 that any user can start")


def _can_start(python: str) -> bool:
    """Whether a file is there, and every directory above it may be entered by anybody."""
    return os.path.exists(python) and all(parent.stat().st_mode & 0o001 for parent in Path(python).parents)


@contextmanager
def sandbox_of(user: str, monkeypatch: pytest.MonkeyPatch, settings: SandboxSettings = SETTINGS) -> Iterator[Sandbox]:
    """A sandbox whose server is started by this user, or by one who has no rights at all.

    Args:
        user: `this user` or `nobody`.
        monkeypatch: pytest's.
        settings: settings of the sandbox.
    """
    if user == "nobody":
        settings = replace(settings, python=nobodys_python())
        dropping = [
            "setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "--inh-caps=-all",
            "--bounding-set=-all", "--no-new-privs", "--",
        ]  # fmt: skip
        before = process.command_line

        def command_line(asked: SandboxSettings) -> list[str]:
            own = ways.command_line(asked)
            return [*before(asked)[: -len(own)], *dropping, *own]  # what lessens the kernel goes first, as root

        monkeypatch.setattr(process, "command_line", command_line)
    with Sandbox(settings) as sandbox:
        yield sandbox
