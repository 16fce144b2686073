"""Responses on disk, which any number of processes make together, and which are never made twice.

    DIR/responses/NAME-DIGEST/   of what is asked: name and settings, the model among them
        items.jsonl              what is asked, for people and for whoever scores: a line for each item
        part-00000.jsonl         a file for each process that has written: first what it is, then a line a response
        rates.jsonl              how fast they were made: a line for each stretch of work, see `rates`
        .claims/                 locks of blocks of items

Which block a response belongs to follows from its item alone, so no process has to know of the others. One that works
holds the locks of its blocks, which the system takes from it when it dies, and looks again then which responses are
there. Whole lines are added at once, so a process that is killed leaves at most one that is cut, which readers drop.
"""

import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain, count
from pathlib import Path
from typing import Any

from ts2_lightning import __version__
from ts2_lightning.generation.backends.base import Backend
from ts2_lightning.generation.progress import Progress
from ts2_lightning.generation.rates import Clock
from ts2_lightning.generation.requests import GenerationSettings, Request, Response
from ts2_lightning.generation.response_files import DIRECTORY, FORMAT, ITEMS, Reader, read_items
from ts2_lightning.runs.process_lock import lock_file
from ts2_lightning.runs.stamps import digest
from ts2_lightning.runs.writing import append_lines, write_whole
from ts2_lightning.types import UserError

_PART, _CLAIMS = "part-{:05d}.jsonl", ".claims"
_NO_LOCKS = "nothing would keep two processes from the same responses; choose another directory"
_WRITE_AFTER = 1.0
"""Seconds after which responses are written."""
_NAMED = 10
"""Largest number of items that a message names."""
_LOOK_AFTER = 2.0
"""Seconds after which a process that waits for others looks again."""


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
        ...     left = store.missing({"question 1": [Request((1, 2), 0, settings)]})
        >>> store.directory.name[:6], list(left)
        ('gsm8k-', ['question 1'])
    """

    def __init__(self, directory: Path, name: str, settings: GenerationSettings, model: str = "") -> None:
        self.settings = settings
        self.directory = place_of(directory, name, settings)
        self._name, self._model = name, model
        self._reader = Reader(self.directory)
        self._part: int | None = None
        self._pending: list[bytes] = []
        self._written_at = time.monotonic()
        with _told(self.directory):
            (self.directory / _CLAIMS).mkdir(parents=True, exist_ok=True)

    def add_items(self, items: Mapping[str, Mapping[str, Any]]) -> None:
        """Writes what is asked: plain values by the id of the item; of one that is there already, the new ones.

        Raises:
            UserError: a full disk, or a directory that cannot be written to.
        """
        file = self.directory / ITEMS
        with _told(file), _waited_for(self.directory / _CLAIMS / "items"):  # two processes may each have some
            there = read_items(self.directory)
            merged = {**there, **{item: {"item": item, **values} for item, values in items.items()}}
            if merged != there:
                text = "".join(f"{json.dumps(values, ensure_ascii=False)}\n" for values in merged.values())
                write_whole(file, lambda beside: beside.write_text(text, encoding="utf-8"))

    def responses(self) -> dict[str, Response]:
        """Every response that is there, by its key; what other processes have written meanwhile is read.

        Raises:
            UserError: naming file and line of what is no response.
        """
        return {key: line.response for key, line in self._reader.read().items()}

    def missing(self, wanted: Mapping[str, Sequence[Request]]) -> dict[str, list[Request]]:
        """Of the requests of each item those without a response, each once; items without such are left out."""
        return missing(self._reader, wanted)

    def fill(
        self,
        wanted: Mapping[str, Sequence[Request]],
        backend: Callable[[], Backend],
        title: str = "",
        say: Callable[[str], None] | None = None,
        keep_ids: bool = False,
    ) -> dict[str, list[Response]]:
        """Makes the responses that are missing, together with whoever else does; waits for what others are making.

        Args:
            wanted: requests of each item by its id, with the store's settings.
            backend: gives what makes them; called if any is missing.
            title: title of the progress bar; empty shows none.
            say: takes a line on what is to be made, and one with an estimate of the time.
            keep_ids: whether token ids are written too.

        Returns:
            The responses of each item, in the order of its requests.

        Raises:
            UserError: a full disk, a directory that cannot be written to, a line that is no response, or a prompt that
                the model does not take.
        """
        left = self.missing(wanted)
        if left:
            maker = backend()
            self._check(left, maker)  # not after hours
            total = len({request.key for requests in wanted.values() for request in requests})
            if say is not None:
                say(self._plan(total, left))
            with Progress(total, title, total - _count(left), say) as progress:
                while left := self.missing(wanted):
                    progress.set_there(total - _count(left))
                    if not self._make(left, maker, progress, keep_ids):
                        time.sleep(_LOOK_AFTER)  # others have all that is missing
        there = self._reader.read()
        return {item: [there[one.key].response for one in requests] for item, requests in wanted.items()}

    def _check(self, left: Mapping[str, Sequence[Request]], backend: Backend) -> None:
        """Raises UserError that names the items whose prompts the backend does not take."""
        try:
            backend.check([request for requests in left.values() for request in requests])
        except UserError as error:
            refused = [item for item, requests in left.items() if not _takes(backend, requests)]
            if not 0 < len(refused) < len(left):  # it is of no single prompt
                raise
            some = ", ".join(refused[:_NAMED]) + (", ..." if len(refused) > _NAMED else "")
            raise UserError(
                f"{self._name}: {error}; {len(refused):,} of {len(left):,} prompts are such, by their ids in "
                f"{self.directory / ITEMS}: {some}; leave their rows out"
            ) from error

    def _plan(self, total: int, left: Mapping[str, Sequence[Request]]) -> str:
        count = _count(left)
        return (
            f"{total:,} responses, of which {total - count:,} are there; {count:,} are to be made, of at most "
            f"{count * self.settings.max_new_tokens:,} tokens -> {self.directory}"
        )

    # One process among several -----------------------------------------------------------------------------------

    def _make(
        self, left: Mapping[str, Sequence[Request]], backend: Backend, progress: Progress, keep_ids: bool
    ) -> bool:
        """Makes what nobody else is making; false if there was no such."""
        with _Claims(self.directory / _CLAIMS) as claims:
            source = self._claimed(left, claims)
            clock = Clock(self.directory, dict(backend.versions).get("backend", ""), *backend.device)
            first = next(source, None)
            if first is None:
                return False
            try:
                for response in backend.complete(chain([first], source)):
                    item, request = claims.asked[response.key]
                    self._pending.append(_as_line(item, request, response, keep_ids))
                    progress.add(response)
                    with _told(self.directory):
                        clock.add(response.tokens)
                    if backend.keeps_each or time.monotonic() - self._written_at > _WRITE_AFTER:
                        self._write(backend)
                        claims.release(self._reader.read())
            finally:
                self._write(backend)
                with _told(self.directory):
                    clock.write()
            if unmade := [key for key in claims.asked if key not in self._reader.read()]:
                raise RuntimeError(f"the backend has made no response to {len(unmade)} requests, such as {unmade[0]}")
        return True

    def _claimed(self, left: Mapping[str, Sequence[Request]], claims: "_Claims") -> Iterator[Request]:
        """Takes a block of requests after the other, when it is asked for the next one, and leaves out those of others.

        Which block it is follows from the prompt, which all samples of an item share.
        """
        blocks: dict[str, list[tuple[str, Request]]] = {}
        for item, requests in left.items():
            for request in requests:
                blocks.setdefault(digest(request.prompt)[:2], []).append((item, request))
        for block, asked in blocks.items():
            if claims.take(block):
                there = self._reader.read()  # again: whoever had it may have ended since
                mine = [(item, request) for item, request in asked if request.key not in there]
                claims.put(block, mine)
                yield from (request for _, request in mine)

    def _write(self, backend: Backend) -> None:
        """Adds what is pending to this process's part, whole lines at once, so that it is on disk afterwards."""
        if not self._pending:
            return
        with _told(self.directory):
            if self._part is None:
                self._part = _new_part(self.directory)
            before = os.fstat(self._part).st_size
            lines = self._pending if before else [_encoded(self._head(backend)), *self._pending]
            try:
                append_lines(self._part, b"".join(lines))
            except BaseException:
                os.ftruncate(self._part, before)  # nothing may come behind a line that was cut short
                raise
            os.fsync(self._part)
        self._pending = []
        self._written_at = time.monotonic()

    def _head(self, backend: Backend) -> dict[str, Any]:
        versions = dict(backend.versions)
        return {
            "format": FORMAT,
            "name": self._name,
            "settings": asdict(self.settings),
            "model": self._model,
            "backend": versions.pop("backend", type(backend).__name__),
            "versions": {"ts2_lightning": __version__, **versions},
        }


def place_of(directory: Path, name: str, settings: GenerationSettings) -> Path:
    """The directory of the responses to what is asked under a name with some settings; nothing is made.

    Args:
        directory: directory that has `responses/NAME-DIGEST`.
        name: name of what is asked.
        settings: what the responses are made with.
    """
    return directory / DIRECTORY / f"{name}-{digest([name, asdict(settings)])[:8]}"


def missing(reader: Reader, wanted: Mapping[str, Sequence[Request]]) -> dict[str, list[Request]]:
    """Of the requests of each item those without a response, each once; items without such are left out.

    Args:
        reader: reader of the directory of the responses.
        wanted: requests of each item by its id.
    """
    seen = set(reader.read())
    left: dict[str, list[Request]] = {}
    for item, requests in wanted.items():
        for request in requests:
            if request.key not in seen:
                seen.add(request.key)
                left.setdefault(item, []).append(request)
    return left


class _Claims:
    """The blocks of requests that this process has the locks of, until their responses are on disk.

    Args:
        directory: directory of the locks.

    Attributes:
        asked: item and request by the request's key.
    """

    def __init__(self, directory: Path) -> None:
        self.asked: dict[str, tuple[str, Request]] = {}
        self._directory = directory
        self._held: dict[str, tuple[int, set[str]]] = {}

    def take(self, block: str) -> bool:
        """Takes the lock of a block; false if another process has it."""
        file = self._directory / block
        with _told(file):
            descriptor = lock_file(file, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX, _NO_LOCKS)
        if descriptor is not None:
            self._held[block] = descriptor, set()
        return descriptor is not None

    def put(self, block: str, asked: Sequence[tuple[str, Request]]) -> None:
        """Says what is made of a block."""
        self.asked |= {request.key: (item, request) for item, request in asked}
        self._held[block][1].update(request.key for _, request in asked)
        self.release(())

    def release(self, there: Container[str]) -> None:
        """Lets go of the blocks whose responses are there."""
        for block, (descriptor, keys) in list(self._held.items()):
            if all(key in there for key in keys):
                os.close(descriptor)
                del self._held[block]

    def __enter__(self) -> "_Claims":
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor, _keys in self._held.values():
            os.close(descriptor)
        self._held = {}


# Writing --------------------------------------------------------------------------------------------------------


def _as_line(item: str, request: Request, response: Response, keep_ids: bool) -> bytes:
    probability = response.mean_probability
    if probability is not None:  # that of a broken model is no number
        probability = round(min(1.0, probability), 6) if math.isfinite(probability) else None
    plain: dict[str, Any] = {
        "key": response.key,
        "item": item,
        "index": request.index,
        "seed": request.settings.seed,
        "text": response.text,
        "tokens": response.tokens,
        "finish": response.finish,
        "mean_probability": probability,
    }
    if keep_ids and response.ids is not None:
        plain["ids"] = response.ids
    return _encoded(plain)


def _encoded(plain: Mapping[str, Any]) -> bytes:
    """A line of JSON; half a character, which a served model may send, is written as its number."""
    try:
        return f"{json.dumps(plain, ensure_ascii=False)}\n".encode()
    except UnicodeEncodeError:
        return f"{json.dumps(plain)}\n".encode()


def _new_part(directory: Path) -> int:
    """The descriptor of a new file for this process alone."""
    for number in count(len(list(directory.glob("part-*.jsonl")))):
        try:
            return os.open(directory / _PART.format(number), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            continue
    raise AssertionError("numbers do not end")


def _takes(backend: Backend, requests: Sequence[Request]) -> bool:
    try:
        backend.check(requests)
    except UserError:
        return False
    return True


def _count(left: Mapping[str, Sequence[Request]]) -> int:
    return sum(map(len, left.values()))


@contextmanager
def _told(place: Path) -> Iterator[None]:
    """Tells what the file system refuses in one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{place}: cannot be written ({error.strerror or error}); what was written before stays, and the same "
            "command goes on from there"
        ) from error


@contextmanager
def _waited_for(file: Path) -> Iterator[None]:
    """Holds the lock of a file, once whoever has it lets go."""
    while (descriptor := lock_file(file, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX, _NO_LOCKS)) is None:
        time.sleep(0.05)
    try:
        yield
    finally:
        os.close(descriptor)
