r"""Mathematical answers: the last \boxed{} of a response, and whether it equals the reference answer.

math-verify (extra `math`) compares them. It runs only in processes of its own: its time limits need the main thread,
some comparisons hang in compiled code, and a process can be killed.
"""

import json
import re
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import IO, NamedTuple, Self, cast

from ts2_lightning.evaluation.answers.numbers import parse_number
from ts2_lightning.ranges import COUNT, NOT_NEGATIVE, POSITIVE, check_number
from ts2_lightning.types import UserError

_LONGEST = 2_000  # characters of an answer that is compared
_START_SECONDS = 120.0  # a worker may take to import sympy on a busy machine
_WORKER = Path(__file__).with_name("mathematics_worker.py")

_TOKEN = re.compile(r"(?P<box>\\{1,4}(?:f?boxed|fbox)\s{0,9}\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed\s{1,9}([^\s{}$\\][^\s{}$]{0,99})")


def last_boxed(text: str) -> str | None:
    r"""What is inside the last `\boxed{}` (or `\fbox{}`) of a text that is closed, with balanced braces.

    Args:
        text: response of the model, of any length: it is read once.

    Returns:
        The inside without outer spaces; of nested boxes that of the inner one. None if there is no box.

    Example:
        >>> last_boxed(r"First \boxed{1}, so $\boxed{\frac{1}{2}}$, not \boxed{3")
        '\\frac{1}{2}'
        >>> last_boxed(r"\boxed 7$"), last_boxed("7")
        ('7', None)
    """
    opened: list[int] = []  # where the inside of each open box begins; -1 for other braces
    best = (-1, -1)
    for token in _TOKEN.finditer(text):
        if token["box"]:
            opened.append(token.end())
        elif token["open"]:
            opened.append(-1)
        elif token["close"] and opened:
            best = max(best, (opened.pop(), token.start()))
    if best[0] >= 0:
        return text[best[0] : best[1]].strip()
    bare = deque(_BARE_BOX.finditer(text), maxlen=1)
    return bare[0][1] if bare else None


def equal_within(gold: str, answer: str, tolerance: float = 0.01) -> bool:
    r"""Whether two numbers with units are equal up to a relative tolerance, as answers of physics need it.

    Units are not compared. Scientific notation and fractions are read.

    Args:
        gold: reference answer.
        answer: answer of the model.
        tolerance: largest difference as a share of the reference.

    Example:
        >>> equal_within("4.5e33", r"4.49 \times 10^{33} \text{ erg/s}"), equal_within("1.6", "1.7 m")
        (True, False)
    """
    check_number("tolerance", tolerance, NOT_NEGATIVE)
    expected, read = parse_number(gold), parse_number(answer)
    if expected is None or read is None:
        return False
    return abs(read - expected) <= Fraction(tolerance) * abs(expected)


class Verdict(NamedTuple):
    """What a comparison says.

    Attributes:
        equal: whether the answer equals the reference.
        note: empty, or why there was no comparison: the answer counts as wrong.
    """

    equal: bool
    note: str = ""


def require_math_verify() -> None:
    """Raises a `UserError` unless math-verify is installed. It is not imported."""
    if find_spec("math_verify") is None:
        raise UserError("math-verify is not installed: pip install 'ts2-lightning[math]'")


class MathVerifier:
    r"""Compares mathematical answers in worker processes, each pair once.

    A worker that has no verdict in time is killed and another one started; no answer can stop the others.

    Args:
        workers: processes that compare at the same time.
        seconds: time limit of one pair; a usual one takes a twentieth of a second.

    Raises:
        UserError: math-verify is not installed, or an argument is out of its range.

    Example:
        >>> with MathVerifier() as verifier:  # doctest: +SKIP
        ...     verifier.verify([(r"\frac{1}{2}", "0.5"), ("2", "3")])
        [Verdict(equal=True, note=''), Verdict(equal=False, note='')]
    """

    def __init__(self, workers: int = 1, seconds: float = 20.0) -> None:
        check_number("workers", workers, COUNT)
        check_number("seconds", seconds, POSITIVE)
        require_math_verify()
        self._limit, self._seconds = workers, seconds
        self._workers: list[_Worker] = []
        self._verdicts: dict[tuple[str, str], Verdict] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers."""
        while self._workers:
            self._workers.pop().stop()

    def verify(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Compares answers with references.

        Args:
            pairs: reference and answer of each comparison, as LaTeX or plain text.

        Returns:
            The verdicts, in the order of the pairs.
        """
        plain = [(_unwrapped(gold), _unwrapped(answer)) for gold, answer in pairs]
        waiting = deque(pair for pair in dict.fromkeys(plain) if not self._is_decided(pair))
        try:
            self._compare(waiting)
        except BaseException:
            self.close()  # a worker in the middle of a pair would answer the next one with it
            raise
        return [self._verdicts[pair] for pair in plain]

    def _is_decided(self, pair: tuple[str, str]) -> bool:
        """Whether there is a verdict already, or one that needs no worker, which is kept."""
        gold, answer = pair
        if pair in self._verdicts:
            return True
        if not answer or not gold:
            self._verdicts[pair] = Verdict(False, "empty")
        elif max(len(gold), len(answer)) > _LONGEST:
            self._verdicts[pair] = Verdict(False, f"longer than {_LONGEST:,} characters")
        elif gold == answer or (_WORDS.fullmatch(gold) and gold.casefold() == answer.casefold()):
            self._verdicts[pair] = Verdict(True)
        elif _differ_in_base(gold, answer):
            self._verdicts[pair] = Verdict(False)
        return pair in self._verdicts

    def _compare(self, waiting: deque[tuple[str, str]]) -> None:
        while len(self._workers) < min(self._limit, len(waiting)):
            self._workers.append(_Worker(self._seconds))
        busy: dict[_Worker, tuple[str, str]] = {}
        while waiting or busy:
            for place, worker in enumerate(self._workers):
                if worker in busy or not waiting:
                    continue
                if worker.dead:
                    worker = self._workers[place] = _Worker(self._seconds)
                busy[worker] = waiting.popleft()
                worker.ask(busy[worker])
            for worker in _answering(list(busy)):
                self._verdicts[busy.pop(worker)] = worker.verdict()


def _answering(workers: "list[_Worker]") -> "list[_Worker]":
    """Waits until some workers have answered, have died, or are out of time; the latter are stopped."""
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.output, selectors.EVENT_READ, worker)
        patience = max(0.0, min(worker.deadline for worker in workers) - time.monotonic())
        ready = [cast(_Worker, key.data) for key, _ in selector.select(patience)]
    done = [worker for worker in ready if worker.receive()]
    for worker in workers:
        if worker not in done and time.monotonic() >= worker.deadline:
            worker.stop()
            done.append(worker)
    return done


class _Worker:
    """One process that compares. It says that it is ready when math-verify is imported, then answers line by line."""

    def __init__(self, seconds: float) -> None:
        command = [sys.executable, "-P", str(_WORKER), str(seconds)]  # -P: numbers.py beside it is not the library's
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            process_group=0,  # Ctrl-C is for this process, which decides what becomes of the pairs
        )
        self.output = cast(IO[bytes], self._process.stdout)
        self._seconds = seconds
        self._received = b""
        self._lines: list[bytes] = []
        self._is_ready = False
        self.dead = False
        self.deadline = time.monotonic() + _START_SECONDS

    def ask(self, pair: tuple[str, str]) -> None:
        """Sends a pair, which waits in the pipe until the worker is ready."""
        self._lines = []
        if self._is_ready:
            self.deadline = time.monotonic() + self._seconds
        with suppress(BrokenPipeError):  # it has died; reading tells
            cast(IO[bytes], self._process.stdin).write(json.dumps(pair).encode() + b"\n")

    def receive(self) -> bool:
        """Reads what has come. Whether the pair is decided: by an answer, or because the worker has died."""
        arrived = self.output.read(65_536) or b""
        if not arrived:
            self.stop()
            return True
        *lines, self._received = (self._received + arrived).split(b"\n")
        if lines and not self._is_ready:
            self._is_ready = True
            self.deadline = time.monotonic() + self._seconds
            lines = lines[1:]
        self._lines += lines
        return bool(self._lines)

    def verdict(self) -> Verdict:
        """The verdict on the pair that was sent.

        Raises:
            UserError: math-verify cannot be imported.
        """
        if self._lines:
            equal, note = json.loads(self._lines[0])
            return Verdict(bool(equal), str(note))
        if not self._is_ready:
            raise UserError(f"math-verify does not start: look at {sys.executable} -c 'import math_verify'")
        return Verdict(False, f"no verdict in {self._seconds:g} s" if self._is_late() else "the comparison has crashed")

    def _is_late(self) -> bool:
        return time.monotonic() >= self.deadline

    def stop(self) -> None:
        """Ends the process, whatever it is doing."""
        self.dead = True
        self._process.kill()
        self._process.wait()
        cast(IO[bytes], self._process.stdin).close()
        self.output.close()


_WORDS = re.compile(r"[A-Za-z][A-Za-z .,'-]{2,99}")
_AS_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s?\{([^{}]{0,200})\}")
_SPACES = [
    (re.compile(r"(?<=,)\\!\s{0,4}(?=[0-9])|\\!|(?<=[0-9])\\[,;:](?=[0-9]{3}(?![0-9]))"), ""),  # within numbers
    (re.compile(r"^(?:\\[,;: ]|\\q?quad\b|~|\s){1,20}|(?:\\[,;: ]|\\q?quad|~|\s){1,20}$"), ""),
]


def _unwrapped(text: str) -> str:
    r"""A text without what may stand around it: spaces, dollar signs, `\(`, a full stop, a pair of braces, `\text{}`.

    >>> _unwrapped("$\\displaystyle {x_{1}}$."), _unwrapped("{a} + {b}"), _unwrapped("\\(5\\)"), _unwrapped("{{2}}")
    ('x_{1}', '{a} + {b}', '5', '2')
    >>> _unwrapped(r"12\,345\,678\,"), _unwrapped(r"\text{June 20}.")
    ('12345678', 'June 20')
    """
    if len(text) > 2 * _LONGEST:
        return text  # nobody compares it
    before = None
    while text != before:
        before, text = text, text.strip().removesuffix(".").strip("$").removeprefix("\\displaystyle").strip()
        if text.startswith(("\\(", "\\[")) and text.endswith(("\\)", "\\]")):
            text = text[2:-2]
        if text.startswith("{") and last_boxed(f"\\boxed{text}") == text[1:-1].strip():
            text = text[1:-1]
        if as_text := _AS_TEXT.fullmatch(text):
            text = as_text[1]
        for pattern, plain in _SPACES:
            text = pattern.sub(plain, text)
    return text


_IN_BASE = re.compile(r"\s*([0-9A-Fa-f]{1,99})\s?_\s?\{?\s?(?:\\text\{)?([0-9]{1,3})\}{0,2}\s*")


def _differ_in_base(gold: str, answer: str) -> bool:
    """Whether both are numerals with their base, and not the same: math-verify does not look at the base."""
    expected, read = _IN_BASE.fullmatch(gold), _IN_BASE.fullmatch(answer)
    if not expected or not read:
        return False
    return (expected[1].lower().lstrip("0"), expected[2]) != (read[1].lower().lstrip("0"), read[2])
