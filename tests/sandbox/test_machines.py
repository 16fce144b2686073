"""Machines that allow less than this one: what may be missing is left out; without the rest the sandbox refuses."""

import errno
import os
import platform
import re
import sys
import tempfile
from pathlib import Path

import pytest

from tests.sandbox.numbers import NUMBERS
from tests.sandbox.support import MACHINE, SETTINGS, edit_server, lessen, sandbox_of
from ts2_lightning.sandbox import Program, Sandbox
from ts2_lightning.sandbox.attacks import make_attacks
from ts2_lightning.sandbox.inside import landlock, system_calls
from ts2_lightning.types import UserError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")

OUTCOMES = {  # of programs that go through each layer in turn
    "import os; os.fork()": "PermissionError",
    "import socket; socket.socket()": "PermissionError",
    "open('/tmp/x', 'w')": "PermissionError",
    "bytearray(1 << 30)": "MemoryError",
    "import threading; t = threading.Thread(target=int); t.start(); t.join()": "",
}


def check_outcomes(sandbox: Sandbox) -> None:
    verdicts = {verdict.key: verdict for verdict in sandbox.run([Program(code, code) for code in OUTCOMES])}
    assert {key: verdict.reason for key, verdict in verdicts.items()} == OUTCOMES


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.ENOSPC])
def test_without_namespaces(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Docker's profile and below Ubuntu's AppArmor (EPERM), and where `max_user_namespaces` is 0 (ENOSPC)."""
    lessen(monkeypatch, unshare=code)
    with Sandbox(SETTINGS) as sandbox:
        assert {"limits", "seccomp"} <= {*sandbox.layers}
        assert "namespaces" not in " ".join(sandbox.layers)
        check_outcomes(sandbox)


@pytest.mark.parametrize(("first", "layer"), [(1, "namespaces pid, net, ipc, uts"), (2, "namespaces user, net")])
def test_fewer_namespaces(first: int, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root where users may make none, and where there are none of processes."""
    edit_server(monkeypatch, "for flags, layer in _NAMESPACES:", f"for flags, layer in _NAMESPACES[{first}:]:")
    with Sandbox(SETTINGS) as sandbox:
        if layer not in sandbox.layers:
            pytest.skip("this user of this machine cannot make such namespaces")
        check_outcomes(sandbox)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
def test_without_landlock(code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on RHEL 8 (ENOSYS), or switched off at the start of the machine (EOPNOTSUPP): files can be read, no more."""
    lessen(monkeypatch, landlock_create_ruleset=code)
    file = tmp_path / "file"
    file.write_text("secret")
    with Sandbox(SETTINGS) as sandbox:
        assert "landlock" not in " ".join(sandbox.layers)
        check_outcomes(sandbox)
        codes = [
            f"assert open({str(file)!r}).read() == 'secret'",
            f"open({str(file)!r}, 'w')",
            f"open({str(file)!r}, 'r+')",
        ]
        verdicts = {verdict.key: verdict.reason for verdict in sandbox.run([Program(code, code) for code in codes])}
    assert list(map(verdicts.get, codes)) == ["", "PermissionError", "PermissionError"]
    assert file.read_text() == "secret"


def test_without_namespaces_and_landlock_as_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits and seccomp alone, which are there for every user of every Linux."""
    lessen(monkeypatch, unshare=errno.EPERM, landlock_create_ruleset=errno.ENOSYS)
    with sandbox_of("nobody", monkeypatch) as sandbox:
        assert sandbox.layers == ("limits", "seccomp")
        check_outcomes(sandbox)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL, errno.EPERM])
def test_without_seccomp_it_refuses(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lessen(monkeypatch, seccomp=code)
    with pytest.raises(UserError) as caught:
        Sandbox(SETTINGS)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("--sandbox auto does not work here: a program cannot be confined: seccomp: ")
    assert os.strerror(code) in line
    assert all(way in line for way in ("docker:IMAGE", "bwrap", "none --i_know_what_i_run"))


@pytest.mark.parametrize("version", range(1, 8))
def test_older_landlocks(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the rights that a kernel of that time knows, on this one: they are accepted, and the self-test holds."""
    if landlock.version() < version:
        pytest.skip(f"needs Landlock {version}, and this kernel has {landlock.version()}")
    edit_server(monkeypatch, 'return call("landlock_create_ruleset", None, 0, 1)', f"return {version}")
    with Sandbox(SETTINGS) as sandbox:
        assert f"landlock {version}" in sandbox.layers
        (verdict,) = sandbox.run([Program("read", "open('/etc/passwd')")])
        assert verdict.reason == "PermissionError"


def test_landlocks_rights() -> None:
    """Against the kernel's documentation, userspace-api/landlock: which version has brought which right."""
    files = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16, 6: 16, 7: 16, 8: 16}
    for version, count in files.items():
        outside = 2 if version >= 6 else 0
        assert landlock.handled(version) == ((1 << count) - 1, 3 if version >= 4 else 0, (1 << outside) - 1)


EDITS = {
    "connect to the network": (
        "    for name in ALLOWED:",
        f"    for nr in {[NUMBERS[MACHINE][name] for name in ('socket', 'connect')]}:\n"
        "        program += [(_EQUAL, 0, 1, nr), _answer(ALLOW)]\n    for name in ALLOWED:",
    ),
    "write files": ("_WRITING = 0o1 | ", "_WRITING = 0 and 0o1 | "),
    "start processes": ("_refuse_unless(condition)]", "_refuse_unless(condition) if name != 'clone']"),
    "run on after their time": ('if ended == "timeout" or (', "if False and ("),
    "take more memory than their limit": ('"AS": memory, ', ""),
    "pass by ending early": ("if said == word:", "if said in (word, b''):"),
    "read your files": ("landlock.restrict(confinement.ruleset)", "pass"),
}
"""Deed of an attack -> what of the server has to be otherwise for it to get through."""


@pytest.mark.parametrize("deed", EDITS)
def test_the_self_test_sees_what_gets_through(deed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_server(monkeypatch, *EDITS[deed])
    if deed != "read your files":  # else the other layers would stop it
        lessen(monkeypatch, landlock_create_ruleset=errno.ENOSYS, unshare=errno.EPERM)
    elif not landlock.version():
        pytest.skip("needs Landlock")
    with pytest.raises(UserError) as caught:
        Sandbox(SETTINGS)
    assert re.search(rf"does not work here: programs can [^;]*{deed}", str(caught.value))
    assert "\n" not in str(caught.value)


def test_what_the_self_test_tries_would_work_outside() -> None:
    """Each attack, run without a sandbox, gets through: none of them fails for another reason."""
    with tempfile.NamedTemporaryFile() as secret:
        for attack in make_attacks(secret.name, 64 << 20):
            if attack.deed in ("run on after their time", "pass by ending early", "make namespaces"):
                continue
            done = os.system(f"timeout 20 {sys.executable} -c '{_quoted(attack.code)}'")
            assert done == 0, attack.deed


def _quoted(code: str) -> str:
    return code.replace("'", "'\"'\"'")


@pytest.mark.parametrize(
    ("system", "name", "wrong"),
    [
        ("darwin", "arm64", "it needs Linux, and this is darwin"),
        ("linux", "riscv64", "it needs x86-64 or aarch64 with 64 bits, and this is riscv64"),
        ("linux", "i686", "it needs x86-64 or aarch64 with 64 bits, and this is i686"),
    ],
)
def test_other_machines(system: str, name: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: name)
    with pytest.raises(OSError, match=wrong):
        system_calls.machine()


def test_off_linux_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    edit_server(monkeypatch, 'not sys.platform.startswith("linux")', "True")
    with pytest.raises(UserError, match=r"--sandbox auto does not work here: it needs Linux, .*docker:IMAGE"):
        Sandbox(SETTINGS)
