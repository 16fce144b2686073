"""The pool: one server on each core, and an iterator of verdicts."""

import contextlib
import os
import selectors
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from ts2_lightning.sandbox.attacks import ORDINARY, make_attacks, written
from ts2_lightning.sandbox.process import LostServerError, Server
from ts2_lightning.sandbox.programs import Program, SandboxSettings, Verdict, read_verdict

_CGROUP = "/sys/fs/cgroup"


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
        self._is_running = False
        try:
            self._servers.append(Server(settings))
            self.layers = self._servers[0].wait_until_ready()
            if settings.way != "none":
                self._attack()
        except LostServerError as error:
            self.close()
            raise settings.refusal(str(error)) from error
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
        if self._is_running:
            raise RuntimeError("a sandbox runs one list of programs at a time")
        self._is_running = True
        waiting, idle = iter(programs), list(self._servers)
        again, lost = list[Program](), list[Program]()
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
                        elif any(program is one for one in lost):  # twice: the program's doing
                            yield Verdict(program.key, "died", "the sandbox's server was lost")
                        else:
                            lost.append(program)
                            again.append(program)
            finally:
                self._is_running = False
                for key in list(selector.get_map().values()):  # what still runs is of no use to anybody
                    self._drop(key.fileobj)

    def _hand_out(
        self, waiting: Iterator[Program], again: list[Program], idle: list[Server], selector: selectors.BaseSelector
    ) -> None:
        workers = self.settings.workers or usable_cores()
        while idle or len(self._servers) < workers:
            program = again.pop() if again else next(waiting, None)
            if program is None:
                return
            server = idle.pop() if idle else self._new_server()
            try:
                server.start(program)
            except LostServerError as error:
                self._drop(server)
                if server.layers is None:
                    raise self.settings.refusal(f"no further server starts: {error}") from error
                again.append(program)
                continue
            selector.register(server, selectors.EVENT_READ)

    def _new_server(self) -> Server:
        try:
            server = Server(self.settings)
        except LostServerError as error:
            raise self.settings.refusal(f"no further server starts: {error}") from error
        self._servers.append(server)
        return server

    def _collect(self, selector: selectors.BaseSelector) -> list[tuple[Server, Verdict | None]]:
        """Servers that are done, with the verdict; None where the server was lost."""
        running: list[Any] = [key.fileobj for key in selector.get_map().values()]
        left = min(server.deadline for server in running) - time.monotonic()
        ready = {key.fileobj for key, _ in selector.select(max(left, 0))}
        done: list[tuple[Server, Verdict | None]] = []
        for server in running:
            late = time.monotonic() > server.deadline
            try:
                answer = server.answer() if server in ready else None
                if answer is None and not late:
                    continue
                verdict = None if answer is None else _verdict_of(answer, server)
            except LostServerError as error:
                verdict = None
                if server.layers is None:
                    raise self.settings.refusal(f"no further server starts: {error}") from error
            selector.unregister(server)
            if verdict is None:
                self._drop(server)
            done.append((server, verdict))
        return done

    def _drop(self, server: Any) -> None:
        server.close()
        if server in self._servers:  # else the sandbox was closed meanwhile
            self._servers.remove(server)

    def _attack(self) -> None:
        with tempfile.NamedTemporaryFile("w", prefix="ts2-sandbox-") as secret:
            os.fchmod(secret.fileno(), 0o644)
            attacks = make_attacks(secret.name, self.settings.memory)
            programs = [ORDINARY, *(attack.program for attack in attacks)]
            verdicts = {verdict.key: verdict for verdict in self.run(programs)}
            for path in written(secret.name):
                with contextlib.suppress(OSError):  # not there, as it should be
                    os.unlink(path)
        ordinary = verdicts[ORDINARY.key]
        if not ordinary.passed:
            raise LostServerError(f"an ordinary program does not run ({ordinary.outcome}: {ordinary.reason})")
        through = [one.deed for one in attacks if one.got_through(verdicts[one.deed], self.layers)]
        if through:
            raise LostServerError(f"programs can {', '.join(through)}")


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
        raise server.settings.refusal(f"a program cannot be confined: {answer.get('reason')}")
    try:
        verdict = read_verdict(answer)
    except ValueError as error:
        raise LostServerError(f"it says {answer}") from error
    if verdict.key != program.key:
        raise LostServerError(f"it answers for {verdict.key}")
    return verdict


def usable_cores() -> int:
    """The number of cores that this process may keep busy: by its affinity, and by the share that a container has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = 0.0, 1.0
    with contextlib.suppress(OSError, ValueError):  # cgroup v2; a quota of "max" is none
        quota, period = map(float, Path(_CGROUP, "cpu.max").read_text().split())
    with contextlib.suppress(OSError, ValueError):  # v1
        quota = float(Path(_CGROUP, "cpu", "cpu.cfs_quota_us").read_text())
        period = float(Path(_CGROUP, "cpu", "cpu.cfs_period_us").read_text())
    return min(cores, max(1, round(quota / period))) if quota > 0 else cores
