"""What only a GPU can show, in one run of under four minutes: are the row kernels right there, how fast, how large?

    python -m benchmarks.gpu_check --out benchmarks/results/gpu_check_gpu.json
    python -m benchmarks.gpu_check --parts correctness       # some parts alone
    python -m benchmarks.gpu_check --tiny                    # on a CPU, by Triton's interpreter; times mean nothing

Parts, in this order, each in processes of its own that are ended when its share of `--limit` is over:

- correctness: every objective through `ChunkedEngine(kernels=True)`, statistics included, in float32 and bfloat16,
  against float64 on the CPU; races and NaNs of the kernels
- time: what a pass over the logits costs, the kernels by themselves, and heads forward and backward beside the three
  matrix products, plain cross-entropy, the public TS2 and the heads of TRL and Liger where these are installed
- steps: training steps of a model of 1B beside those of a plain loop
- memory: the most that each head allocates

Every result is a line of JSON as it comes, also in a `.jsonl` file beside `--out`, so that a run that is cut off has
its results; a table in Markdown ends it. The exit status is 0 if everything was right, 1 if a number was wrong or a
part failed or was cut off, 2 if nothing could be measured. A missed target of time or memory is told, but no failure.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import torch

from benchmarks.record import ROOT, about, write

LIMIT = 230.0
"""Seconds of a run: what takes no more than this fits a loan of four minutes."""

TINY_LIMIT = 1800.0

LEAST = 30.0
"""Seconds without which it is not worth while to try other layouts of the kernels."""

TINY_NOTE = "Tiny sizes on a CPU, in Triton's interpreter: the times mean nothing."

VOCABULARIES, TINY_VOCABULARIES = (128256, 32000, 1000), (300,)

TOLD = 3
"""Exit status of a job that has told what ended it."""

SHARES = {"correctness": 36, "time": 40, "steps": 15, "memory": 9}
"""Parts, in their order -> share of the time; what one leaves goes to those after it."""

Result = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A process of a part.

    Attributes:
        module: Module of `benchmarks.gpu`.
        function: Function of it.
        options: Options of the process.
        least: Seconds below which it is left out.
    """

    module: str
    function: str
    options: tuple[str, ...] = ()
    least: float = 0.0


def jobs_of(part: str, tiny: bool, objectives: Sequence[str], heads: Sequence[str]) -> list[list[Job]]:
    """The jobs of a part: those of an inner list run at the same time, for they are not timed."""
    names = ("--names", *heads) if heads else ()
    if part == "correctness":
        chosen = ("--names", *objectives) if objectives else ()
        sizes = TINY_VOCABULARIES if tiny else VOCABULARIES
        of_sizes = [("--vocabulary", str(size)) for size in sizes]
        every = [Job("correctness", "check", (*size, *chosen)) for size in of_sizes]
        return [[*every, *(Job("kernels", "check", size) for size in of_sizes)]]
    if part == "time":
        return [
            [Job("kernels", "measure")],
            [Job("timing", "measure", names)],
            [Job("kernels", "measure_layouts", least=LEAST)],
        ]
    return [[Job(part, "measure", names if part == "memory" else ())]]


class Run:
    """The results of a run as they come, on the screen, in files and by part.

    Args:
        out: The JSON file, or None; the lines go beside it.
    """

    def __init__(self, out: Path | None) -> None:
        self.out = out
        self.results: list[Result] = []
        self._lock = threading.Lock()
        self._lines: TextIO | None = None if out is None else out.with_suffix(".jsonl").open("w", encoding="utf-8")

    def take(self, line: str) -> None:
        """Takes a line that a job has printed; one that is no result is shown alone."""
        try:
            result = json.loads(line)
        except json.JSONDecodeError:
            result = None
        with self._lock:
            if not isinstance(result, dict):
                print(line, file=sys.stderr)
                return
            self.results.append(result)
            print(line, flush=True)
            if self._lines is not None:
                self._lines.write(line + "\n")
                self._lines.flush()

    def tell(self, **result: Any) -> None:
        """Takes a result of the run's own."""
        self.take(json.dumps(result))

    def save(self, figures: Mapping[str, Any]) -> None:
        """Writes the JSON file."""
        write(self.out, {**figures, "results": self.results})

    @property
    def wrong(self) -> list[Result]:
        """The results that are not right."""
        return [result for result in self.results if result.get("ok") is False]


def run_jobs(run: Run, part: str, jobs: Sequence[Job], tiny: bool, seconds: float) -> None:
    """Runs jobs at the same time, and ends those that take longer than some seconds."""
    until = time.time() + seconds
    started: list[tuple[Job, subprocess.Popen[str], threading.Thread, TextIO]] = []
    try:
        for job in jobs:
            process, errors = _start(job, part, tiny, until, len(jobs))
            reader = threading.Thread(target=_read, args=(process, run.take), daemon=True)
            reader.start()
            started.append((job, process, reader, errors))
        for job, process, reader, errors in started:
            why = None
            try:
                if process.wait(max(0.0, until - time.time())) not in (0, TOLD):
                    why = f"exit status {process.returncode}: {_last_line(errors)}"
            except subprocess.TimeoutExpired:
                _end(process)
                why = f"ended after {seconds:.0f} seconds, its share of the time"
            reader.join(5)
            if why is not None:
                run.tell(part=part, job=f"{job.module}.{job.function}", ok=False, failed=why)
    finally:
        for _, process, _, errors in started:
            _end(process)
            errors.close()


def _start(job: Job, part: str, tiny: bool, until: float, beside: int) -> tuple["subprocess.Popen[str]", TextIO]:
    """A job's process, and the file that its errors go to; it shares the cores with some others."""
    words = [sys.executable, "-m", "benchmarks.gpu", job.module, job.function, "--part", part, "--until", str(until)]
    errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  closed with its job
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // beside))}
    environment = threads | os.environ | ({"TRITON_INTERPRET": "1"} if tiny else {})
    process = subprocess.Popen(
        [*words, *(["--tiny"] if tiny else []), *job.options], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
    )  # fmt: skip
    return process, errors


def _read(process: "subprocess.Popen[str]", take: Callable[[str], None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        take(line.rstrip("\n"))


def _end(process: "subprocess.Popen[str]") -> None:
    """Ends a job and what it has started, if it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_line(errors: TextIO) -> str:
    errors.seek(0)
    lines = [line.strip() for line in errors if line.strip()]
    return lines[-1][:300] if lines else "no message"


# -- the table


def tables(results: Sequence[Result]) -> str:
    """The results in Markdown, a table of each kind; what matters most comes last, where a terminal shows it."""
    sections = [
        ("Worst errors, in units of what is right", [r for r in results if "quantity" in r]),
        ("Kernels, right", [r for r in results if r.get("part") == "correctness" and r.get("ok") and "kernel" in r]),
        ("Kernels, time", [r for r in results if r.get("part") == "time" and "kernel" in r and "ms" in r]),
        ("Heads, forward and backward", [r for r in results if "head" in r and "ms" in r]),
        ("Training steps", [r for r in results if r.get("part") == "steps" and r.get("ok") is not False]),
        ("Memory", [r for r in results if "peak_gb" in r]),
        ("Left out", [r for r in results if "left_out" in r]),
        ("Targets", [r for r in results if "target" in r]),
        ("Wrong, failed or cut off", [r for r in results if r.get("ok") is False]),
    ]
    return "\n\n".join(f"### {title}\n\n{_markdown(rows)}" for title, rows in sections if rows)


def _markdown(rows: Sequence[Result]) -> str:
    """A table with a column for each name that any of the rows has."""
    names = dict.fromkeys(name for row in rows for name in row if not name.endswith(("_p25", "_p75")))
    columns = [name for name in names if name != "part" or len({row.get("part") for row in rows}) > 1]
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    lines += ["| " + " | ".join(_cell(row, name) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(row: Result, name: str) -> str:
    """A value, with its quartiles if it has some."""
    value = row.get(name)
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    text = "" if value is None else f"{value:,.4g}" if isinstance(value, float) and math.isfinite(value) else str(value)
    if f"{name}_p25" in row:
        text += f" ({row[f'{name}_p25']:.4g} - {row[f'{name}_p75']:.4g})"
    return text.replace("|", "\\|")


# -- the command


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on the CPU; its times mean nothing")
    parser.add_argument("--parts", nargs="+", choices=list(SHARES), default=list(SHARES), help="default: all")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file, after every part")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help=f"of the run; default: {LIMIT:.0f}")
    parser.add_argument("--objectives", nargs="+", default=[], help="in the first part; default: all")
    parser.add_argument("--heads", nargs="+", default=[], help="in the second and fourth part; default: all")
    options = parser.parse_args(argv)
    if options.limit is not None and not options.limit > 0:
        parser.error(f"--limit: must be above 0, got {options.limit:g}")
    if options.out is not None and not options.out.parent.is_dir():
        parser.error(f"--out: {options.out.parent} is no directory")
    return options


def run_parts(run: Run, options: argparse.Namespace) -> dict[str, float]:
    """Runs the parts, each with its share of what is left; returns the seconds of each."""
    until = time.time() + (options.limit or (TINY_LIMIT if options.tiny else LIMIT))
    seconds: dict[str, float] = {}
    parts = [part for part in SHARES if part in options.parts]
    for place, part in enumerate(parts):
        before = time.time()
        part_until = before + (until - before) * SHARES[part] / sum(SHARES[name] for name in parts[place:])
        for jobs in jobs_of(part, options.tiny, options.objectives, options.heads):
            left = max(1.0, part_until - time.time())
            if left < max(job.least for job in jobs):
                run.tell(part=part, job=f"{jobs[0].module}.{jobs[0].function}", left_out="no time was left")
            else:
                run_jobs(run, part, jobs, options.tiny, left)
        seconds[part] = round(time.time() - before, 1)
        run.save({"tiny": options.tiny, "seconds": seconds})
    return seconds


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # so that no job outlives the run


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts, prints and writes; returns the exit status."""
    options = parse(argv)
    if not (options.tiny or torch.cuda.is_available()):
        print("gpu_check: there is no CUDA device here; --tiny tries the same code on the CPU", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _interrupted)
    run = Run(options.out)
    run.tell(**about(), tiny=options.tiny, note=TINY_NOTE if options.tiny else "")
    seconds = run_parts(run, options)
    text = tables(run.results)
    print(f"\n{text}\n")
    if options.out is not None:
        options.out.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    missed = [str(result["target"]) for result in run.results if result.get("met") is False]
    times = ", ".join(f"{part} {spent:g} s" for part, spent in seconds.items())
    print(f"{len(run.results)} results, {len(run.wrong)} wrong or failed; targets missed: {len(missed)}; {times}")
    if options.tiny:
        print(TINY_NOTE)
    return 1 if run.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
