"""What programs may try, as this user and as one without rights: none gets through, and the server outlives them."""

import errno
import os
import tempfile
from hashlib import sha256
from pathlib import Path

import psutil
import pytest

from tests.sandbox.attacks import CASES, FIRST, HUNT, NEED_LANDLOCK
from tests.sandbox.support import SETTINGS, lessen, sandbox_of
from ts2_lightning.sandbox import Program, Sandbox, process, ways

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("user", "missing"),
    [
        ("this user", {}),
        pytest.param("nobody", {}, marks=SLOW),
        pytest.param("nobody", {"unshare": errno.EPERM, "landlock_create_ruleset": errno.ENOSYS}, marks=SLOW),
    ],
    ids=["this user", "nobody", "nobody, limits and seccomp alone"],
)
def test_every_attack_ends_as_it_has_to(user: str, missing: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    lessen(monkeypatch, **missing)
    assert len(FIRST) == 35
    assert len(CASES) >= 150
    monkeypatch.setenv("TS2_SECRET", "secret")
    with tempfile.TemporaryDirectory(dir="/tmp") as place, sandbox_of(user, monkeypatch) as sandbox:
        os.chmod(place, 0o777)
        victim = Path(place, "victim")
        victim.write_text("whole")
        victim.chmod(0o666)
        servers = {child.pid for child in psutil.Process().children(recursive=True)}
        has_landlock = "landlock" in " ".join(sandbox.layers)
        programs = [
            Program(name, case.code.replace("VICTIM", str(victim)).replace("DIRECTORY", place), case.seconds)
            for name, case in CASES.items()
            if has_landlock or name not in NEED_LANDLOCK
        ]
        verdicts = {verdict.key: verdict for verdict in sandbox.run(programs)}
        wrong = [
            verdict
            for name, verdict in verdicts.items()
            if f"{verdict.outcome} {verdict.reason}" not in CASES[name].ends
        ]
        assert not wrong, "\n".join(map(str, wrong))
        assert [*verdicts] == [program.key for program in programs]
        assert {child.pid for child in psutil.Process().children(recursive=True)} == servers, "a server was lost"
        assert os.listdir(place) == ["victim"]
        assert victim.read_text() == "whole"
        assert not os.path.exists("/dev/shm/ts2")
        assert max(verdict.seconds - CASES[name].seconds for name, verdict in verdicts.items()) < 10
        assert max(len(verdict.text) for verdict in verdicts.values()) <= 200


@pytest.mark.parametrize("is_hidden", [True, False])
def test_the_word_of_the_verdict_is_under_no_name(is_hidden: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program looks through all frames and objects for a word that the test knows; under a name, it is there."""
    word = bytes(range(200, 216))
    first_line = ways.first_line(SETTINGS).replace(b"secrets.token_bytes(_WORD)", b"bytes(range(200, 216))")
    if not is_hidden:
        first_line = first_line.replace(b"held.pop(0) + _execute", b"(word := held.pop(0)) + _execute")
    monkeypatch.setattr(process, "first_line", lambda settings: first_line)
    hunt, _, _ = HUNT.partition("for word in words")
    hunt += (
        f"import hashlib\nassert '{sha256(word).hexdigest()}' in {{hashlib.sha256(one).hexdigest() for one in words}}"
    )
    with Sandbox(SETTINGS) as sandbox:
        (verdict,) = sandbox.run([Program("hunt", hunt, 30.0)])
    assert (verdict.outcome, verdict.reason) == (("failed", "AssertionError") if is_hidden else ("passed", ""))


@pytest.mark.parametrize(
    "code",
    [
        # Results that are equal to everything.
        "class Yes:\n  def __eq__(self, other): return True\n{function} = lambda *a, **k: Yes()",
        # A trace that leaves the test out.
        "import sys\ndef trace(frame, event, argument):\n  if event == 'line' and frame.f_code.co_name == 'check':\n"
        "    frame.f_lineno = frame.f_code.co_firstlineno + 2; frame.f_trace = None\n  return trace\n"
        "def {function}(): return 0\nsys.settrace(trace)",
    ],
)
def test_programs_that_set_out_to_deceive_their_own_test_can(code: str) -> None:
    """docs/security.md says so: candidate and test share an interpreter."""
    test = "\ndef check(candidate):\n  assert candidate() == 1\n  candidate = None\ncheck(answer)"
    with Sandbox(SETTINGS) as sandbox:
        (verdict,) = sandbox.run([Program("cheat", code.format(function="answer") + test)])
    assert verdict.passed
