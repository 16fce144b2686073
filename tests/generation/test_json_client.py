"""The client against a real server on this machine that refuses, drops, dawdles and lies."""

import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from tests.support.json_server import Answer, JsonServer, free_port
from ts2_lightning.generation.backends.json_client import (
    ClientSettings,
    JsonClient,
    ServerError,
    Stopped,
    seconds_to_wait,
)
from ts2_lightning.types import UserError

KEY = "sk-very-secret-0123456789"
GOOD = Answer({"answer": 1, "usage": {"prompt_tokens": 7, "completion_tokens": 3}})


def client(url: str, **settings: Any) -> JsonClient:
    return JsonClient(url, ClientSettings(**{"first_wait": 0.01, "tries": 4, "timeout": 5.0, **settings}))


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return KEY


@pytest.mark.parametrize(
    "failure",
    [
        *(Answer({"error": "later"}, status) for status in (408, 409, 429, 500, 502, 503, 529)),
        Answer(b'{"answer": 1}', cut=5),
        Answer(b'{"answer": 1}', cut=0),
    ],
    ids=lambda answer: f"{answer.status}-{answer.cut}",
)
def test_what_may_pass_is_tried_again(failure: Answer) -> None:
    with JsonServer([failure, failure, GOOD]) as server:
        mine = client(server.url)
        assert mine.post("/x", {"a": "ü"})["answer"] == 1
        assert [call.body for call in server.calls] == [{"a": "ü"}] * 3
        assert (mine.usage.calls, mine.usage.retries) == (1, 2)
        assert (mine.usage.prompt_tokens, mine.usage.completion_tokens) == (7, 3)


def test_half_a_character_is_sent_as_its_number() -> None:
    with JsonServer([GOOD]) as server:
        client(server.url).post("/x", {"a": "\ud83d"})
        assert [call.body for call in server.calls] == [{"a": "\ud83d"}]


@pytest.mark.parametrize("status", [400, 403, 404, 413, 422])
def test_a_refusal_is_told_at_once(status: int) -> None:
    with JsonServer([Answer({"error": {"message": "no\nsuch thing"}}, status)]) as server:
        with pytest.raises(ServerError, match=rf"refuses \({status}: no such thing\)$") as caught:
            client(server.url).post("/x", {})
        assert (len(server.calls), caught.value.status, caught.value.detail) == (1, status, "no such thing")


def test_tries_end() -> None:
    with JsonServer(otherwise=lambda _: Answer(b"<html><b>busy</b></html>", 503)) as server:
        with pytest.raises(ServerError, match=r"\(503: busy\) \(4 tries\)$"):
            client(server.url).post("/x", {})
        assert len(server.calls) == 4


def test_waits_double_and_vary(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(JsonClient, "_pause", staticmethod(lambda seconds, _: waits.append(seconds)))
    with JsonServer(otherwise=lambda _: Answer(status=500)) as server:
        for _ in range(2):
            with pytest.raises(ServerError):
                client(server.url, first_wait=8.0, tries=6).post("/x", {})
    first, second = ([wait for wait in half if wait > 0] for half in (waits[:11], waits[11:]))
    for wait, most in zip(first, (8, 16, 32, 60, 60), strict=True):
        assert most / 2 <= wait <= most
    assert first != second


@pytest.mark.parametrize("as_date", [False, True])
def test_a_server_s_wait_holds_for_all_calls(as_date: bool) -> None:
    until = datetime.now(UTC) + timedelta(seconds=3)  # such dates have whole seconds
    header = format_datetime(until, usegmt=True) if as_date else "1"
    with JsonServer([Answer(status=429, headers={"Retry-After": header})], lambda _: GOOD) as server:
        mine = client(server.url)
        with ThreadPoolExecutor() as pool:
            first = pool.submit(mine.post, "/x", {})
            while not server.calls:
                time.sleep(0.01)
            time.sleep(0.2)
            second = pool.submit(mine.post, "/y", {})
            first.result(), second.result()
        start, *others = (call.at for call in server.calls)
        assert all(at - start >= 0.95 for at in others)
        assert len(others) == 2


def test_a_wait_of_hours_is_told() -> None:
    with (
        JsonServer([Answer(status=429, headers={"Retry-After": "7200"})]) as server,
        pytest.raises(ServerError, match="wants to be asked again in 7,200 s only"),
    ):
        client(server.url).post("/x", {})


def test_no_wait_mends_an_account_that_is_empty() -> None:
    empty = Answer({"error": {"message": "pay first", "code": "insufficient_quota"}}, 429)
    with JsonServer([empty]) as server, pytest.raises(ServerError, match="pay first"):
        client(server.url).post("/x", {})


@pytest.mark.parametrize("header", ["", "soon", "-1", "1e3", "nan", "٣", None])
def test_a_wait_that_is_none(header: str | None) -> None:
    assert seconds_to_wait(header) is None


def test_a_slow_answer_is_left_and_asked_for_again() -> None:
    with JsonServer([Answer({"answer": 0}, delay=1.0), GOOD]) as server:
        assert client(server.url, timeout=0.2).post("/x", {})["answer"] == 1


def test_an_answer_that_drips_is_bounded_as_a_whole() -> None:
    """Each byte comes in time, the whole does not."""
    drip = Answer(b'{"answer": "' + b"a" * 60 + b'"}', drip=0.05)
    with JsonServer(otherwise=lambda _: drip) as server:
        start = time.monotonic()
        with pytest.raises(UserError, match=r"no answer within 0.3 s \(--timeout\) \(2 tries\)"):
            client(server.url, timeout=0.3, tries=2).post("/x", {})
        assert time.monotonic() - start < 2


def test_a_body_without_end_is_left() -> None:
    with (
        JsonServer([Answer(b" " * (33 * 2**20))]) as server,
        pytest.raises(UserError, match="an answer has more than 32 MiB"),
    ):
        client(server.url).post("/x", {})


def test_a_compressed_body_is_not_unpacked() -> None:
    with (
        JsonServer([Answer(b"\x1f\x8b", headers={"Content-Encoding": "gzip"})]) as server,
        pytest.raises(UserError, match="answers compressed"),
    ):
        client(server.url).post("/x", {})
    assert server.calls[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"<!doctype html><p>Welcome", "answers with what is no JSON ('<!doctype html><p>Welcome')"),
        (b"\xff\xfe\x00", "answers with what is no JSON"),
        (b"", "answers with what is no JSON ('')"),
        (b"[" * 100_000, "answers with what is no JSON"),
        (b"[1]", "must answer with an object, got list"),
    ],
)
def test_garbage_is_told_in_a_line(body: bytes, says: str) -> None:
    with JsonServer([Answer(body)]) as server, pytest.raises(UserError) as caught:
        client(server.url).post("/x", {})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_nobody_there() -> None:
    port = free_port()
    start = time.monotonic()
    with pytest.raises(
        UserError, match=rf"http://127.0.0.1:{port} cannot be reached \(.*refused.*\); start the server"
    ):
        client(f"http://127.0.0.1:{port}", first_wait=30.0).post("/x", {})
    assert time.monotonic() - start < 5  # a wrong address is not tried again and again


def test_a_server_that_has_gone_away_is_waited_for() -> None:
    with JsonServer([GOOD]) as server:
        mine = client(server.url)
        mine.post("/x", {})
    with pytest.raises(UserError, match=r"\(4 tries\)"):
        mine.post("/x", {})
    assert mine.usage.retries == 3


def test_waiting_stops_at_once() -> None:
    stopped = threading.Event()
    with JsonServer(otherwise=lambda _: Answer(status=503, headers={"Retry-After": "60"})) as server:
        threading.Timer(0.3, stopped.set).start()
        start = time.monotonic()
        with pytest.raises(Stopped):
            client(server.url).post("/x", {}, stopped)
        assert time.monotonic() - start < 2


# The key --------------------------------------------------------------------------------------------------------------


def test_the_key_is_sent() -> None:
    with JsonServer([GOOD, GOOD]) as server:
        client(server.url).post("/x", {})
        client(server.url, api_key_env="").post("/x", {})
        assert server.calls[0].headers["authorization"] == f"Bearer {KEY}"
        assert "authorization" not in server.calls[1].headers


LEAKS: dict[str, Callable[[], Answer]] = {
    "repeated": lambda: Answer({"error": {"message": f"Incorrect API key provided: {KEY}."}}, 401),
    "bad request": lambda: Answer({"error": {"message": f"headers: Bearer {KEY}"}}, 400),
    "no JSON": lambda: Answer(f"you sent {KEY}".encode()),
    "redirect": lambda: Answer(status=302, headers={"Location": f"http://elsewhere.example/{KEY}?key={KEY}"}),
    "reason": lambda: Answer(f"<p>{KEY}</p>".encode(), 500),
    "cut": lambda: Answer(b'{"answer": 1}', cut=3),
}


@pytest.mark.parametrize("name", LEAKS)
def test_the_key_is_in_no_message(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with JsonServer(otherwise=lambda _: LEAKS[name]()) as server:
        mine = client(server.url, tries=1)
        with pytest.raises(UserError) as caught:
            mine.post("/x", {})
    shown = (
        "".join(traceback.format_exception(caught.value)) + repr(mine) + repr(vars(mine.settings)) + str(mine._client)
    )
    assert KEY not in shown
    assert KEY not in "".join(capfd.readouterr())


def test_a_wrong_key_and_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with JsonServer(otherwise=lambda _: Answer({"detail": "Unauthorized"}, 401)) as server:
        with pytest.raises(
            UserError, match=r"does not take the key in OPENAI_API_KEY; set the right one \(401: Unauth"
        ):
            client(server.url).post("/x", {})
        monkeypatch.delenv("OPENAI_API_KEY")
        with pytest.raises(UserError, match="wants a key; set OPENAI_API_KEY"):
            client(server.url).post("/x", {})


def test_a_redirect_takes_the_key_nowhere() -> None:
    with JsonServer(otherwise=lambda _: GOOD) as other:
        moved = Answer(status=307, headers={"Location": f"{other.url}/x"})
        with (
            JsonServer([moved]) as server,
            pytest.raises(UserError, match=r"is redirected to http://127.0.0.1/x; give"),
        ):
            client(server.url).post("/x", {})
        assert other.calls == []


def test_a_key_does_not_travel_unencrypted() -> None:
    with pytest.raises(
        UserError, match=r"the key in OPENAI_API_KEY would travel unencrypted; take https, --api_key_env"
    ):
        client("http://node17:8000/v1")
    for url in ("https://node17/v1", "http://localhost:1/v1", "http://127.8.8.8/v1", "http://[::1]:8000/v1"):
        client(url)
    client("http://node17:8000/v1", key_over_http=True)
    client("http://node17:8000/v1", api_key_env="")


@pytest.mark.parametrize(
    "url",
    [f"https://me:{KEY}@host/v1", f"https://{KEY}@host/v1", f"https://host/v1?key={KEY}", "host:8000", "ftp://h", ""],
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(UserError, match="the address must") as caught:
        client(url)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("bad", ["sk-a\nX-Evil: 1", "sk ü", "sk-\x00"])
def test_a_key_that_no_header_takes(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {"OPENAI_API_KEY": bad})
    with pytest.raises(UserError, match="characters that no header takes") as caught:
        client("https://host")
    assert bad not in str(caught.value)
