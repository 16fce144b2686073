"""Responses on disk, which any number of processes make together, and which are never made twice.

    DIR/responses/NAME-DIGEST/   of what is asked: name and settings, the model among them
        items.jsonl              what is asked, for people and for whoever scores: a line for each item
        part-00000.jsonl         a file for each process that has written: first what it is, then a line a response
        .claims/                 locks of blocks of items

Which block a response belongs to follows from its item alone, so no process has to know of the others. One that works
holds the locks of its blocks, which the system takes from it when it dies, and looks again then which responses are
there. Whole lines are added at once, so a process that is killed leaves at most one that is cut, which readers drop.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ts2_lightning.generation.backends.base import Backend
from ts2_lightning.generation.progress import shown
from ts2_lightning.generation.requests import FINISHES, GenerationSettings, Request, Response
from ts2_lightning.runs.process_lock import lock_file
from ts2_lightning.runs.stamps import digest
from ts2_lightning.types import UserError

FORMAT = 1
"""Number of the format of parts. A later version that others cannot read gets another."""

DIRECTORY = "responses"

_ITEMS, _PART, _CLAIMS = "items.jsonl", "part-{:05d}.jsonl", ".claims"
_BLOCKS = 256
_AT_A_TIME = 2048
"""Responses that a process claims at once, at most."""
_SHARE = 4
"""A process claims at most so small a part of what is left, so that all end at about the same time."""
_WRITE_AFTER = 1.0
"""Seconds after which responses are written."""
_LOOK_AFTER = 2.0
"""Seconds after which a process that waits for others looks again."""


class Line(NamedTuple):
    """One response on disk.

    Attributes:
        item: id of its item.
        index: number of the sample among those of the item.
        response: the response.
    """

    item: str
    index: int
    response: Response


@dataclass(frozen=True)
class Stored:
    """What a directory of responses holds.

    Attributes:
        head: first line of its first part: `format`, `name`, `settings`, `model`, `backend`, `versions`.
        items: plain values of each item by its id.
        lines: every response once, in the order of items and indices.
    """

    head: Mapping[str, Any]
    items: Mapping[str, Mapping[str, Any]]
    lines: Sequence[Line]


class ResponseStore:
    """The responses to what is asked under one name with the same settings.

    Args:
        directory: directory that gets `responses/NAME-DIGEST`, which is made if need be.
        name: name of what is asked, such as a protocol's.
        settings: what the responses are made with.
        model: name of the model, for people.

    Raises:
        UserError: a directory that cannot be written to.

    Example:
        >>> import tempfile
        >>> from ts2_lightning.generation import Decoder
        >>> settings = GenerationSettings("model", Decoder(), 16)
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     store = ResponseStore(Path(directory), "gsm8k", settings)
        ...     store.missing({"0": [Request((1, 2), 0, settings)]}), store.directory.name[:6]
        ({'0': [Request(prompt=(1, 2), index=0, settings=GenerationSettings(model='model', decoder=Decoder(projection='softmax', alpha=1.5, logit_scale=1.0, temperature=1.0, top_k=0, top_p=1.0), max_new_tokens=16, end_ids=(), seed=0))]}, 'gsm8k-')
    """

    def __init__(self, directory: Path, name: str, settings: GenerationSettings, model: str = "") -> None:
        self.settings = settings
        self.directory = directory / DIRECTORY / f"{name}-{digest([name, asdict(settings)])[:8]}"
        self._name, self._model = name, model
        self._reader = _Reader(self.directory)
        with _told(self.directory):
            (self.directory / _CLAIMS).mkdir(parents=True, exist_ok=True)

    def add_items(self, items: Mapping[str, Mapping[str, Any]]) -> None:
        """Writes what is asked, as far as it is not there: plain values by the id of the item.

        Raises:
            UserError: a full disk, or a directory that cannot be written to.
        """

    def responses(self) -> Mapping[str, Response]:
        """Every response that is there, by its key; what other processes have written meanwhile is read.

        Raises:
            UserError: naming file and line of what is no response.
        """
        return {key: line.response for key, line in self._reader.read().items()}

    def missing(self, wanted: Mapping[str, Sequence[Request]]) -> dict[str, list[Request]]:
        """Of the requests of each item those without a response; items without one are left out."""
        there = self._reader.read()
        left = {item: [one for one in requests if one.key not in there] for item, requests in wanted.items()}
        return {item: requests for item, requests in left.items() if requests}

    def fill(
        self,
        wanted: Mapping[str, Sequence[Request]],
        backend: Callable[[], Backend],
        title: str = "",
        keep_ids: bool = False,
    ) -> dict[str, list[Response]]:
        """Makes the responses that are missing, together with whoever else does; waits for what others are making.

        Args:
            wanted: requests of each item by its id, with the store's settings.
            backend: gives what makes them; called if any is missing.
            title: title of the progress bar; empty shows none.
            keep_ids: whether token ids are written too.

        Returns:
            The responses of each item, in the order of its requests.

        Raises:
            UserError: a full disk, a directory that cannot be written to, a line that is no response, or a prompt that
                the model does not take.
        """
