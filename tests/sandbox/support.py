"""What the tests of the sandbox share: settings, and a user without any rights."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from ts2_lightning.sandbox import Sandbox, SandboxSettings, process, ways

NOBODY = 65534
SETTINGS = SandboxSettings(run_code=True, workers=1, memory=256 << 20, keep_texts=True)


def edit_server(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """Has servers run with other sources, so that the tests see what their own code prevents."""

    before, after = (json.dumps(text)[1:-1].encode() for text in (old, new))

    def first_line(settings: SandboxSettings) -> bytes:
        line = ways.first_line(settings)
        assert line.count(before) == 1
        return line.replace(before, after)

    monkeypatch.setattr(process, "first_line", first_line)


def nobodys_python() -> str:
    """An interpreter that the user without rights can start; skips the test where there is none."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root, and setpriv, to become another user")
    for python in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        if os.path.exists(python):
            done = subprocess.run(
                [python, "-S", "-c", "import ctypes, sys; sys.exit(sys.version_info < (3, 11))"],
                user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, cwd="/",
            ) if _can_start(python) else None  # fmt: skip
            if done is not None and done.returncode == 0:
                return os.path.realpath(python)
    pytest.skip("needs a Python 3.11 that any user can start")


def _can_start(python: str) -> bool:
    """Whether every directory above a file may be entered by anybody."""
    real = os.path.realpath(python)
    while real != "/":
        real = os.path.dirname(real)
        if not os.stat(real).st_mode & 0o001:
            return False
    return True


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
        monkeypatch.setattr(process, "command_line", lambda asked: [*dropping, *ways.command_line(asked)])
    with Sandbox(settings) as sandbox:
        yield sandbox
