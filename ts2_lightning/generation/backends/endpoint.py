"""Responses from an OpenAI-compatible endpoint: a provider's, or one of your own, such as `vllm serve`.

Messages go to `/chat/completions`; text and token ids are continued by `/completions`. The server has the model, its
template and its ends. It draws the tokens too: each request has its own seed, which vLLM follows, providers follow as
far as they can, and some servers do not know.
"""

import math
import queue
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal
from urllib.parse import urlsplit

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from ts2_lightning.generation.backends.base import Backend
from ts2_lightning.generation.backends.json_client import ClientSettings, JsonClient, ServerError, Stopped, Usage
from ts2_lightning.generation.requests import Request, Response
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError

PREFIX = "endpoint:"
OPTIONAL = ("seed", "logprobs")
"""Fields that can be left out of requests: without them the same distribution is sampled."""

_SECRET = 16
"""Characters of a key that is taken for a secret; servers of one's own are given words such as EMPTY."""
_SHOWN = 60
_GRACE_SECONDS = 30.0
"""Time that calls under way get to end after one has failed: they are paid for already."""
_TOO_LONG = re.compile(r"context[ _]?(length|window|size)|max_model_len|too (long|large)", re.IGNORECASE)


@dataclass(frozen=True)
class Address:
    """Where a served model is.

    Attributes:
        url: beginning of its addresses, such as `http://localhost:8000/v1`.
        model: name of the model there.
    """

    url: str
    model: str

    @classmethod
    def parse(cls, text: str) -> "Address":
        """The address in `endpoint:URL#MODEL`; a URL without a path gets `/v1`.

        Raises:
            UserError: a text of another form.

        Example:
            >>> Address.parse("endpoint:http://localhost:8000#llama")
            Address(url='http://localhost:8000/v1', model='llama')
        """
        url, _, model = text.removeprefix(PREFIX).partition("#")
        url = re.sub(r"(/chat)?/completions/?$|/+$", "", url.strip())
        if not url or not model.strip():
            raise UserError(f"an endpoint must be like {PREFIX}http://localhost:8000#MODEL; it lacks URL or MODEL")
        if "://" in url and not url.split("://", 1)[1].partition("/")[1]:
            url += "/v1"
        return cls(url, model.strip())


class Endpoint(Backend):
    """Responses of a served model.

    Args:
        address: where the model is.
        settings: how its server is called; None for the defaults of `ClientSettings`.
        leave_out: fields that its server does not take, of `OPTIONAL`.

    Attributes:
        client: what calls the server; its `usage` has the tokens of all prompts and answers.

    Raises:
        UserError: an address that cannot be used, or a field that cannot be left out.
    """

    keeps_each = True

    def __init__(self, address: Address, settings: ClientSettings | None = None, leave_out: Sequence[str] = ()) -> None:
        if wrong := next((name for name in leave_out if name not in OPTIONAL), None):
            raise UserError(
                f"endpoint: leave_out must be of {', '.join(OPTIONAL)}, got {wrong!r}; what else is sent changes the "
                "responses"
            )
        self.address = address
        self.client = JsonClient(address.url, settings or ClientSettings())
        self._leave_out = frozenset(leave_out)
        self._limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
        self._finishes: Counter[str] = Counter()

    @property
    def usage(self) -> Usage:
        """What all calls so far have taken."""
        return self.client.usage

    @property
    def versions(self) -> Mapping[str, str]:
        """Address, model, and what the server says of itself."""
        return {"backend": "endpoint", "url": self.address.url, "model": self.address.model} | self._server

    def close(self) -> None:
        """As the base class: it closes the connections."""
        self.client.close()

    def check(self, requests: Sequence[Request]) -> None:
        """Raises UserError for a decoder that servers do not have, or a server that does not have the model."""
        for settings in {id(request.settings): request.settings for request in requests}.values():
            if settings.decoder.projection != "softmax":
                raise UserError(
                    f"an endpoint samples from the softmax only, not with {settings.decoder.projection}; take the "
                    "transformers backend"
                )
        if requests:
            _ = self._server

    def complete(self, requests: Iterable[Request]) -> Iterator[Response]:
        """As the base class. Ctrl-C ends at once; responses that have come are handed over before."""
        self._finishes.clear()
        pool = _Pool(self._ask, self.client.settings.concurrency)
        try:
            for request in requests:
                self.check([request])  # the first asks whether server, key and model are right, before many do
                yield from pool.take(request)
            yield from pool.rest()
        except KeyboardInterrupt:
            yield from pool.arrived()
            raise
        finally:
            pool.stop()
        if self._finishes:
            unusual = ", ".join(f"{reason}: {count:,}" for reason, count in self._finishes.most_common(5))
            rank_zero_warn(f"{self.address.url}: responses that ended in an unusual way, taken as they are ({unusual})")

    # The server -------------------------------------------------------------------------------------------------------

    @cached_property
    def _server(self) -> dict[str, str]:
        """The names of server and version, as far as it says them.

        Raises:
            UserError: a server that cannot be reached, takes no key, or lists its models without this one.
        """
        try:
            listed = self._models()
        except ServerError as error:
            if error.status in (404, 405, 501):  # it lists none
                return {}
            raise
        owner = listed.get(self.address.model)
        if listed and owner is None:
            raise self._no_such_model(listed)
        if owner != "vllm":
            return {"owner": self.client.in_a_line(owner)} if owner else {}
        return {"owner": owner, "vllm": self.client.in_a_line(self._vllm_version())}

    def _models(self) -> dict[str, str]:
        """The models that the server lists: who it says owns each."""
        listed = self.client.get("/models").get("data")
        models = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        return {str(one.get("id")): str(one.get("owned_by") or "") for one in models}

    def _vllm_version(self) -> str:
        parts = urlsplit(self.address.url)
        beside = JsonClient(f"{parts.scheme}://{parts.netloc}", ClientSettings(api_key_env="", tries=1))
        try:
            return str(beside.get("/version").get("version"))
        except UserError:
            return "unknown"
        finally:
            beside.close()

    def _no_such_model(self, listed: Mapping[str, str]) -> UserError:
        near = did_you_mean(self.address.model, listed)
        names = ", ".join(sorted(listed)[:8]) + (", ..." if len(listed) > 8 else "")
        serves = near or (f"; it has {names}" if listed else "")
        return UserError(f"{self.address.url}: has no model {self.address.model!r}{self.client.in_a_line(serves)}")

    @property
    def _is_vllm(self) -> bool:
        return "vllm" in self._server

    # One response -----------------------------------------------------------------------------------------------------

    def _ask(self, request: Request, stopped: threading.Event) -> Response:
        is_chat = bool(request.prompt) and isinstance(request.prompt[0], Mapping)
        path = "/chat/completions" if is_chat else "/completions"
        while True:
            field = self._limit_field
            body = self._body(request, is_chat)
            try:
                return self._response(request, self.client.post(path, body, stopped))
            except ServerError as error:
                if field == "max_tokens" and error.status == 400 and "max_completion_tokens" in error.detail:
                    self._limit_field = "max_completion_tokens"  # a newer model of OpenAI's
                    continue
                raise self._refusal(request, path, body, error) from None

    def _body(self, request: Request, is_chat: bool) -> dict[str, Any]:
        """What is sent. A model's own settings, which vLLM would take for what is left out, do not apply."""
        settings, decoder = request.settings, request.settings.decoder
        prompt: Any = request.prompt
        body: dict[str, Any] = {"model": self.address.model}
        body |= {"messages": [dict(turn) for turn in prompt]} if is_chat else {"prompt": _plain(prompt)}
        body |= {"temperature": decoder.temperature, "top_p": decoder.top_p, "seed": request.seed}
        body |= {self._limit_field: settings.max_new_tokens, "logprobs": True if is_chat else 1}
        if decoder.top_k or self._is_vllm:
            body["top_k"] = decoder.top_k
        if self._is_vllm:
            body |= {"repetition_penalty": 1.0, "min_p": 0.0, "return_token_ids": True}
        if settings.end_ids:
            body["stop_token_ids"] = list(settings.end_ids)
        return {name: value for name, value in body.items() if name not in self._leave_out}

    def _response(self, request: Request, answer: Mapping[str, Any]) -> Response:
        choice = next(iter(answer.get("choices") or ()), None) if isinstance(answer.get("choices"), list) else None
        if not isinstance(choice, dict):
            raise UserError(f"{self.address.url}: an answer without choices to the prompt {_shown(request)}")
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else choice.get("text")
        log_probabilities = _log_probabilities(choice.get("logprobs"))
        usage = answer.get("usage")
        tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if not isinstance(tokens, int) or tokens < (1 if text else 0):  # some servers count nothing, and say 0
            if not log_probabilities:
                raise UserError(f"{self.address.url}: an answer does not say how many tokens it has (usage)")
            tokens = len(log_probabilities)
        ids = choice.get("token_ids")
        has_all = log_probabilities is not None and len(log_probabilities) == tokens
        return Response(
            key=request.key,
            text=self.client.without_key(text, _SECRET) if isinstance(text, str) else "",
            tokens=tokens,
            finish=self._finish(choice.get("finish_reason")),
            mean_probability=_mean_probability(log_probabilities),
            ids=tuple(ids) if isinstance(ids, list) and len(ids) == tokens else None,
            log_probabilities=log_probabilities if has_all else None,
        )

    def _finish(self, reason: object) -> Literal["stop", "length"]:
        if reason not in ("stop", "length"):
            self._finishes[self.client.in_a_line(str(reason))] += 1
        return "length" if reason == "length" else "stop"

    def _refusal(self, request: Request, path: str, body: Mapping[str, Any], error: ServerError) -> UserError:
        if error.status == 404:
            try:
                listed = self._models()
            except (UserError, Stopped):
                listed = {}
            if self.address.model not in listed:
                return self._no_such_model(listed)
            return UserError(f"{error}; the server has no {path}")
        if error.status not in (400, 413, 422):
            return error
        if _TOO_LONG.search(error.detail):
            limit = request.settings.max_new_tokens
            return UserError(
                f"{self.address.url}: the prompt {_shown(request)} with {limit:,} new tokens does not fit "
                f"({error.detail}); shorten it or lower max_new_tokens"
            )
        field = next((name for name in body if re.search(rf"\b{name}\b", error.detail)), None)
        if field in OPTIONAL:
            return UserError(
                f"{self.address.url}: does not take {field} ({error.detail}); leave it out: --leave_out {field}"
            )
        if field in ("top_k", "stop_token_ids"):
            return UserError(
                f"{self.address.url}: does not take {field} ({error.detail}); do without, or take another backend"
            )
        return UserError(f"{error}; the prompt was {_shown(request)}")


class _Pool:
    """Threads that make responses. Not one of `concurrent.futures`, for whose threads Python waits before it exits.

    Args:
        make: makes one response, and stops when the event happens.
        size: number of threads; twice as many requests are taken before their time.
    """

    def __init__(self, make: Callable[[Request, threading.Event], Response], size: int) -> None:
        self._make = make
        self._size = size
        self._stopped = threading.Event()
        self._waiting: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Response | Exception] = queue.SimpleQueue()
        self._open = 0
        self._threads = 0

    def take(self, request: Request) -> Iterator[Response]:
        """Takes a request, and hands over what is done, waiting for some of it if there is much to do.

        Raises:
            Exception: the first error, once what is under way has ended.
        """
        if self._threads < self._size:
            self._threads += 1
            threading.Thread(target=self._work, daemon=True).start()
        self._waiting.put(request)
        self._open += 1
        while self._open and (self._open >= 2 * self._size or not self._done.empty()):
            yield from self._next()

    def rest(self) -> Iterator[Response]:
        """Hands over all that is still to be made."""
        while self._open:
            yield from self._next()

    def arrived(self) -> Iterator[Response]:
        """Hands over what is there, without waiting."""
        while not self._done.empty():
            if isinstance(item := self._done.get(), Response):
                yield item

    def stop(self) -> None:
        """Ends the threads, each when its call ends."""
        self._stopped.set()
        for _ in range(self._threads):
            self._waiting.put(None)

    def _next(self) -> Iterator[Response]:
        item = self._done.get()
        self._open -= 1
        if isinstance(item, Response):
            yield item
            return
        self._stopped.set()
        try:
            while self._open:
                under_way = self._done.get(timeout=_GRACE_SECONDS)
                self._open -= 1
                if isinstance(under_way, Response):
                    yield under_way
        except queue.Empty:  # one of them hangs
            pass
        raise item

    def _work(self) -> None:
        while (request := self._waiting.get()) is not None:
            try:
                if self._stopped.is_set():
                    raise Stopped
                self._done.put(self._make(request, self._stopped))
            except Exception as error:
                self._stopped.set()
                self._done.put(error)


def _plain(prompt: Any) -> str | list[int]:
    return prompt if isinstance(prompt, str) else list(prompt)


def _shown(request: Request) -> str:
    prompt: Any = request.prompt
    text = prompt[-1].get("content", "") if prompt and isinstance(prompt[-1], Mapping) else prompt
    text = " ".join(str(text).split())
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")


def _log_probabilities(logprobs: Any) -> tuple[float, ...] | None:
    """Log-probabilities of a choice: those of a chat, of a completion, or None."""
    if not isinstance(logprobs, dict):
        return None
    content = logprobs.get("content")
    numbers = [one.get("logprob") for one in content if isinstance(one, dict)] if isinstance(content, list) else None
    numbers = logprobs.get("token_logprobs") if numbers is None else numbers
    if not isinstance(numbers, list) or not all(
        isinstance(number, int | float) and math.isfinite(number) for number in numbers
    ):
        return None
    return tuple(map(float, numbers))


def _mean_probability(log_probabilities: tuple[float, ...] | None) -> float | None:
    if not log_probabilities:
        return None
    mean = math.fsum(math.exp(min(number, 0.0)) for number in log_probabilities) / len(log_probabilities)
    return mean if math.isfinite(mean) else None
