"""Two nodes on one machine: two network namespaces that see nothing but each other, over a pair of virtual cards."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen
from typing import NamedTuple

import pytest

TOOLS = ("unshare", "nsenter", "ip")
_WAIT = 10  # seconds for a namespace


class Node(NamedTuple):
    """A node.

    Attributes:
        enter: words before a command that is to run there.
        address: its address.
        card: name of its network card.
    """

    enter: tuple[str, ...]
    address: str
    card: str


@contextmanager
def two_nodes() -> Iterator[list[Node]]:
    """Two nodes. They need no right beyond a namespace of users, and end with this process.

    Where there is no such right, or no tool for it, the test is skipped with the reason.
    """
    if absent := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"needs {' and '.join(absent)} for network namespaces (Debian: iproute2, util-linux)")
    with ExitStack() as held:
        first = _held(held, ["unshare", "--user", "--map-root-user", "--net"])
        enter = ("nsenter", "--preserve-credentials", "--user", "--net", f"--target={first}")
        second = _held(held, [*enter, "unshare", "--net"])
        nodes = [
            Node(enter, "10.77.0.1", "ts2a"),
            Node((*enter, "nsenter", f"--net=/proc/{second}/ns/net"), "10.77.0.2", "ts2b"),
        ]
        _run(nodes[0], "link", "add", nodes[0].card, "type", "veth", "peer", "name", nodes[1].card, "netns", second)
        for node in nodes:
            _run(node, "link", "set", "lo", "up")
            _run(node, "address", "add", f"{node.address}/24", "dev", node.card)
            _run(node, "link", "set", node.card, "up")
        yield nodes


def _held(held: ExitStack, words: list[str]) -> str:
    """The number of a process in a new namespace, which is there until its input ends."""
    process = held.enter_context(Popen([*words, "cat"], stdin=PIPE, stdout=PIPE, stderr=STDOUT, text=True))
    deadline = time.monotonic() + _WAIT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            assert process.stdout is not None
            pytest.skip(f"no network namespace can be made here: {process.stdout.read().strip()}")
        if Path(f"/proc/{process.pid}/comm").read_text().strip() == "cat":
            return str(process.pid)
        time.sleep(0.01)
    pytest.fail(f"no namespace after {_WAIT} s")


def _run(node: Node, *words: str) -> None:
    done = subprocess.run([*node.enter, "ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no virtual network card can be made here: {done.stderr.strip()}")
