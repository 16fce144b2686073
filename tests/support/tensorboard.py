"""TensorBoard itself, in a thread of this process: what its tabs show of a directory."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tensorboard import default, program


class Tabs:
    """The answers of a running TensorBoard.

    Args:
        url: address of the server.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def ask(self, path: str, question: Any = None) -> Any:
        """The answer of a plugin, such as `hparams/experiment`; a question is posted as JSON."""
        body = None if question is None else json.dumps(question).encode()
        request = Request(f"{self._url}data/plugin/{path}", body, {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except HTTPError as error:
            return {"error": f"{error.code} {error.read().decode()}"}

    def wait_for(self, path: str, question: Any, key: str) -> Any:
        """The answer once it has something under a key: directories are read in a thread of their own."""
        for _ in range(600):
            answer = self.ask(path, question)
            if isinstance(answer, dict) and answer.get(key):
                return answer
            time.sleep(0.1)
        raise AssertionError(f"{path} never had {key}: {answer}")


@contextmanager
def tabs_of(directory: Path) -> Iterator[Tabs]:
    """A TensorBoard over a directory. Its threads end with the process."""
    board = program.TensorBoard(plugins=default.get_plugins())
    board.configure(argv=[None, "--logdir", str(directory), "--load_fast=false", "--port=0"])
    yield Tabs(board.launch())
