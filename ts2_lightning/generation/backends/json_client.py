"""A client of servers that take and give JSON: one call, one object, or one line that says why not.

Calls are retried where that helps, and are bounded in time and size. The key comes from the environment and goes to one
host; it is in no message, file or log.
"""

import ipaddress
import json
import os
import random
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx2

from ts2_lightning.ranges import COUNT, POSITIVE, check_numbers
from ts2_lightning.types import UserError

_MOST_BYTES = 32 * 2**20
"""An answer of the longest context with log-probabilities has a fraction of it."""
_LONGEST_WAIT, _LONGEST_REQUESTED_WAIT = 60.0, 600.0
_CONNECT_SECONDS, _LOOK_UP_SECONDS = 15.0, 30.0


@dataclass(frozen=True)
class ClientSettings:
    """How a server is called.

    Attributes:
        timeout: seconds that one answer may take.
        tries: number of times that a call is tried.
        first_wait: seconds before the second try, at most; they double with each further one, up to a minute.
        concurrency: number of calls under way at the same time.
        api_key_env: environment variable that has the key; empty sends none.
        key_over_http: whether a key may travel unencrypted to another machine.

    Raises:
        UserError: a number out of its range.
    """

    timeout: float = 600.0
    tries: int = 8
    first_wait: float = 1.0
    concurrency: int = 16
    api_key_env: str = "OPENAI_API_KEY"
    key_over_http: bool = False

    def __post_init__(self) -> None:
        check_numbers("endpoint: ", self, timeout=POSITIVE, tries=COUNT, first_wait=POSITIVE, concurrency=COUNT)


class ServerError(UserError):
    """A server's refusal.

    Attributes:
        status: HTTP status.
        detail: the server's words, shortened to one line.
    """

    def __init__(self, message: str, status: int, detail: str) -> None:
        super().__init__(message)
        self.status = status
        self.detail = detail


class Stopped(Exception):  # noqa: N818 (it is no error)
    """Nobody waits for the answer any more."""


@dataclass
class Usage:
    """What a client's calls have taken so far, as far as the server says it.

    Attributes:
        calls: number of calls that were answered.
        retries: number of tries beyond the first of each call.
        prompt_tokens: number of tokens of all prompts.
        completion_tokens: number of tokens of all answers.
    """

    calls: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Again(Exception):  # noqa: N818 (it never leaves this file)
    """A try failed in a way in which the next may not.

    Attributes:
        error: the error if this was the last try.
        wait: seconds that the server asks to wait; None if it does not say.
    """

    def __init__(self, error: UserError, wait: float | None = None) -> None:
        super().__init__()
        self.error = error
        self.wait = wait


class JsonClient:
    """Calls one server. It may be shared by threads.

    Args:
        url: beginning of the addresses that are called, such as `https://api.openai.com/v1`.
        settings: how the server is called.

    Attributes:
        url: the same, without a slash at its end.
        usage: what the calls have taken so far.

    Raises:
        UserError: an address that is none or has a password or query in it, a key that cannot be sent, or one that
            would travel unencrypted.

    Example:
        >>> JsonClient("http://localhost:8000/v1/", ClientSettings(api_key_env="")).url
        'http://localhost:8000/v1'
    """

    def __init__(self, url: str, settings: ClientSettings = ClientSettings()) -> None:
        self.url = url.rstrip("/")
        self.settings = settings
        self.usage = Usage()
        scheme, host = _scheme_and_host(self.url)
        self._key = _key(settings.api_key_env)
        is_local = _is_local(host)
        if self._key and scheme == "http" and not is_local and not settings.key_over_http:
            raise UserError(
                f"{self.url}: the key in {settings.api_key_env} would travel unencrypted; take https, --api_key_env '' "
                "to send none, or --key_over_http if the network is trusted"
            )
        self._client = httpx2.Client(
            headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {}),
            limits=httpx2.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency),
            follow_redirects=False,  # they could lead the key elsewhere
            trust_env=not is_local,  # a proxy does not know this machine's own servers
        )
        self._lock = threading.Lock()
        self._jitter = random.Random()
        self._not_before = 0.0
        self._has_answered = False

    def get(self, path: str, stopped: threading.Event | None = None) -> dict[str, Any]:
        """The object at an address. Arguments and errors are those of `post`."""
        return self._call("GET", path, None, stopped)

    def post(self, path: str, body: Mapping[str, Any], stopped: threading.Event | None = None) -> dict[str, Any]:
        """The object with which the server answers to another one.

        Args:
            path: end of the address, with a slash before it.
            body: object that is sent.
            stopped: event after which nobody waits for the answer.

        Raises:
            ServerError: a refusal of the server, or a last one after several tries.
            UserError: no answer, or one that is no JSON object.
            Stopped: the event happened.
        """
        return self._call("POST", path, body, stopped)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None, stopped: threading.Event | None
    ) -> dict[str, Any]:
        stopped = stopped or threading.Event()
        content = None if body is None else json.dumps(body).encode()  # in ASCII, as a prompt may have half a character
        for number in range(self.settings.tries):
            self._pause(self._not_before - time.monotonic(), stopped)
            try:
                answer = self._try(method, path, content)
            except _Again as again:
                if number + 1 == self.settings.tries:
                    tries = f" ({number + 1} tries)" if number else ""
                    raise _with_ending(again.error, tries) from None
                with self._lock:
                    self.usage.retries += 1
                self._pause(self._wait(number, again.wait), stopped)
            else:
                self._count(answer)
                return answer
        raise AssertionError("there is a first try")

    def _wait(self, number: int, requested: float | None) -> float:
        """Seconds before the next try. What a server asks for holds for all calls, which it counts together."""
        backoff = min(_LONGEST_WAIT, self.settings.first_wait * 2.0**number) * self._jitter.uniform(0.5, 1)
        if requested is None:
            return backoff
        with self._lock:
            self._not_before = max(self._not_before, time.monotonic() + requested)
        return requested + self._jitter.uniform(0, min(backoff, 1.0))  # not all of them at the same moment

    @staticmethod
    def _pause(seconds: float, stopped: threading.Event) -> None:
        if stopped.wait(seconds) if seconds > 0 else stopped.is_set():
            raise Stopped

    def _try(self, method: str, path: str, content: bytes | None) -> dict[str, Any]:
        """One try.

        Raises:
            _Again: where the next one may succeed.
        """
        headers = {"Content-Type": "application/json"} if content is not None else {}
        seconds = self.settings.timeout if content is not None else min(self.settings.timeout, _LOOK_UP_SECONDS)
        timeout = httpx2.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS), pool=None)
        deadline = time.monotonic() + seconds
        try:
            with self._client.stream(
                method, self.url + path, content=content, headers=headers, timeout=timeout
            ) as response:
                received = self._read(response, deadline)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            cause = self.in_a_line(str(error)) or "no connection in time"
            unreachable = UserError(f"{self.url} cannot be reached ({cause}); start the server, or mend the address")
            if not self._has_answered:  # a wrong address is not worth minutes of tries
                raise unreachable from None
            raise _Again(unreachable) from None
        except httpx2.TimeoutException:
            raise _Again(UserError(f"{self.url}: no answer within {seconds:g} s (--timeout)")) from None
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            broken = UserError(
                f"{self.url}: the connection broke ({self.in_a_line(str(error)) or type(error).__name__})"
            )
            if isinstance(error, httpx2.NetworkError | httpx2.RemoteProtocolError | httpx2.ProxyError):
                raise _Again(broken) from None
            raise broken from None
        self._has_answered = True
        if not response.is_success:
            raise self._refusal(response, received)
        return self._object(path, received)

    def _read(self, response: httpx2.Response, deadline: float) -> bytes:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise UserError(f"{self.url}: answers compressed, which was not asked for")  # a bomb could be in it
        received = bytearray()
        for chunk in response.iter_raw():
            received += chunk
            if len(received) > _MOST_BYTES:
                raise UserError(f"{self.url}: an answer has more than {_MOST_BYTES // 2**20} MiB")
            if time.monotonic() > deadline:  # httpx bounds the time between two chunks only
                raise httpx2.ReadTimeout("")
        return bytes(received)

    def _refusal(self, response: httpx2.Response, received: bytes) -> Exception:
        """The error of an answer whose status is none of success."""
        status = response.status_code
        detail = self.in_a_line(_words(received)) or response.reason_phrase
        if response.is_redirect:
            target = urlsplit(response.headers.get("Location", ""))
            place = self.in_a_line(
                f"{target.scheme}://{target.hostname}{target.path}" if target.hostname else target.path
            )
            return ServerError(f"{self.url}: is redirected to {place}; give that address if it is right", status, place)
        if status == 401:
            return ServerError(f"{self.url}: {self._key_trouble()} (401: {detail})", status, detail)
        error = ServerError(f"{self.url}: refuses ({status}: {detail})", status, detail)
        if "insufficient_quota" in received[:10_000].decode(errors="replace"):
            return error  # a 429 that no wait mends
        if status not in (408, 409, 429) and status < 500:
            return error
        wait = seconds_to_wait(response.headers.get("Retry-After"))
        if wait is not None and wait > _LONGEST_REQUESTED_WAIT:
            return _with_ending(error, f" and wants to be asked again in {wait:,.0f} s only; start again then")
        return _Again(error, wait)

    def _key_trouble(self) -> str:
        variable = self.settings.api_key_env
        if self._key:
            return f"does not take the key in {variable}; set the right one"
        return f"wants a key; set {variable}" if variable else "wants a key; name its variable with --api_key_env"

    def _object(self, path: str, received: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(received)
        except (ValueError, RecursionError):
            start = self.in_a_line(received[:200].decode(errors="replace"))[:80]
            raise UserError(
                f"{self.url}{path}: answers with what is no JSON ({start!r}); correct the address"
            ) from None
        if not isinstance(answer, dict):
            raise UserError(f"{self.url}{path}: must answer with an object, got {type(answer).__name__}")
        return answer

    def _count(self, answer: Mapping[str, Any]) -> None:
        usage: Any = answer.get("usage")
        tokens = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")} if _is_object(usage) else {}
        with self._lock:
            self.usage.calls += 1
            for name, count in tokens.items():
                if isinstance(count, int) and count > 0:
                    setattr(self.usage, name, getattr(self.usage, name) + count)

    def without_key(self, text: str, least: int = 1) -> str:
        """A server's words without the key, which it may repeat.

        Args:
            text: the words.
            least: shortest key that is looked for: `EMPTY` is no secret, and a word that responses may have.
        """
        return text.replace(self._key, "***") if self._key and len(self._key) >= least else text

    def in_a_line(self, text: str) -> str:
        """A server's words in one line of bounded length, without the key."""
        text = self.without_key(text)
        text = " ".join(re.sub(r"[^\x20-\x7e\xa1-\U0010ffff]+", " ", text).split())
        return text if len(text) <= 300 else f"{text[:297]}..."


def seconds_to_wait(header: str | None) -> float | None:
    """The wait that a `Retry-After` header asks for, in seconds or until a date; None if it asks for none.

    Args:
        header: value of the header; None without it.

    Example:
        >>> seconds_to_wait("2.5"), seconds_to_wait("Wed, 21 Oct 2015 07:28:00 GMT"), seconds_to_wait("soon")
        (2.5, 0.0, None)
    """
    if header is None:
        return None
    if re.fullmatch(r"\s*\d{1,9}(\.\d{1,9})?\s*", header, re.ASCII):
        return float(header)
    try:
        until = parsedate_to_datetime(header)
        until = until if until.tzinfo else until.replace(tzinfo=UTC)
        return max(0.0, (until - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return None


def _scheme_and_host(url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for one that is no number
    except ValueError as error:
        raise UserError(f"endpoint: the address is not right ({error})") from None
    if parts.username is not None or parts.password is not None or parts.query:  # not repeated: they may be secrets
        raise UserError(
            "endpoint: the address must have no name, password or query in it; put the key into the environment "
            "variable of --api_key_env"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"endpoint: the address must be like http://localhost:8000/v1, got {url!r}")
    return parts.scheme, parts.hostname


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip() if variable else ""
    if not re.fullmatch(r"[\x21-\x7e]*", key):
        raise UserError(f"{variable}: the key has characters that no header takes; set the right one")
    return key


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _words(received: bytes) -> str:
    """What an error's body says: `error.message`, `message` or `detail` of its JSON, or its beginning."""
    text = received[:100_000].decode(errors="replace")
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError):
        return re.sub(r"<[^>]*>", " ", text)
    while _is_object(content):
        content = next((content[name] for name in ("error", "message", "detail") if content.get(name)), text)
    return content if isinstance(content, str) else json.dumps(content)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _with_ending(error: UserError, ending: str) -> UserError:
    message = f"{error}{ending}"
    return ServerError(message, error.status, error.detail) if isinstance(error, ServerError) else UserError(message)
