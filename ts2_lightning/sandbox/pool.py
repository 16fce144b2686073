"""The pool: one server on each core, and an iterator of verdicts."""

import contextlib
import json
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

from ts2_lightning.sandbox.attacks import attack_programs, make_attacks
from ts2_lightning.sandbox.programs import Program, SandboxSettings, Verdict, read_verdict
from ts2_lightning.sandbox.ways import ENVIRONMENT, command_line, first_line
from ts2_lightning.types import UserError

_START = 60.0  # seconds until a server has to answer
_PULL = 900.0  # and one in a container whose image may have to be fetched
_GRACE = 10.0  # seconds beyond a program's limit after which its server counts as lost
_LINE = 1 << 16
_OTHER_WAYS = (
    "the ways on: --sandbox docker:IMAGE, --sandbox bwrap, or --sandbox none --i_know_what_i_run true, "
    "which keeps nothing in (docs/security.md)"
)


class ServerLost(Exception):  # noqa: N818 - an event, which the pool handles
    """A server that has ended, or does not answer; its text says why as far as it is known."""


class Server:
    """A server, running.

    Args:
        settings: settings of the sandbox.

    Attributes:
        layers: what is around its programs.
        program: program that it runs at the moment.
        deadline: time by the monotonic clock at which it counts as lost.
    """

    def __init__(self, settings: SandboxSettings) -> None:
        self.program: Program | None = None
        self.deadline = 0.0
        self._buffer = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        try:
            self._process = subprocess.Popen(
                command_line(settings), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
                env=ENVIRONMENT if settings.way in ("auto", "none") else {**os.environ, **ENVIRONMENT}, cwd="/",
                bufsize=0, start_new_session=True,  # the terminal's Ctrl-C is for this process, which ends the servers
            )  # fmt: skip
        except OSError as error:
            raise ServerLost(f"it cannot be started: {error}") from error
        try:
            self._write(first_line(settings))
            answer = self._wait(_PULL if settings.way == "docker" else _START)
        except BaseException:
            self.close()
            raise
        if "refused" in answer:
            self.close()
            raise ServerLost(str(answer["refused"]))
        outer = {"bwrap": ["bwrap"], "docker": [f"docker {settings.image}"]}.get(settings.way, [])
        self.layers: tuple[str, ...] = (*outer, *map(str, answer.get("layers", [])))

    def fileno(self) -> int:
        """The descriptor of its answers."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def start(self, program: Program) -> None:
        """Has it run a program.

        Raises:
            ServerLost: it is gone.
        """
        self.program, self.deadline = program, time.monotonic() + program.seconds + _GRACE
        self._write(json.dumps({"key": program.key, "code": program.code, "seconds": program.seconds}).encode() + b"\n")

    def answer(self) -> dict[str, Any] | None:
        """What it has answered; None if a whole line is not there yet.

        Raises:
            ServerLost: it is gone, or what it says is no answer.
        """
        some = os.read(self.fileno(), _LINE)
        self._buffer += some
        if not some or len(self._buffer) > _LINE:
            raise ServerLost(self._last_words())
        if not self._buffer.endswith(b"\n"):
            return None
        line, self._buffer = self._buffer, b""
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ServerLost(f"it says {line[:80]!r}")
        return answer

    def close(self) -> None:
        """Ends it, and the program that it runs."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process.wait()

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        view = memoryview(line)
        try:
            while view:
                view = view[self._process.stdin.write(view) :]
        except OSError as error:
            raise ServerLost(self._last_words()) from error

    def _wait(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            while (left := end - time.monotonic()) > 0:
                if selector.select(left) and (answer := self.answer()) is not None:
                    return answer
        raise ServerLost(f"it did not answer within {seconds:.0f} s")

    def _last_words(self) -> str:
        """The last line of what it wrote as errors, or how it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:300] if lines else f"it ended with status {self._process.returncode}"


class Sandbox:
    """Servers that run programs which a model wrote. Use it as a context: what it has started ends with it.

    The first server attacks itself before it is used, and a sandbox that lets an attack through is refused.

    Args:
        settings: settings of the sandbox.

    Attributes:
        layers: what is around the programs, from the outside in.

    Raises:
        UserError: the settings do not allow it, or this machine cannot keep programs in; the line says what to do.

    Example:
        >>> with Sandbox(SandboxSettings(run_code=True, workers=1)) as sandbox:
        ...     verdicts = sandbox.run([Program("right", "assert 1 + 1 == 2"), Program("wrong", "assert 1 + 1 == 3")])
        ...     sorted((verdict.key, verdict.outcome, verdict.reason) for verdict in verdicts)
        [('right', 'passed', ''), ('wrong', 'failed', 'AssertionError')]
    """

    def __init__(self, settings: SandboxSettings) -> None:
        settings.check()
        self.settings = settings
        self._servers: list[Server] = []
        try:
            first = Server(settings)
        except ServerLost as error:
            raise UserError(f"--sandbox {settings.sandbox}: {error}; {_OTHER_WAYS}") from error
        self._servers.append(first)
        self.layers = first.layers
        try:
            if settings.way != "none":
                self._attack()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all servers and what they run."""
        while self._servers:
            self._servers.pop().close()

    def run(self, programs: Iterable[Program]) -> Iterator[Verdict]:
        """Runs programs, as many at a time as there are workers.

        Args:
            programs: programs; the next is taken when a worker is free.

        Yields:
            Verdicts as they come, in any order.

        Raises:
            UserError: no server can be started any more.
        """
        waiting, retried = iter(programs), set[int]()
        idle, again = list(self._servers), list[Program]()
        with selectors.DefaultSelector() as selector:
            try:
                while True:
                    self._hand_out(waiting, again, idle, selector)
                    if not selector.get_map():
                        return
                    for server, verdict in self._collect(selector):
                        program = server.program
                        assert program is not None
                        server.program = None
                        if verdict is not None:
                            idle.append(server)
                            yield verdict
                        elif id(program) in retried:  # twice: the program's doing
                            yield Verdict(program.key, "died", "the sandbox's server was lost")
                        else:
                            retried.add(id(program))
                            again.append(program)
            finally:  # what still runs is of no use to anybody
                for key in list(selector.get_map().values()):
                    self._drop(key.fileobj)

    def _hand_out(
        self, waiting: Iterator[Program], again: list[Program], idle: list[Server], selector: selectors.BaseSelector
    ) -> None:
        workers = self.settings.workers or _cores()
        while idle or len(self._servers) < workers:
            program = again.pop() if again else next(waiting, None)
            if program is None:
                return
            server = idle.pop() if idle else self._new_server()
            try:
                server.start(program)
            except ServerLost:
                self._drop(server)
                again.append(program)
                continue
            selector.register(server, selectors.EVENT_READ)

    def _new_server(self) -> Server:
        try:
            server = Server(self.settings)
        except ServerLost as error:
            raise UserError(f"--sandbox {self.settings.sandbox}: {error}") from error
        self._servers.append(server)
        return server

    def _collect(self, selector: selectors.BaseSelector) -> Iterator[tuple[Server, Verdict | None]]:
        """Servers that are done, with the verdict; None where the server was lost."""
        running = [key.fileobj for key in selector.get_map().values()]
        left = min(server.deadline for server in running if isinstance(server, Server)) - time.monotonic()
        ready = {key.fileobj for key, _ in selector.select(max(left, 0))}
        for server in running:
            assert isinstance(server, Server)
            late = time.monotonic() > server.deadline
            if server not in ready and not late:
                continue
            try:
                answer = server.answer() if server in ready else None
                if answer is None and not late:
                    continue
                verdict = None if answer is None else _verdict_of(answer, server)
            except ServerLost:
                verdict = None
            selector.unregister(server)
            if verdict is None:
                self._drop(server)
            yield server, verdict

    def _drop(self, server: Any) -> None:
        server.close()
        self._servers.remove(server)

    def _attack(self) -> None:
        with tempfile.NamedTemporaryFile("w", prefix="ts2-sandbox-") as secret:
            os.fchmod(secret.fileno(), 0o644)
            attacks = make_attacks(secret.name, self.settings.memory)
            verdicts = {verdict.key: verdict for verdict in self.run(attack_programs(attacks))}
        ordinary = verdicts["ordinary"]
        if not ordinary.passed:
            self._refuse(f"an ordinary program does not run ({ordinary.outcome}: {ordinary.reason})")
        layers = " ".join(self.layers)
        through = [one.deed for one in attacks if verdicts[one.deed].passed and one.layer in layers]
        if through:
            self._refuse(f"programs can {', '.join(through)}")

    def _refuse(self, wrong: str) -> None:
        raise UserError(f"--sandbox {self.settings.sandbox} does not hold on this machine: {wrong}; {_OTHER_WAYS}")


def run_programs(programs: Iterable[Program], settings: SandboxSettings) -> Iterator[Verdict]:
    """Runs programs that a model wrote, in a sandbox that is there for them alone.

    Args:
        programs: programs.
        settings: settings of the sandbox; `run_code` has to be True.

    Yields:
        Verdicts as they come, in any order.

    Raises:
        UserError: the settings do not allow it, or this machine cannot keep programs in; the line says what to do.
    """
    with Sandbox(settings) as sandbox:
        yield from sandbox.run(programs)


def _verdict_of(answer: dict[str, Any], server: Server) -> Verdict:
    program = server.program
    assert program is not None
    if answer.get("outcome") == "sandbox":
        raise UserError(f"the sandbox cannot confine a program any more: {answer.get('reason')}")
    try:
        verdict = read_verdict(answer)
    except ValueError as error:
        raise ServerLost(f"it says {answer}") from error
    if verdict.key != program.key:
        raise ServerLost(f"it answers for {verdict.key}")
    return verdict


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
