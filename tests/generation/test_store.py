"""Responses on disk under attack: killed writers, several of them, full disks, foreign lines."""

import json
import math
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from ts2_lightning.generation import Decoder, GenerationSettings, Request, Response
from ts2_lightning.generation.backends.base import Backend
from ts2_lightning.generation.progress import Progress
from ts2_lightning.generation.rates import read_rates
from ts2_lightning.generation.response_files import read_items, read_store
from ts2_lightning.generation.store import ResponseStore
from ts2_lightning.types import UserError

SETTINGS = GenerationSettings("model", Decoder(top_p=0.9), 8, (2,))
FORK = multiprocessing.get_context("fork")


def answer(request: Request) -> Response:
    """What a response is that follows from its request alone; with all that may break lines."""
    text = f"{request.index} \u2028 \x85 \n\r\u4f60\U0001f600 \x00 {request.key}"
    finish = "stop" if request.index % 2 else "length"
    return Response(request.key, text, request.index + 1, finish, 0.25, (1, request.index), (-1.0,))


class Echo(Backend):
    """Answers at once, or slowly, and notes what it was asked."""

    def __init__(self, seconds: float = 0.0, fails_after: int = 10**9) -> None:
        self.seconds, self.fails_after = seconds, fails_after
        self.asked: list[Request] = []

    def complete(self, requests: Iterable[Request]) -> Iterator[Response]:
        for request in requests:
            if len(self.asked) >= self.fails_after:
                raise KeyboardInterrupt
            self.asked.append(request)
            time.sleep(self.seconds)
            yield answer(request)

    @property
    def versions(self) -> Mapping[str, str]:
        return {"backend": "echo", "echo": "1.0"}


def wanted(items: int = 5, n: int = 3, asked: GenerationSettings = SETTINGS) -> dict[str, list[Request]]:
    return {f"q{item}": [Request((7, item), index, asked) for index in range(n)] for item in range(items)}


def expected(asked: Mapping[str, list[Request]]) -> dict[str, list[Response]]:
    """What is kept of the answers."""
    return {
        item: [Response(one.key, answer(one).text, one.index + 1, answer(one).finish, 0.25) for one in requests]
        for item, requests in asked.items()
    }


def store(directory: Path, asked: GenerationSettings = SETTINGS) -> ResponseStore:
    return ResponseStore(directory, "echo", asked, "the model")


def parts(directory: Path) -> list[Path]:
    return sorted(directory.glob("responses/*/part-*.jsonl"))


def lines(directory: Path) -> list[dict[str, Any]]:
    """Every response on disk, read by other means."""
    return [json.loads(line) for part in parts(directory) for line in part.read_bytes().split(b"\n")[1:-1]]


# What is made, and when -----------------------------------------------------------------------------------------------


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    """Raising the number of items or samples makes those that are new, whatever was made in which order."""
    backend = Echo()
    assert store(tmp_path).fill(wanted(2, 2), lambda: backend) == expected(wanted(2, 2))
    assert len(backend.asked) == 4
    assert store(tmp_path).fill(wanted(3, 4), lambda: backend) == expected(wanted(3, 4))
    assert len(backend.asked) == len({request.key for request in backend.asked}) == 12
    assert store(tmp_path).fill(wanted(1, 3), lambda: pytest.fail("nothing is missing")) == expected(wanted(1, 3))
    assert len(parts(tmp_path)) == 2, "a file for each process that has written"
    assert store(tmp_path).missing(wanted(4, 1)) == {"q3": wanted(4, 1)["q3"]}
    assert store(tmp_path).fill({}, Echo) == {}


def test_another_seed_or_model_has_files_of_its_own(tmp_path: Path) -> None:
    others = [
        GenerationSettings("other", Decoder(top_p=0.9), 8, (2,)),
        GenerationSettings("model", Decoder(top_p=0.8), 8, (2,)),
        GenerationSettings("model", Decoder(top_p=0.9), 9, (2,)),
        GenerationSettings("model", Decoder(top_p=0.9), 8, (2, 3)),
        GenerationSettings("model", Decoder(top_p=0.9), 8, (2,), seed=1),
    ]
    for asked in (SETTINGS, *others):
        store(tmp_path, asked).fill(wanted(2, 2, asked), Echo)
    keys = [line["key"] for line in lines(tmp_path)]
    assert len(set(keys)) == len(keys) == 4 * 6
    assert len(list(tmp_path.glob("responses/echo-*"))) == 6


def test_what_the_files_say(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.add_items({"q1": {"text": "two?", "gold": "2"}})
    kept.add_items({"q0": {"text": "\u2028 one?", "gold": None}, "q1": {"text": "two?", "gold": "2"}})
    kept.fill(wanted(2, 1), Echo, keep_ids=True)
    [part] = parts(tmp_path)
    head = json.loads(part.read_text(encoding="utf-8").split("\n")[0])
    assert (head["format"], head["name"], head["model"], head["backend"]) == (1, "echo", "the model", "echo")
    assert head["versions"]["echo"] == "1.0"
    assert head["settings"]["decoder"]["top_p"] == 0.9
    [first, _] = lines(tmp_path)
    assert first.keys() == {"key", "item", "index", "seed", "text", "tokens", "finish", "mean_probability", "ids"}
    read = read_store(kept.directory)
    assert read.head == head
    assert read.items == {
        "q1": {"item": "q1", "text": "two?", "gold": "2"}, "q0": {"item": "q0", "text": "\u2028 one?", "gold": None},
    }  # fmt: skip
    assert [(line.item, line.index, line.response.ids) for line in read.lines] == [("q1", 0, (1, 0)), ("q0", 0, (1, 0))]


def test_how_fast_they_were_made_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By several stretches of work, of which one is stopped; each response once."""
    now = [100.0]
    monkeypatch.setattr("ts2_lightning.generation.rates.time.monotonic", lambda: now[0])

    class Slow(Echo):
        def complete(self, requests: Iterable[Request]) -> Iterator[Response]:
            for response in super().complete(requests):
                now[0] += 0.5
                yield response

    store = ResponseStore(tmp_path, "few", SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        store.fill(wanted(), lambda: Slow(fails_after=4))
    [rate] = read_rates(store.directory)
    assert (rate.responses, rate.seconds, rate.device, rate.backend) == (4, 2.0, "", "echo")
    store.fill(wanted(), Slow)
    [rate] = read_rates(store.directory)
    assert (rate.responses, rate.seconds) == (15, 7.5)
    assert rate.tokens == sum(one.tokens for one in store.responses().values())
    assert rate.tokens_per_second == rate.tokens / 7.5
    assert not rate.is_enough
    store.fill(wanted(), Slow)  # nothing to do, and nothing to note
    assert read_rates(store.directory) == [rate]


def test_items_with_the_same_prompt_have_the_same_responses(tmp_path: Path) -> None:
    backend = Echo()
    twice = {"a": wanted(1)["q0"], "b": wanted(1)["q0"]}
    assert store(tmp_path).fill(twice, lambda: backend) == expected(twice)
    assert len(backend.asked) == 3


def test_it_says_what_it_will_do(tmp_path: Path) -> None:
    store(tmp_path).fill(wanted(2, 2), Echo)
    said: list[str] = []
    kept = store(tmp_path)
    kept.fill(wanted(3, 2), Echo, say=said.append)
    assert said == [f"6 responses, of which 4 are there; 2 are to be made, of at most 16 tokens -> {kept.directory}"]


def test_a_backend_that_forgets_something(tmp_path: Path) -> None:
    class Forgetful(Echo):
        def complete(self, requests: Iterable[Request]) -> Iterator[Response]:
            yield from (answer(request) for request in list(requests)[1:])

    with pytest.raises(RuntimeError, match="has made no response to 1 requests"):
        store(tmp_path).fill(wanted(), Forgetful)
    assert len(lines(tmp_path)) == 14, "the others are kept"


# Kills ----------------------------------------------------------------------------------------------------------------


def test_ctrl_c_loses_nothing_that_was_made(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path).fill(wanted(), lambda: Echo(fails_after=7))
    assert len(lines(tmp_path)) == 7
    backend = Echo()
    assert store(tmp_path).fill(wanted(), lambda: backend) == expected(wanted())
    assert len(backend.asked) == 8


@settings(max_examples=60, derandomize=True, deadline=None)
@given(data=some.data())
def test_a_file_cut_at_any_byte(data: some.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Also within a character, and within the first line: what is whole counts, the rest is made again."""
    directory = tmp_path_factory.mktemp("cut")
    store(directory).fill(wanted(), Echo)
    [part] = parts(directory)
    whole = part.read_bytes()
    cut = data.draw(some.integers(0, len(whole)))
    tail = data.draw(some.sampled_from([b"", b"\x00" * 9]))  # as a file system leaves it after a power failure
    part.write_bytes(whole[:cut] + tail)
    backend = Echo()
    assert store(directory).fill(wanted(), lambda: backend) == expected(wanted())
    assert len(backend.asked) == 15 - max(0, whole[:cut].count(b"\n") - 1)


def fill_slowly(directory: Path, seconds: float, items: int = 40, together: Any = None) -> None:
    if together is not None:
        together.wait()
    store(directory).fill(wanted(items), lambda: Echo(seconds))


def test_a_killed_process_leaves_its_share_to_others(tmp_path: Path) -> None:
    process = FORK.Process(target=fill_slowly, args=(tmp_path, 0.02))
    process.start()
    while not lines(tmp_path):
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    there = lines(tmp_path)
    assert 0 < len(there) < 120
    backend = Echo()
    assert store(tmp_path).fill(wanted(40), lambda: backend) == expected(wanted(40))
    assert len(backend.asked) == 120 - len(there)


def test_processes_share_the_work(tmp_path: Path) -> None:
    """Nobody makes what another makes, also where one is killed in the middle."""
    together = FORK.Barrier(3)  # they begin at once, and work for seconds after the first lines are on disk
    processes = [FORK.Process(target=fill_slowly, args=(tmp_path, 0.1, 40, together)) for _ in range(3)]
    for process in processes:
        process.start()
    while len(parts(tmp_path)) < 3:
        time.sleep(0.05)
    assert processes[0].pid is not None
    os.kill(processes[0].pid, signal.SIGKILL)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 0, 0]
    keys = Counter(line["key"] for line in lines(tmp_path))
    assert keys == Counter(request.key for requests in wanted(40).values() for request in requests)
    assert all(part.read_bytes().count(b"\n") > 5 for part in parts(tmp_path)[1:])


def add_many(directory: Path, number: int) -> None:
    for item in range(20):
        store(directory).add_items({f"{number}-{item}": {"text": "what?"}})


def test_processes_add_items_together(tmp_path: Path) -> None:
    processes = [FORK.Process(target=add_many, args=(tmp_path, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert len(read_items(store(tmp_path).directory)) == 60


# Disks and foreign lines ----------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    room = [900]

    def scarce(descriptor: int, text: bytes) -> int:
        written = write(descriptor, text[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr("ts2_lightning.runs.writing.os.write", scarce)
    monkeypatch.setattr("ts2_lightning.generation.store._WRITE_AFTER", -1.0)
    with pytest.raises(UserError, match=r"cannot be written.*No space left.*the same command goes on") as error:
        store(tmp_path).fill(wanted(), Echo)
    assert "\n" not in str(error.value)
    there = lines(tmp_path)
    assert 0 < len(there) < 15
    monkeypatch.setattr("ts2_lightning.runs.writing.os.write", write)
    backend = Echo()
    assert store(tmp_path).fill(wanted(), lambda: backend) == expected(wanted())
    assert len(backend.asked) == 15 - len(there)


class Paid(Echo):
    """Looks at the disk before each response: what was paid for is there, whatever ends this process now."""

    keeps_each = True

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory, self.there = directory, []

    def complete(self, requests: Iterable[Request]) -> Iterator[Response]:
        for response in super().complete(requests):
            self.there.append(len(lines(self.directory)) if parts(self.directory) else 0)
            yield response


def test_what_was_paid_for_is_on_disk_at_once(tmp_path: Path) -> None:
    backend = Paid(tmp_path)
    store(tmp_path).fill(wanted(), lambda: backend)
    assert backend.there == [*range(15)]


@pytest.mark.parametrize("short", [1, 2])
def test_a_disk_that_has_room_again_gets_whole_lines(
    short: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is tried again behind a line that was cut short would make one line of two."""
    write, calls = os.write, iter(range(100))
    monkeypatch.setattr("ts2_lightning.generation.store._WRITE_AFTER", -1.0)
    monkeypatch.setattr(
        "ts2_lightning.runs.writing.os.write",
        lambda file, text: write(file, text[:250] if next(calls) < short else text),
    )
    with pytest.raises(UserError, match="No space left"):
        store(tmp_path).fill(wanted(), Echo)  # the last try, on the way out, may succeed
    monkeypatch.undo()
    assert store(tmp_path).fill(wanted(), Echo) == expected(wanted())
    assert len(lines(tmp_path)) == 15


def test_a_writer_that_is_stopped_before_its_first_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file begins with what it is, whenever the first lines are written."""
    stops = iter([True, False])

    def interrupted(descriptor: int, text: bytes) -> None:
        if next(stops, False):
            raise KeyboardInterrupt
        os.write(descriptor, text)

    monkeypatch.setattr("ts2_lightning.generation.store.append_lines", interrupted)
    monkeypatch.setattr("ts2_lightning.generation.store._WRITE_AFTER", -1.0)
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path).fill(wanted(), Echo)
    assert store(tmp_path).fill(wanted(), Echo) == expected(wanted())


class Short(Echo):
    """Takes no prompt that has a 7 and a 1 or 3."""

    def check(self, requests: Sequence[Request]) -> None:
        if any(request.prompt in ((7, 1), (7, 3)) for request in requests):
            raise UserError("the prompt 'seven' has too many tokens")


def test_prompts_that_are_too_long_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        store(tmp_path).fill(wanted(), Short)
    assert str(error.value).startswith("echo: the prompt 'seven' has too many tokens; 2 of 5 prompts are such, by ")
    assert str(error.value).endswith("items.jsonl: q1, q3; leave their rows out")
    assert not parts(tmp_path)


def test_a_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "responses").write_text("a file")
    with pytest.raises(UserError, match=r"responses/echo-.*: cannot be written"):
        store(tmp_path)


GOOD = {"key": "k", "item": "q", "index": 0, "text": "", "tokens": 1, "finish": "stop", "mean_probability": None}


@pytest.mark.parametrize(
    "line",
    [
        "{", "[]", "null", '"text"', "{}", "\x00", "[" * 10_000, json.dumps({**GOOD, "tokens": "many"}),
        json.dumps({**GOOD, "finish": "end"}), json.dumps({**GOOD, "finish": ["stop"]}),
        json.dumps({**GOOD, "key": 7}), json.dumps({**GOOD, "index": True}),
        json.dumps({**GOOD, "mean_probability": "much"}), json.dumps({**GOOD, "ids": 3}),
        json.dumps({**GOOD, "mean_probability": math.nan}), json.dumps({**GOOD, "mean_probability": -0.1}),
        json.dumps({**GOOD, "mean_probability": 1.5}), json.dumps({**GOOD, "text": "x", "tokens": 0}),
        json.dumps({**GOOD, "tokens": -1}), json.dumps({**GOOD, "index": -1}),
        json.dumps({**GOOD, "ids": [[]]}), json.dumps({**GOOD, "mean_probability": 10**400}),
    ],
)  # fmt: skip
def test_a_line_that_is_no_response_is_named(line: str, tmp_path: Path) -> None:
    store(tmp_path).fill(wanted(), Echo)
    [part] = parts(tmp_path)
    whole = part.read_text(encoding="utf-8").split("\n")
    part.write_text("\n".join([*whole[:3], line, *whole[3:]]), encoding="utf-8")
    with pytest.raises(UserError) as error:
        store(tmp_path).responses()
    assert str(error.value).startswith(f"{part}:4: no response (")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500 + len(str(part))


@pytest.mark.parametrize(("head", "message"), [("{}", "not the first line"), ('{"format": 2}', "format 2, of another")])
def test_a_file_of_something_else(head: str, message: str, tmp_path: Path) -> None:
    kept = store(tmp_path)
    (kept.directory / "part-00000.jsonl").write_text(f"{head}\n")
    with pytest.raises(UserError, match=rf"part-00000\.jsonl:1: {message}"):
        kept.responses()


@pytest.mark.parametrize(
    ("probability", "kept"), [(math.nan, None), (math.inf, None), (1 + 1e-9, 1.0), (0.25, 0.25), (None, None)]
)
def test_what_is_written_is_read(probability: float | None, kept: float | None, tmp_path: Path) -> None:
    """Also of a model whose numbers are broken, and of an empty answer of a server."""

    class Odd(Echo):
        def complete(self, requests: Iterable[Request]) -> Iterator[Response]:
            for request in requests:
                yield Response(request.key, "", 0, "stop", probability)

    made = store(tmp_path).fill(wanted(1, 1), Odd)
    assert [(one.mean_probability, one.tokens) for one in made["q0"]] == [(kept, 0)]
    assert store(tmp_path).fill(wanted(1, 1), Echo) == made


def test_other_keys_and_double_ones(tmp_path: Path) -> None:
    """What nobody asks for stays; of two with the same key the first counts, and names that are not known are none."""
    kept = store(tmp_path)
    kept.fill(wanted(1, 1), Echo)
    [first] = lines(tmp_path)
    other = kept.directory / "part-00007.jsonl"
    again = {**first, "text": "another", "later": [1]}
    strange = {**GOOD, "key": "strange", "later": [1]}
    other.write_text("".join(f"{json.dumps(line)}\n" for line in ({"format": 1}, again, strange)))
    read = store(tmp_path).responses()
    assert read.keys() == {first["key"], "strange"}
    assert read[first["key"]].text == first["text"]
    assert store(tmp_path).fill(wanted(1, 2), Echo) == expected(wanted(1, 2))


def test_half_a_character_of_a_served_model(tmp_path: Path) -> None:
    class Odd(Echo):
        def complete(self, requests: Iterable[Request]) -> Iterator[Response]:
            yield from (Response(request.key, "half \ud83d", 1, "stop") for request in requests)

    [[response]] = store(tmp_path).fill(wanted(1, 1), Odd).values()
    assert response.text == "half \ud83d"
    assert store(tmp_path).responses() == {response.key: response}


def test_a_directory_without_responses(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no responses; name a directory such as"):
        read_store(tmp_path)


def test_an_estimate_counts_what_others_have_made(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 36.0])
    monkeypatch.setattr("ts2_lightning.generation.progress.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("ts2_lightning.generation.progress.ENOUGH", (2, 20.0))
    said: list[str] = []
    with Progress(1000, "", there=98, say=said.append) as progress:
        progress.add(answer(wanted()["q0"][0]))
        progress.set_there(199)
        progress.add(answer(wanted()["q0"][2]))
    assert said == [
        "0 tokens a second, 2 tokens a response: about 4.00 hours left for this process alone"
    ]  # 800 responses, 18 s each
