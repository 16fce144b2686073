"""The pool: every program has one verdict, whatever happens to its server; nothing is left when it ends."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.sandbox.support import SETTINGS, edit_server
from ts2_lightning.sandbox import Program, Sandbox, pool, run_programs
from ts2_lightning.sandbox.programs import read_verdict
from ts2_lightning.types import UserError

ROOT = Path(__file__).resolve().parents[2]


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def test_verdicts_have_all_that_is_asked_of_them() -> None:
    programs = [
        Program("right", "x = 1"),
        Program("text", "raise ValueError('secret')"),
        Program("memory", "x = bytearray(100 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1"),
        Program("sleep", "import time; time.sleep(0.2)"),
    ]
    for keep_texts in (False, True):
        found = {verdict.key: verdict for verdict in run_programs(programs, replace(SETTINGS, keep_texts=keep_texts))}
        assert [found[key].outcome for key in ("right", "text", "memory", "sleep")] == [
            "passed",
            "failed",
            "passed",
            "passed",
        ]
        assert (found["text"].reason, found["text"].text) == ("ValueError", "secret" if keep_texts else "")
        assert found["right"].passed
        assert not found["text"].passed
        assert found["memory"].bytes > 100 << 20 > found["right"].bytes
        assert 0.2 <= found["sleep"].seconds < 20


def test_many_programs_and_workers() -> None:
    """Every key once, with the verdict of its own program; also keys that are the same, or strange."""
    draw = random.Random(0)
    codes = {"passed": "x = 1", "failed": "1 / 0", "died": "import os; os._exit(3)"}
    expected = {f"{number}\n\ud800'\"": draw.choice([*codes]) for number in range(120)}
    with Sandbox(replace(SETTINGS, workers=3)) as sandbox:
        found = [
            (one.key, one.outcome) for one in sandbox.run(Program(key, codes[how]) for key, how in expected.items())
        ]
        assert len(found) == len(expected)
        assert dict(found) == expected
        assert [one.key for one in sandbox.run([Program("same", "1")] * 3)] == ["same"] * 3
        assert list(sandbox.run([])) == []
    assert children() == []


def test_programs_are_taken_when_a_worker_is_free() -> None:
    """So that programs can be made while others run, and without end."""
    taken = []

    def without_end():
        for number in range(10**9):
            taken.append(number)
            yield Program(str(number), "x = 1")

    with Sandbox(replace(SETTINGS, workers=2)) as sandbox:
        verdicts = sandbox.run(without_end())
        for _ in range(5):
            next(verdicts)
        assert len(taken) <= 8
        with pytest.raises(RuntimeError, match="one list of programs at a time"):
            next(sandbox.run([]))
        verdicts.close()
        assert [verdict.key for verdict in sandbox.run([Program("next", "1")])] == ["next"]


def test_an_iterator_that_is_dropped_after_its_sandbox() -> None:
    with Sandbox(replace(SETTINGS, workers=2)) as sandbox:
        verdicts = sandbox.run(
            Program(str(number), "import time; time.sleep(9)" if number else "1", 20) for number in range(3)
        )
        assert next(verdicts).key == "0"
    verdicts.close()
    assert children() == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "9900000 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu.max": "nonsense"}, 8),
    ],
)
def test_cores_of_a_container(files: dict, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More programs at a time than there are cores would run into their limits of time."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(pool, "_CGROUP", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8))
    assert pool.usable_cores() == expected


def test_a_server_that_no_longer_starts_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    no_room = ["/bin/sh", "-c", "echo no room >&2"]
    with Sandbox(replace(SETTINGS, workers=2)) as sandbox:
        for process in psutil.Process().children():
            process.kill()
        with monkeypatch.context() as patch:
            patch.setattr("ts2_lightning.sandbox.process.command_line", lambda settings: no_room)
            with pytest.raises(UserError, match="--sandbox auto does not work here: no further server starts: no room"):
                list(sandbox.run([Program("a", "1"), Program("b", "1")]))
        assert len(list(sandbox.run([Program("a", "1"), Program("b", "1")]))) == 2


def test_a_slow_reader_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ts2_lightning.sandbox.process._GRACE", -4.0)  # one second after it began
    with Sandbox(replace(SETTINGS, workers=2)) as sandbox:
        found = []
        for verdict in sandbox.run(Program(str(number), "x = 1", 5.0) for number in range(4)):
            time.sleep(1.2)
            found.append((int(verdict.key), verdict.outcome))
    assert sorted(found) == [(number, "passed") for number in range(4)]


def test_the_same_random_numbers_and_orders_in_every_server() -> None:
    code = "import random\nassert [random.random(), sorted(map(hash, 'abc'))] == [{}, {}]"
    with Sandbox(replace(SETTINGS, workers=2)) as sandbox:
        (verdict,) = sandbox.run(
            [Program("see", "import random; raise ValueError([random.random(), sorted(map(hash, 'abc'))])")]
        )
        number, hashes = verdict.text[1:-1].split(", ", 1)
        again = [one.passed for one in sandbox.run([Program("again", code.format(number, hashes))] * 8)]
    assert again == [True] * 8


def test_a_server_that_dies_is_replaced() -> None:
    with Sandbox(replace(SETTINGS, workers=1)) as sandbox:
        before = {child.pid for child in children()}
        os.kill(psutil.Process().children()[0].pid, signal.SIGKILL)  # while it is idle
        assert [verdict.outcome for verdict in sandbox.run([Program("a", "1")])] == ["passed"]
        verdicts = sandbox.run([Program("b", "1"), Program("c", "import time; time.sleep(1)"), Program("d", "1")])
        assert next(verdicts).key == "b"
        os.kill(psutil.Process().children()[0].pid, signal.SIGKILL)
        found = {verdict.key: verdict.outcome for verdict in verdicts}
        assert found == {"c": "passed", "d": "passed"}
        assert not before & {child.pid for child in children()}
    assert children() == []


def test_a_program_that_loses_its_server_twice_has_died(monkeypatch: pytest.MonkeyPatch) -> None:
    edit_server(
        monkeypatch,
        "        request = json.loads(line)",
        "        request = json.loads(line)\n        if 'LOSE' in line.decode(): os._exit(1)",
    )
    with Sandbox(replace(SETTINGS, workers=2)) as sandbox:
        programs = [Program(str(number), "'LOSE'" if number % 2 else "1") for number in range(6)]
        found = {verdict.key: verdict for verdict in sandbox.run(programs)}
    assert {key: one.outcome for key, one in found.items()} == {str(n): "died" if n % 2 else "passed" for n in range(6)}
    assert found["1"].reason == "the sandbox's server was lost"


@pytest.mark.parametrize(
    "answer", ["no JSON", "[]", "[" * 4000, '{"key": "other", "outcome": "passed", "seconds": 1}', "{}"]
)
def test_a_server_that_talks_nonsense_is_replaced(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = "json.dumps(answer).encode()"
    edit_server(monkeypatch, plain, f"({answer.encode()!r} if answer.get('key') == 'a' else {plain})")
    with Sandbox(replace(SETTINGS, workers=1)) as sandbox:
        found = {one.key: one.outcome for one in sandbox.run([Program("a", "1"), Program("b", "1")])}
    assert found == {"a": "died", "b": "passed"}


def test_a_server_that_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox(replace(SETTINGS, workers=1)) as sandbox:
        monkeypatch.setattr("ts2_lightning.sandbox.process._GRACE", 1.0)
        big = "# " + "x" * (1 << 20)  # more than a pipe takes
        for process in children():
            process.suspend()
        assert [one.outcome for one in sandbox.run([Program("a", "1", 2.0), Program("b", big, 2.0)])] == ["passed"] * 2


def test_verdicts_that_are_none() -> None:
    good = {"key": "a", "outcome": "passed", "reason": "", "seconds": 1.0, "bytes": 1}
    assert read_verdict(good).passed
    for changes in (
        {"outcome": "fine"},
        {"outcome": None},
        {"seconds": "1"},
        {"key": 1},
        {"reason": None},
        {"text": 3},
    ):
        with pytest.raises(ValueError, match="no verdict"):
            read_verdict({**good, **changes})
    assert read_verdict({**good, "outcome": "failed", "reason": "my secret"}).reason == "other"


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e9])
def test_limits_that_are_none(seconds: float) -> None:
    with pytest.raises(UserError, match="Program: seconds must be a finite number above 0"):
        Program("a", "1", seconds)


POOL = """
import sys
from dataclasses import replace
from tests.sandbox.support import SETTINGS
from ts2_lightning.sandbox import Program, Sandbox
with Sandbox(replace(SETTINGS, workers=2)) as sandbox:
    def programs():
        for number in range(4):
            yield Program(str(number), "import time; time.sleep(60)", 100.0)
            print("handed out", flush=True)
    list(sandbox.run(programs()))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_the_pool_is_ended(number: signal.Signals) -> None:
    """Ctrl-C, and an end that no handler sees: servers and programs are gone."""
    process = subprocess.Popen(
        [sys.executable, "-c", POOL], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "handed out\n"
    end, family = time.monotonic() + 60, list[psutil.Process]()
    while len(family) < 4 and time.monotonic() < end:  # two servers, two programs, and perhaps those who wait for them
        time.sleep(0.2)
        family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 4
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=30)
    assert ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


def test_humaneval(shared_data: Path) -> None:
    """Every solution that comes with it passes; one that does nothing, or ends early, never does."""
    with gzip.open(shared_data / "eval" / "humaneval_000_081.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    bodies = {
        "canonical": None, "return": "    return None\n", "_exit": "    import os; os._exit(0)\n",
        "exit": "    import sys; sys.exit()\n", "raise": "    raise SystemExit\n",
    }  # fmt: skip
    programs = [
        Program(
            f"{name} {row['task_id']}",
            f"{row['prompt']}{body or row['canonical_solution']}\n{row['test']}\ncheck({row['entry_point']})",
            30.0,
        )
        for row in rows
        for name, body in bodies.items()
    ]
    assert len(rows) == 82
    with Sandbox(replace(SETTINGS, workers=2)) as sandbox:
        passed = {verdict.key for verdict in sandbox.run(programs) if verdict.passed}
    assert passed == {f"canonical {row['task_id']}" for row in rows}
