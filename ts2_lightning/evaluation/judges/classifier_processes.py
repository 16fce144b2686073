"""A process for each device, in which a model classifies texts: rows of token ids a line go in, numbers come out.

First line in: arguments of `Classifier`. First line out: `{"ready": true}` or `{"error": ...}`. Then batches,
`{"rows": [...]}`, and their numbers, `{"numbers": [...], "batch_size": ...}`. None outlives the process that has
started it.
"""

import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import IO, Any, cast

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from ts2_lightning.generation.backends.vllm_worker import die_with_the_parent, in_a_line
from ts2_lightning.types import UserError

_ROOT = Path(__file__).resolve().parents[3]
_LOG_BYTES, _LOG_LINES, _LINE_LENGTH = 2**14, 3, 300
Batch = list[tuple[int, list[float]]]
"""Places of rows with their numbers."""


class Workers:
    """Processes that share rows.

    Args:
        arguments: arguments of `Classifier` for each process.
    """

    def __init__(self, arguments: Sequence[Mapping[str, Any]]) -> None:
        self._workers = [_Worker(of_one) for of_one in arguments]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._at_exit = weakref.finalize(self, _end, self._workers)

    def batches(self, rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[Batch]:
        """The numbers of rows, a batch at a time, as they come; the longest rows are begun with.

        Args:
            rows: token ids of each text.
            batch_size: number of rows that a process gets at a time.

        Raises:
            UserError: a model that cannot be loaded, or a process that has died.
        """
        order = sorted(range(len(rows)), key=lambda place: (-len(rows[place]), place))
        cut = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        with ThreadPoolExecutor(len(self._workers)) as threads:
            asked = [threads.submit(self._ask, places, [rows[place] for place in places]) for places in cut]
            try:
                for done in as_completed(asked):
                    yield done.result()
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                self.close()  # what threads wait for comes to an end
                raise

    def _ask(self, places: Sequence[int], rows: Sequence[Sequence[int]]) -> Batch:
        worker = self._idle.get()
        try:
            return list(zip(places, worker.ask(rows), strict=True))
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Ends the processes."""
        self._at_exit()


class _Worker:
    """One process, in a session of its own: Ctrl-C reaches its parent only."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ts2_lightning.evaluation.judges.classifier_processes"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, start_new_session=True,
        )  # fmt: skip
        self._arguments = arguments
        self._batch_size: int = arguments["batch_size"]
        self._is_ready = False
        self._lock, self._ended = Lock(), ""

    def ask(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """The numbers of rows, in their order."""
        if not self._is_ready:
            self._exchange(self._arguments)
            self._is_ready = True
        answer = self._exchange({"rows": rows})
        if answer["batch_size"] < self._batch_size:
            self._batch_size = answer["batch_size"]
            rank_zero_warn(
                f"{self._arguments['device']}: out of memory: batch_size is {self._batch_size:,} from here on; nothing "
                "is lost"
            )
        return cast(list[list[float]], answer["numbers"])

    def _exchange(self, value: Mapping[str, Any]) -> dict[str, Any]:
        source, target = cast(IO[bytes], self._process.stdout), cast(IO[bytes], self._process.stdin)
        with suppress(BrokenPipeError):  # it is dead, which is noticed when nothing comes
            target.write(json.dumps(value).encode() + b"\n")
            target.flush()
        try:
            answer: dict[str, Any] = json.loads(source.readline())
        except ValueError:
            where = f"{self._arguments['place']} on {self._arguments['device']}"
            raise UserError(
                f"the process of {where} has ended ({self.end()}); the same command goes on where it was"
            ) from None
        if "error" in answer:
            raise UserError(answer["error"])
        return answer

    def end(self) -> str:
        """Kills it. Returns how it ended, with the last lines of its log, in one line; the same to all that ask."""
        with self._lock:  # whoever waits for it, and whoever ends all of them
            self._ended = self._ended or self._end()
        return self._ended

    def _end(self) -> str:
        self._process.kill()
        status = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                cast(IO[bytes], pipe).close()
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - _LOG_BYTES))
        lines = [" ".join(line.split()) for line in self._log.read().decode(errors="replace").splitlines()]
        last = " | ".join(line[:_LINE_LENGTH] for line in [line for line in lines if line][-_LOG_LINES:])
        self._log.close()
        return f"exit status {status}; its log ends: {last}" if last else f"exit status {status}; its log is empty"


def _end(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.end()


def main() -> None:
    """What runs in each process."""
    die_with_the_parent()
    from ts2_lightning.evaluation.judges.classifier import Classifier  # here: it imports this module

    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print goes to the log

    def say(value: Mapping[str, Any]) -> None:
        target.write(json.dumps(value).encode() + b"\n")
        target.flush()

    try:
        classifier = Classifier(**json.loads(source.readline()))
        say({"ready": True})
        for line in source:
            rows = json.loads(line)["rows"]
            numbers = dict(pair for batch in classifier.batches(rows) for pair in batch)
            say({"numbers": [numbers[place] for place in range(len(rows))], "batch_size": classifier.batch_size})
    except UserError as error:
        say({"error": str(error)})
    except Exception as error:
        say({"error": f"in a process of the judge: {in_a_line(error)}"})
        raise


if __name__ == "__main__":
    main()
