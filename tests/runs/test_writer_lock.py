"""A run has one writer; a dead one is no obstacle, wherever it ran."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ts2_lightning.runs import writer_lock
from ts2_lightning.runs.writer_lock import FILE, Writer, WriterLock
from ts2_lightning.types import UserError

HOLD = "import sys, time; from pathlib import Path; from ts2_lightning.runs.writer_lock import WriterLock; "
HOLD += "WriterLock.take(Path(sys.argv[1])); print('taken', flush=True); time.sleep(600)"


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes the run."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "taken\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_lock, "BEAT", 0.05)
    monkeypatch.setattr(writer_lock, "PATIENCE", 1.0)
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


def write(run: Path, **others: Any) -> Writer:
    """The lock of a writer that is like this process but for something."""
    writer = replace(Writer.this(), **others)
    (run / FILE).write_text(json.dumps(asdict(writer)))
    return writer


def test_the_second_one_is_told_of_the_first(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    host = Writer.this().host
    with pytest.raises(UserError, match=f"process {other.pid} on {host} is writing this run; wait until it has ended"):
        WriterLock.take(tmp_path)


def test_a_killed_one_is_no_obstacle(
    tmp_path: Path, other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_lock, "PATIENCE", 30.0)  # a busy machine needs a second for anything
    other.send_signal(signal.SIGKILL)  # and nobody waits for it: it stays as a zombie
    time.sleep(0.3)
    start = time.monotonic()
    WriterLock.take(tmp_path).release()
    assert time.monotonic() - start < writer_lock.PATIENCE, "of its own machine it is known at once"
    assert not list(tmp_path.iterdir())


def test_a_stopped_one_lives(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    other.send_signal(signal.SIGSTOP)
    with pytest.raises(UserError, match="is writing this run"):
        WriterLock.take(tmp_path)


def test_a_number_that_was_given_to_another_process(tmp_path: Path) -> None:
    write(tmp_path, started="long ago")
    WriterLock.take(tmp_path).release()


def test_a_dead_one_elsewhere_is_known_by_its_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, machine="another", host="node7", process=12)
    start = time.monotonic()
    lock = WriterLock.take(tmp_path)
    assert time.monotonic() - start >= writer_lock.PATIENCE
    assert "process 12 on node7 may be writing this run; looking for a sign of life" in capsys.readouterr().err
    assert not lock.is_lost
    lock.release()


def test_a_living_one_elsewhere(tmp_path: Path) -> None:
    writer = write(tmp_path, machine="another", host="node7", process=12)

    def beat() -> None:
        time.sleep(0.5)
        (tmp_path / FILE).write_text(json.dumps(asdict(replace(writer, pulse=5))))

    threading.Thread(target=beat).start()
    with pytest.raises(UserError, match="process 12 on node7 is writing this run"):
        WriterLock.take(tmp_path)


def test_a_job_that_slurm_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first start is over, on whichever node it was."""
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    write(tmp_path, machine="another")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    start = time.monotonic()
    WriterLock.take(tmp_path).release()
    assert time.monotonic() - start < writer_lock.PATIENCE


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 3}'])
def test_what_a_full_disk_left_of_it(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    WriterLock.take(tmp_path).release()


def test_a_writer_that_was_taken_for_dead_writes_no_more(tmp_path: Path) -> None:
    lock = WriterLock.take(tmp_path)
    deadline = time.monotonic() + 20
    while json.loads((tmp_path / FILE).read_text())["pulse"] < 2:
        assert time.monotonic() < deadline, "it has no pulse"
        time.sleep(0.02)
    lock.check()
    theirs = write(tmp_path, machine="another")
    while not lock.is_lost:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(UserError, match="another one took the run over"):
        lock.check()
    lock.release()
    assert json.loads((tmp_path / FILE).read_text())["token"] == theirs.token, "it is not ours to remove"


@pytest.mark.parametrize("round_", range(25))
def test_of_many_one_takes_over_a_dead_ones_run(tmp_path: Path, round_: int) -> None:
    """Whoever is slow must not take the new lock for the dead one's that it has read a moment ago."""
    write(tmp_path, started="long ago")
    taken: list[WriterLock] = []
    refused: list[UserError] = []
    together = threading.Barrier(8)

    def take() -> None:
        together.wait()
        try:
            taken.append(WriterLock.take(tmp_path))
        except UserError as error:
            refused.append(error)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), len(refused)) == (1, 7)
    taken[0].release()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pause", ["_read", "_write", "_acquire"])
def test_whoever_takes_over_slowly_takes_no_others_lock(
    tmp_path: Path, pause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One stands still at each step of taking a dead one's run over, while another one tries."""
    write(tmp_path, started="long ago")
    plain = getattr(writer_lock, pause)
    others: list[WriterLock | UserError] = []

    def other() -> None:
        try:
            others.append(WriterLock.take(tmp_path))
        except UserError as error:
            others.append(error)

    def slow(*arguments: Any) -> Any:
        value = plain(*arguments)
        if threading.current_thread() is threading.main_thread() and not others:
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        return value

    monkeypatch.setattr(writer_lock, pause, slow)
    try:
        others.append(WriterLock.take(tmp_path))
    except UserError as error:
        others.append(error)
    locks = [one for one in others if isinstance(one, WriterLock)]
    assert len(others) == 2
    assert len(locks) == 1
    locks[0].release()
    assert not list(tmp_path.iterdir())


def test_a_name_that_leaves_the_directory(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write(run, started="long ago", token="../outside")
    WriterLock.take(run).release()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert not list(run.iterdir())


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        WriterLock.take(tmp_path / "absent")
    assert os.listdir(tmp_path) == []
