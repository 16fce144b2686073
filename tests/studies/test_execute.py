"""The parts of running a grid: locks, processes, what is left to do, the loop, the table."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from rich.console import Console

from ts2_lightning.callbacks import Stopped
from ts2_lightning.runs.process_lock import FILE, ProcessLock, is_orphaned, is_taken
from ts2_lightning.studies.execute import local, processes
from ts2_lightning.studies.execute.board import Board
from ts2_lightning.studies.execute.local import environments, run_locally, shares
from ts2_lightning.studies.execute.processes import Processes, last_words
from ts2_lightning.studies.execute.task import (
    FAILED,
    Failure,
    Task,
    fit_options,
    forget_failure,
    is_trained,
    progress,
    read_failure,
    tasks_of,
    write_failure,
)
from ts2_lightning.studies.grid import BaseModel, Grid, Point, Training
from ts2_lightning.types import UserError

STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in_command.py")))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which the commands are stand-ins."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "_COMMAND", STAND_IN)
    monkeypatch.setattr(local, "SECONDS", 0.05)
    return tmp_path


def task(name: str, *options: str, specs: tuple[dict[str, Any], ...] = ({},)) -> Task:
    return Task(name, Path("runs", "g", name), ("--name", f"g/{name}", "--runs_dir", "runs", *options), "", specs)


def run(tasks: list[Task], parallel: int = 2, log: io.StringIO | None = None) -> tuple[list[Failure], list[str]]:
    """What failed, and what a log would show."""
    log = log or io.StringIO()
    with Board(tasks, parallel, Console(file=log)) as board:
        return run_locally(tasks, parallel, board), log.getvalue().splitlines()


def starts() -> list[str]:
    return [line.strip() for line in Path("starts.txt").read_text().splitlines()]


# --- locks and processes ----------------------------------------------------------------------------------------------


def test_a_lock_is_had_once_and_as_long_as_a_child_has_it(tmp_path: Path) -> None:
    lock = ProcessLock.take(tmp_path / "run")
    assert ProcessLock.take(tmp_path / "run") is None
    assert is_taken(tmp_path / "run")
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[lock.descriptor])
    lock.release()
    assert ProcessLock.take(tmp_path / "run") is None, "the child still has it"
    child.communicate()
    again = ProcessLock.take(tmp_path / "run")
    again.release()
    (tmp_path / "run" / FILE).chmod(0o444)
    assert not is_taken(tmp_path / "run")
    assert not is_taken(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists(), "to look leaves nothing behind"


def test_whose_lock_it_is(tmp_path: Path) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    lock = ProcessLock.take(tmp_path)
    assert not is_orphaned(tmp_path), "this process is there"
    host = (tmp_path / FILE).read_text().split()[0]
    for text, orphaned in ((f"{host} {gone.stdout}", True), (f"other {gone.stdout}", False), ("", False)):
        (tmp_path / FILE).write_text(text)
        assert is_orphaned(tmp_path) is orphaned, text
    lock.release()


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        ("step 1\nerror: data.train: no such file\n", 2, "data.train: no such file"),
        ("[rank 1] error: it hung\n[rank 0] error: it hung too\ntail\n", 124, "it hung too"),
        (
            'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\nKeyError: 1\n\n'
            "During handling of the above exception, another exception occurred:\n\n"
            'Traceback (most recent call last):\n  File "a.py", line 3\n    f(\n      1)\n    ~~^\n'
            "ValueError: first line\n  and more of it\n",
            1,
            "ValueError: first line",
        ),
        ('[rank1]: Traceback (most recent call last):\n[rank1]:   File "a"\n[rank1]: OSError: x\n', 1, "OSError: x"),
        ("10%\r20%\rstopped by SIGTERM: newest\n\n", 143, "stopped by SIGTERM: newest"),
        ("", 3, "exit status 3, and it said nothing"),
        ("error: of this start\n", -9, "killed by SIGKILL, as a machine that is out of memory does"),
        ("", -11, "killed by SIGSEGV"),
    ],
)
def test_the_last_words(tmp_path: Path, said: str, status: int, words: str) -> None:
    log = tmp_path / "fit.log"
    log.write_text("error: of an earlier start\n")
    offset = log.stat().st_size
    with log.open("a") as stream:
        stream.write(said)
    assert last_words(log, offset, status) == words


def test_a_process_ends_with_all_that_it_started(tmp_path: Path) -> None:
    """The child leaves a grandchild, which has the end of a pipe: there is nothing more to read once it is gone."""
    reading, writing = os.pipe()
    command = ["bash", "-c", "sleep infinity & exit 3"]
    assert Processes().run(command, tmp_path / "log", dict(os.environ), [writing]) == 3
    os.close(writing)
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_nothing_starts_after_a_stop(tmp_path: Path) -> None:
    processes = Processes()
    processes.stop(signal.SIGTERM)
    assert processes.run(["touch", str(tmp_path / "file")], tmp_path / "log", dict(os.environ)) is None
    assert not (tmp_path / "file").exists()


# --- what is left to do -----------------------------------------------------------------------------------------------


def attempt(task: Task, number: int, state: str | None, *steps: int) -> None:
    """What an attempt has left behind."""
    directory = task.directory / str(number)
    (directory / "checkpoints").mkdir(parents=True)
    (directory / "config.yaml").touch()
    for step in steps:
        with zipfile.ZipFile(directory / "checkpoints" / f"step-{step:06d}.ckpt", "w") as file:
            file.writestr("content", "")
    if state is not None:
        (directory / "state.json").write_text(json.dumps({"state": state, "step": 2, "steps": 3, "seconds": 1.0}))


@pytest.mark.parametrize(
    ("attempts", "trained", "resumed"),
    [
        ([], False, None),
        ([("running", (1, 2))], False, "1/checkpoints/step-000002.ckpt"),
        ([("stopped", (1,))], False, "1/checkpoints/step-000001.ckpt"),
        ([("running", ())], False, None),
        ([(None, ())], False, None),
        ([("failed", (1, 2))], False, None),
        ([("finished", (3,)), ("running", (1,))], False, "2/checkpoints/step-000001.ckpt"),
        ([("failed", (1,)), ("finished", (3,))], True, None),
    ],
)
def test_what_a_next_start_does(here: Path, attempts: list[Any], trained: bool, resumed: str | None) -> None:
    """The newest attempt counts; killed or stopped it goes on, failed it begins anew, as code may have been mended."""
    one = task("one")
    for number, (state, steps) in enumerate(attempts, 1):
        attempt(one, number, state, *steps)
    assert is_trained(one) is trained
    if not trained:
        more = ["--ckpt_path", str(one.directory / resumed)] if resumed else []
        assert fit_options(one) == [*one.options, *more]


def test_from_weights_alone_a_training_begins_anew(here: Path) -> None:
    """`fit` refuses to go on from a checkpoint of `Checkpoints(save_weights_only=True)`, at every next start."""
    one = task("one")
    attempt(one, 1, "stopped")
    checkpoint = one.directory / "1/checkpoints/step-000001.ckpt"
    content = {"pytorch-lightning_version": "2", "loops": {}, "global_step": 1, "state_dict": {}}
    torch.save(content, checkpoint)
    assert fit_options(one) == list(one.options)
    torch.save(content | {"optimizer_states": [], "lr_schedulers": []}, checkpoint)
    assert fit_options(one) == [*one.options, "--ckpt_path", str(checkpoint)]


def test_the_first_failure_is_kept_until_it_is_tried_again(here: Path) -> None:
    one = task("one")
    one.directory.mkdir(parents=True)
    assert read_failure(one) is None
    first = Failure("fit", 1, "the first rank's", "fit-rank-1.log", "one")
    write_failure(one, first)
    write_failure(one, Failure("fit", 2, "the others then failed too", "fit.log", "one"))
    assert read_failure(one) == first
    assert json.loads((one.directory / FAILED).read_text()) == {
        "stage": "fit", "status": 1, "message": "the first rank's", "log": "fit-rank-1.log",
    }  # fmt: skip
    forget_failure(one)
    assert read_failure(one) is None
    assert list(one.directory.iterdir()) == [], "nothing is left beside it"
    for damaged in ("{", "[]", '{"stage": "fit"}'):
        (one.directory / FAILED).write_text(damaged)
        found = read_failure(one)
        assert found is not None, damaged
        assert (found.message, found.log) == ("failed.json is damaged", "runs/g/one/failed.json")


def grid(*points: Point, base: BaseModel | None = None) -> Grid:
    return Grid("g", Path("g.yaml"), Path("runs"), "", None, {}, (0,), points, base, {}, None)


def point(name: str, measure: dict[str, Any], seed: int = 0, training: str = "", **trainer: Any) -> Point:
    made = Training(f"g/{training or name}", training or name, ("--name", name), {"trainer": trainer})
    return Point({"objective": name}, seed, made, measure)


def test_a_shared_training_is_one_task() -> None:
    base = BaseModel("base", "toyworld", {"toyworld": {}}, "base-12345678")
    soft = point("TS2", {"validation": {}}, training="shared", devices=4, num_nodes=2, accelerator="gpu")
    sparse = point("sparse", {"decoding": "sparsemax"}, training="shared", devices=4, num_nodes=2)
    other = point("CE", {"validation": {}}, seed=1, devices="auto", accelerator="cpu")
    first, shared, alone = tasks_of(grid(soft, other, sparse, soft, base=base), (soft, other, sparse, soft), "cpu")
    assert (first.title, first.options, first.model, first.on_gpu) == ("base", (), "toyworld", True)
    assert (first.directory, first.config) == (Path("runs/g/base-12345678"), "runs/g/base-12345678.yaml")
    assert shared.title == "objective=TS2 / objective=sparse, seed 0"
    assert shared.specs == ({"validation": {}}, {"decoding": "sparsemax"}), "each once"
    assert (shared.directory, shared.processes, shared.on_gpu) == (Path("runs/g/shared"), (2, 4), True)
    assert (alone.title, alone.processes, alone.on_gpu, alone.device) == ("objective=CE, seed 1", None, False, "cpu")


def test_the_title_of_a_training_that_is_measured_at_several_temperatures_is_short() -> None:
    points = [
        replace(point("TS2", {"toyworld_decoded": {"temperature": float(t)}}), labels={"objective": "TS2", "T": t})
        for t in ("0.6", "1")
    ]
    (task,) = tasks_of(grid(*points), points)
    assert task.title == "objective=TS2 T=0.6/1, seed 0"
    assert len(task.specs) == 2


# --- the loop ---------------------------------------------------------------------------------------------------------


def test_a_failed_run_does_not_stop_the_others(here: Path) -> None:
    tasks = [
        task("one", specs=({"validation": {}}, {"decoding": "sparsemax"})),
        task("broken", "--raises", "1"),
        task("unmeasured", specs=({"validation": {"limit": 1}},)),
        Task("base", Path("runs/g/base"), (), "toyworld", ({},), config="runs/g/base.yaml"),
        task("two"),
    ]
    failures, log = run(tasks)
    assert sorted((failure.title, failure.stage, failure.status, failure.message) for failure in failures) == [
        ("broken", "fit", 1, "ValueError: a broken setting"),
        ("unmeasured", "measure", 2, "no such rows"),
    ]
    assert log[0].startswith("[0/5] ")
    assert any(line.endswith("broken: failed: ValueError: a broken setting (runs/g/broken/fit.log)") for line in log)
    assert sum(line.startswith("[3/5] ") and line.endswith(": done") for line in log) == 1
    assert Path("runs/g/one/1/measured.txt").read_text().splitlines() == list(map(json.dumps, tasks[0].specs))
    assert Path("runs/g/base/measured.txt").exists()
    said = Path("runs/g/base/measure.log").read_text()
    assert "measure toyworld --out runs/g/base --config runs/g/base.yaml --spec" in said, "it is no run: whose rows?"
    assert "fit --name g/broken" in Path("runs/g/broken/fit.log").read_text(), "with its command"

    Path("starts.txt").unlink()
    failures, _ = run(tasks)
    assert len(failures) == 2
    assert "measure runs/g/two/1" in starts(), "once for all that have the same measures"
    again = [line for line in starts() if line.startswith("fit")]
    assert again == ["fit g/broken"], "what has failed is tried again, from its beginning, and nothing else"
    assert Path("runs/g/broken/2/state.json").exists()


def test_a_file_that_cannot_be_written_is_the_failure_of_its_run(here: Path) -> None:
    """As on a disk that is full: the others go on."""
    one, two = task("one"), task("two", "--gate", "gate")
    (one.directory / "fit.log").mkdir(parents=True)
    with meanwhile(lambda: waiting("two"), Path("gate").touch):
        failures, log = run([one, two])
    (failure,) = failures
    assert (failure.title, failure.stage, failure.log) == ("one", "fit", "runs/g/one/fit.log")
    assert failure.message.startswith("IsADirectoryError: ")
    assert any("one: failed: IsADirectoryError" in line for line in log)
    assert is_trained(two)
    assert not is_taken(one.directory)


@contextmanager
def meanwhile(when: Callable[[], bool], then: Callable[[], object]) -> Iterator[None]:
    """Does something once something holds."""
    over = threading.Event()

    def watch() -> None:
        while not when() and not over.wait(0.01):
            pass
        if not over.is_set():
            then()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def waiting(*names: str) -> bool:
    """Whether runs are at their gate."""
    states = [Path(f"runs/g/{name}/1/state.json") for name in names]
    return all(state.exists() and '"step": 2' in state.read_text() for state in states)


def test_no_more_than_so_many_at_a_time(here: Path) -> None:
    """Two of two places are taken by runs that wait; the third begins when one of them is through."""
    tasks = [task("one", "--gate", "gate"), task("two", "--gate", "gate"), task("three")]
    seen: list[bool] = []

    def open_gate() -> None:
        seen.append(tasks[2].directory.exists())
        Path("gate").touch()

    with meanwhile(lambda: waiting("one", "two"), open_gate):
        failures, _ = run(tasks)
    assert failures == []
    assert seen == [False]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_end_the_runs_save_and_end(here: Path, number: int) -> None:
    tasks = [task(name, "--gate", "gate") for name in ("one", "two", "three")]
    before = signal.getsignal(number)
    with (
        meanwhile(lambda: waiting("one", "two"), lambda: os.kill(os.getpid(), number)),
        pytest.raises(Stopped) as stopped,
    ):
        run(tasks)
    assert stopped.value.signal == number
    assert signal.getsignal(number) == before
    assert [(progress(one)["state"], progress(one)["step"]) for one in tasks[:2]] == [("stopped", 2)] * 2
    assert not tasks[2].directory.exists()
    assert [read_failure(one) for one in tasks] == [None, None, None], "to be told to end is no failure"
    assert not any(is_taken(one.directory) for one in tasks), "no process is left"

    Path("starts.txt").unlink()
    Path("gate").touch()
    assert run(tasks, 1)[0] == []
    trained = [line for line in starts() if line.startswith("fit")]
    assert trained == ["fit g/one again", "fit g/two again", "fit g/three"]


def test_a_second_ctrl_c_kills(here: Path) -> None:
    """The run does not hear the first one."""
    deaf, log = task("one", "--gate", "gate", "--deaf", "true"), io.StringIO()

    def press() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with (
        meanwhile(lambda: waiting("one"), press),
        meanwhile(lambda: "stopping: " in log.getvalue(), press),
        pytest.raises(Stopped),
    ):
        run([deaf], log=log)
    assert not is_taken(deaf.directory), "no process is left"
    assert read_failure(deaf) is None
    Path("gate").touch()
    assert run([deaf])[0] == []
    assert starts() == ["fit g/one", "fit g/one again", "measure runs/g/one/1"], "from its newest checkpoint"


def test_a_run_that_is_killed_goes_on_the_next_time(here: Path) -> None:
    """`kill -9`, as a machine that is out of memory does: the run has failed, and continues from its checkpoint."""
    one, two = task("one", "--gate", "gate"), task("two")

    def kill() -> None:
        (process,) = (child for child in psutil.Process().children() if "g/one" in child.cmdline())
        process.kill()

    with meanwhile(lambda: waiting("one"), kill):
        failures, _ = run([one, two], 1)
    assert [(failure.title, failure.status) for failure in failures] == [("one", -signal.SIGKILL)]
    assert "killed by SIGKILL, as a machine that is out of memory does" in failures[0].message
    assert is_trained(two)
    Path("gate").touch()
    assert run([one, two])[0] == []
    assert [line for line in starts() if "g/one" in line] == ["fit g/one", "fit g/one again", "measure runs/g/one/1"]


def test_what_another_does_is_waited_for(here: Path) -> None:
    """An earlier `ablate` was killed; its fit goes on, has the lock, and is waited for; nothing trains twice."""
    one, two = task("one", "--gate", "gate"), task("two")
    lock = ProcessLock.take(one.directory)
    orphan = subprocess.Popen([*STAND_IN, "fit", *one.options], pass_fds=[lock.descriptor])
    lock.release()
    with meanwhile(Path("runs/g/two/1/measured.txt").exists, Path("gate").touch):
        failures, log = run([one, two], 1)
    assert orphan.wait() == 0
    assert failures == []
    assert [line.partition("] ")[2] for line in log] == [
        "one: running elsewhere", "two: running", "two: measuring", "two: done", "one: measuring", "one: done",
    ]  # fmt: skip
    assert sorted(starts()) == sorted(["fit g/one", "fit g/two", "measure runs/g/one/1", "measure runs/g/two/1"])


def test_what_another_fails_at_is_told_and_not_tried_again(here: Path) -> None:
    one, two = task("one"), task("two", "--gate", "gate")
    lock = ProcessLock.take(one.directory)

    def fail() -> None:
        write_failure(one, Failure("fit", 1, "it broke there", "fit.log", "one"))
        lock.release()
        Path("gate").touch()

    with meanwhile(lambda: waiting("two"), fail):
        failures, log = run([one, two])
    assert [failure.message for failure in failures] == ["it broke there"]
    assert any("one: failed: it broke there" in line for line in log)
    assert not any("g/one" in line for line in starts())


def test_orphans_take_places(here: Path) -> None:
    """Of two runs at a time one is still that of an `ablate` that is gone: only one more begins."""
    one, two, three = task("one"), task("two", "--gate", "gate"), task("three")
    lock = ProcessLock.take(one.directory)
    gone = subprocess.Popen(["true"])
    gone.wait()
    host = (one.directory / FILE).read_text().split()[0]
    (one.directory / FILE).write_text(f"{host} {gone.pid}\n")
    seen: list[bool] = []

    def go_on() -> None:
        seen.append(three.directory.exists())
        lock.release()
        Path("gate").touch()

    with meanwhile(lambda: waiting("two"), go_on):
        failures, _ = run([one, two, three])
    assert failures == []
    assert seen == [False]


def test_cores_and_gpus_are_dealt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "elsewhere")
    monkeypatch.setenv("MASTER_PORT", "29500")
    one = [task("one")]
    dealt = environments(one, 2)
    assert [(share["OMP_NUM_THREADS"], share["CUDA_VISIBLE_DEVICES"]) for share in dealt] == [("4", "4"), ("4", "5")]
    assert [share.keys() & {"MASTER_ADDR", "MASTER_PORT"} for share in dealt] == [set(), set()], "two fits would meet"
    assert [share["CUDA_VISIBLE_DEVICES"] for share in environments(one, 1)] == ["4,5,7"]
    assert [share["OMP_NUM_THREADS"] for share in environments(one, 16)] == ["1"] * 16
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert {share["OMP_NUM_THREADS"] for share in environments(one, 2)} == {"3"}
    assert shares([], 2) == [[], []]


def test_cores_are_dealt_among_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def threads(*processes: tuple[int, int] | None, on_gpu: bool = False) -> set[str]:
        tasks = [replace(task("one"), processes=count, on_gpu=on_gpu) for count in processes]
        return {share["OMP_NUM_THREADS"] for share in environments(tasks, 2)}

    assert threads((1, 1), (1, 4)) == {"2"}, "the same for all"
    assert threads(None) == {"8"}, "on the CPU it is one"
    assert threads(None, on_gpu=True) == {"4"}, "one for each of its two GPUs"


def test_runs_that_need_more_gpus_than_their_share_are_not_begun(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    two = replace(task("two"), processes=(1, 2), on_gpu=True)
    with pytest.raises(UserError, match=r"^--parallel 3: these runs need 2 GPUs each and there are 4; --parallel 2$"):
        run([task("one"), two], 3)
    assert not Path("runs").exists()
    assert [share["CUDA_VISIBLE_DEVICES"] for share in environments([two], 2)] == ["0,1", "2,3"]
    eight = replace(two, processes=(1, 8))
    with pytest.raises(UserError, match=r"need 8 GPUs each and there are 4; set trainer.devices, or use --slurm$"):
        environments([eight], 1)
    assert len(environments([replace(eight, on_gpu=False)], 4)) == 4, "the CPU is not dealt"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert [share["CUDA_VISIBLE_DEVICES"] for share in environments([two], 2)] == ["-1", "-1"], "hidden: on the CPU"


# --- the table --------------------------------------------------------------------------------------------------------


def drawn(board: Board, console: Console) -> list[str]:
    with console.capture() as captured:
        console.print(board.table())
    return [line.rstrip() for line in captured.get().splitlines()]


def test_the_table(here: Path) -> None:
    tasks = [task(f"run-{number:02d}") for number in range(30)]
    console = Console(file=io.StringIO(), width=100, height=17, force_terminal=True, color_system=None)
    board = Board(tasks, 2, console)
    for done in tasks[:20]:
        board.tell(done, "done")
    attempt(tasks[20], 1, "running")
    attempt(tasks[21], 1, "running")
    (tasks[20].directory / "1" / "state.json").write_text(
        json.dumps(
            {"state": "running", "step": 50, "steps": 200, "seconds": 20.0, "objective": 1.23456}
            | {"val_cross_entropy": 2.5, "epoch": 0, "updated": 0}
        )
    )
    (tasks[21].directory / "1" / "state.json").write_text(json.dumps({"state": "stopped", "step": 1}))
    board.tell(tasks[20], "running")
    board.tell(tasks[21], "running")
    board.tell(tasks[25], "failed")
    lines = drawn(board, console)
    assert len(lines) < 17, "all of it is on the screen"
    assert lines[0].split() == ["run", "state", "step", "objective", "val", "CE", "left"]
    rows = [line.split() for line in lines[1:] if line.startswith("run-")]
    assert ["run-20", "running", "50/200", "1.235", "2.5", "01:00"] in rows
    assert ["run-21", "running"] in rows, "what an earlier attempt has left is not shown"
    assert ["run-25", "failed"] in rows
    assert ["run-00", "done"] not in rows, "what is done makes place for what is not"
    assert "1 failed, 2 running, 7 waiting, 20 done of 30; 04:00 left" in lines, "(60 s + 7 runs of 60 s) / 2 at a time"
