"""The endpoint backend against a real server on this machine that speaks like OpenAI's, or like vLLM's."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.json_server import Answer, Call, JsonServer, free_port
from ts2_lightning.generation import Decoder
from ts2_lightning.generation.backends.endpoint import Address, Endpoint
from ts2_lightning.generation.backends.json_client import ClientSettings
from ts2_lightning.generation.requests import Asked, GenerationSettings, Request, Response
from ts2_lightning.types import UserError

CHAT: Asked = ({"role": "user", "content": "name a fruit"},)
Handler = Callable[[Call], Answer]


def ask(
    prompt: Asked = CHAT, index: int = 0, max_new_tokens: int = 16, ends: tuple[int, ...] = (), **how: Any
) -> Request:
    return Request(prompt, index, GenerationSettings("m", Decoder(**how), max_new_tokens, ends, seed=1))


def says(text: str = "a pear", tokens: int = 2, finish: str = "stop", is_chat: bool = True, **more: Any) -> Answer:
    inner = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
    choice = {"index": 0, **inner, "finish_reason": finish, **more}
    return Answer({"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": tokens}})


def server_of(handler: Handler, owner: str = "acme", names: tuple[str, ...] = ("pear-1",)) -> Handler:
    def otherwise(call: Call) -> Answer:
        if call.path == "/v1/models":
            return Answer({"data": [{"id": name, "owned_by": owner} for name in names]})
        if call.path == "/version":
            return Answer({"version": "0.32.0"})
        return handler(call)

    return otherwise


def endpoint(url: str, model: str = "pear-1", leave_out: tuple[str, ...] = (), **settings: Any) -> Endpoint:
    how = ClientSettings(**{"api_key_env": "", "first_wait": 0.01, "tries": 3, "timeout": 10.0, **settings})
    return Endpoint(Address.parse(f"endpoint:{url}#{model}"), how, leave_out)


def posts(server: JsonServer) -> list[Call]:
    return [call for call in server.calls if call.method == "POST"]


def collect(responses: Iterator[Response], keys: list[str]) -> None:
    for response in responses:
        keys.append(response.key)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("endpoint:http://localhost:8000#m", "http://localhost:8000/v1"),
        ("endpoint:http://localhost:8000/#m", "http://localhost:8000/v1"),
        ("endpoint:https://api.acme.example/v1/#m", "https://api.acme.example/v1"),
        ("endpoint:https://api.acme.example/api/v3#m", "https://api.acme.example/api/v3"),
        ("endpoint:http://h/v1/chat/completions#m", "http://h/v1"),
        ("endpoint:http://h/v1/completions/#m", "http://h/v1"),
    ],
)
def test_addresses(text: str, url: str) -> None:
    assert Address.parse(text) == Address(url, "m")


def test_a_model_s_name_may_have_slashes() -> None:
    assert Address.parse("endpoint:http://h#org/model:1").model == "org/model:1"


@pytest.mark.parametrize(
    "text", ["endpoint:", "endpoint:http://h", "endpoint:#m", "endpoint:http://h#", "endpoint:http://h# "]
)
def test_an_address_that_lacks_a_part(text: str) -> None:
    with pytest.raises(UserError, match="must be like endpoint:http://localhost:8000#MODEL"):
        Address.parse(text)


def test_messages_are_a_chat() -> None:
    logprobs = {"content": [{"token": "a", "logprob": -0.5}, {"token": " pear", "logprob": -1.0}]}
    with JsonServer(otherwise=server_of(lambda _: says(logprobs=logprobs))) as server:
        backend, request = endpoint(server.url), ask(temperature=0.7, top_p=0.9)
        (response,) = backend.complete([request])
    (call,) = posts(server)
    assert call.path == "/v1/chat/completions"
    assert call.body == {
        "model": "pear-1", "messages": [{"role": "user", "content": "name a fruit"}], "temperature": 0.7, "top_p": 0.9,
        "seed": request.seed, "max_tokens": 16, "logprobs": True,
    }  # fmt: skip
    assert 0 <= request.seed < 2**63
    assert (response.key, response.text, response.tokens, response.finish) == (request.key, "a pear", 2, "stop")
    assert response.mean_probability == pytest.approx((math.exp(-0.5) + math.exp(-1)) / 2)
    assert response.log_probabilities == (-0.5, -1.0)
    assert response.ids is None
    assert backend.versions == {"backend": "endpoint", "url": f"{server.url}/v1", "model": "pear-1", "owner": "acme"}


@pytest.mark.parametrize("prompt", [(3, 1, 2), "name a fruit"])
def test_text_and_ids_are_continued(prompt: Asked) -> None:
    logprobs = {"token_logprobs": [-0.25], "tokens": ["pear"]}
    with JsonServer(otherwise=server_of(lambda _: says("pear", 1, "length", False, logprobs=logprobs))) as server:
        (response,) = endpoint(server.url).complete([ask(prompt)])
    (call,) = posts(server)
    assert (call.path, call.body["prompt"]) == (
        "/v1/completions",
        list(prompt) if isinstance(prompt, tuple) else prompt,
    )
    assert (call.body["logprobs"], "messages" in call.body, "top_k" in call.body) == (1, False, False)
    assert (response.text, response.finish, response.mean_probability) == ("pear", "length", math.exp(-0.25))


def test_vllm_gets_what_it_would_else_take_from_the_model() -> None:
    with JsonServer(otherwise=server_of(lambda _: says(token_ids=[7, 8]), owner="vllm")) as server:
        backend = endpoint(server.url)
        (response,) = backend.complete([ask(ends=(8,))])
    (call,) = posts(server)
    assert {name: call.body[name] for name in ("top_k", "min_p", "repetition_penalty", "stop_token_ids")} == {
        "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "stop_token_ids": [8]
    }  # fmt: skip
    assert response.ids == (7, 8)
    assert response.mean_probability is None
    assert backend.versions["vllm"] == "0.32.0"


def test_every_request_is_answered_once_and_by_many_threads() -> None:
    together, most, lock = [0], [0], threading.Lock()

    def slow(call: Call) -> Answer:
        with lock:
            together[0] += 1
            most[0] = max(most[0], together[0])
        time.sleep(0.05)
        with lock:
            together[0] -= 1
        return says(str(call.body["seed"]))

    requests = [ask(index=index) for index in range(24)]
    with JsonServer(otherwise=server_of(slow)) as server:
        backend = endpoint(server.url, concurrency=6)
        responses = {response.key: response.text for response in backend.complete(requests)}
    assert responses == {request.key: str(request.seed) for request in requests}
    assert most == [6]
    assert (backend.usage.completion_tokens, backend.usage.prompt_tokens, backend.usage.calls) == (48, 120, 25)


def test_responses_are_handed_over_as_they_come() -> None:
    def late(call: Call) -> Answer:
        if call.body["max_tokens"] == 2:
            time.sleep(1.5)
        return says()

    with JsonServer(otherwise=server_of(late)) as server:
        requests = [ask(max_new_tokens=2), ask(max_new_tokens=1)]
        start = time.monotonic()
        responses = endpoint(server.url).complete(requests)
        assert next(responses).key == requests[1].key
        assert time.monotonic() - start < 1.2
        assert next(responses).key == requests[0].key


def test_nothing_to_do_calls_nobody() -> None:
    assert list(endpoint(f"http://127.0.0.1:{free_port()}").complete([])) == []


@pytest.mark.parametrize("projection", ["sparsemax", "entmax"])
def test_other_projections_are_refused(projection: str) -> None:
    with pytest.raises(UserError, match=f"softmax only, not with {projection}; take the transformers backend"):
        list(endpoint("http://127.0.0.1:1").complete([ask(projection=projection)]))


# What servers do ------------------------------------------------------------------------------------------------------


def refusing(status: int, content: dict[str, Any]) -> Handler:
    return server_of(lambda _: Answer(content, status))


CASES: dict[str, tuple[Handler, dict[str, Any], str]] = {
    "top_k": (
        refusing(400, {"error": {"message": "Unrecognized request argument supplied: top_k"}}),
        {"top_k": 5},
        r"does not take top_k \(Unrecognized request argument supplied: top_k\); do without",
    ),
    "pydantic": (
        refusing(422, {"detail": [{"loc": ["body", "seed"], "msg": "Input should be less than 4294967296"}]}),
        {},
        r"does not take seed \(.*\); leave it out: --leave_out seed",
    ),
    "other": (refusing(400, {"message": "no\nway"}), {}, r"refuses \(400: no way\); the prompt was 'name a fruit'"),
    "context": (
        refusing(400, {"error": {"message": "This model's maximum context length is 8 tokens. However ..."}}),
        {},
        r"the prompt 'name a fruit' with 16 new tokens does not fit \(.*is 8 tokens.*\); shorten it or lower",
    ),
    "no path": (refusing(404, {"error": "Not Found"}), {}, r"\(404: Not Found\); the server has no /chat/completions"),
    "key": (refusing(401, {"error": "who are you"}), {}, r"wants a key; name its variable with --api_key_env \(401"),
    "no choices": (server_of(lambda _: Answer({"choices": []})), {}, "an answer without choices to the prompt"),
    "no list": (server_of(lambda _: Answer({"choices": {"a": 1}})), {}, "an answer without choices"),
    "no object": (server_of(lambda _: Answer({"choices": [None]})), {}, "an answer without choices"),
    "no count": (
        server_of(lambda _: Answer({"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]})),
        {},
        r"does not say how many tokens it has \(usage\)",
    ),
    "a count of 0": (server_of(lambda _: says("x", 0)), {}, r"does not say how many tokens it has \(usage\)"),
    "a count below 0": (server_of(lambda _: says("", -1)), {}, r"does not say how many tokens it has \(usage\)"),
    "garbage": (server_of(lambda _: Answer(b"<html>")), {}, "answers with what is no JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_goes_wrong_is_one_line(name: str) -> None:
    handler, how, message = CASES[name]
    with JsonServer(otherwise=handler) as server, pytest.raises(UserError, match=message) as caught:
        list(endpoint(server.url).complete([ask(**how)]))
    assert "\n" not in str(caught.value)


def test_a_model_that_is_not_there() -> None:
    with JsonServer(otherwise=server_of(lambda _: says(), names=("pear-1", "plum"))) as server:
        with pytest.raises(UserError, match=r"has no model 'paer-1'; did you mean pear-1\?"):
            list(endpoint(server.url, "paer-1").complete([ask()]))
        with pytest.raises(UserError, match=r"has no model 'gpt'; it has pear-1, plum"):
            list(endpoint(server.url, "gpt").complete([ask()]))
    assert posts(server) == []


def test_a_server_that_lists_no_models_is_asked() -> None:
    def handler(call: Call) -> Answer:
        return says() if call.method == "POST" else Answer({"error": "Not Found"}, 404)

    with JsonServer(otherwise=handler) as server:
        assert len(list(endpoint(server.url).complete([ask()]))) == 1


def test_a_newer_model_has_another_name_for_the_limit() -> None:
    def newer(call: Call) -> Answer:
        if "max_tokens" in call.body:
            words = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return Answer({"error": {"message": words}}, 400)
        return says()

    with JsonServer(otherwise=server_of(newer)) as server:
        assert len(list(endpoint(server.url, concurrency=1).complete([ask(), ask(index=1)]))) == 2
    assert [call.body.get("max_completion_tokens") for call in posts(server)] == [None, 16, 16]


def test_fields_can_be_left_out() -> None:
    with JsonServer(otherwise=server_of(lambda _: says())) as server:
        list(endpoint(server.url, leave_out=("seed", "logprobs")).complete([ask()]))
        with pytest.raises(UserError, match="leave_out must be of seed, logprobs, got 'top_p'"):
            endpoint(server.url, leave_out=("top_p",))
    assert not {"seed", "logprobs"} & set(posts(server)[0].body)


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        {},
        {"content": None},
        {"content": [{"logprob": None}]},
        {"content": [{"logprob": math.nan}]},
        {"content": 3},
        3,
    ],
)
def test_log_probabilities_that_are_none(logprobs: Any) -> None:
    with JsonServer(otherwise=server_of(lambda _: says(logprobs=logprobs))) as server:
        (response,) = endpoint(server.url).complete([ask()])
    assert (response.mean_probability, response.log_probabilities, response.tokens) == (None, None, 2)


def test_a_server_that_counts_nothing_is_counted_for() -> None:
    """Some say 0 tokens for every text; a store would take no response like that."""
    logprobs = {"content": [{"logprob": -0.5}] * 3}
    with JsonServer(otherwise=server_of(lambda _: says("a pear", 0, logprobs=logprobs))) as server:
        (response,) = endpoint(server.url).complete([ask()])
    assert response.tokens == 3
    with JsonServer(otherwise=server_of(lambda _: says("", 0))) as server:
        (response,) = endpoint(server.url).complete([ask()])
    assert (response.text, response.tokens) == ("", 0)


def test_an_end_that_is_none_of_ours_is_told() -> None:
    with (
        JsonServer(otherwise=server_of(lambda _: says(None, 3, "content_filter"))) as server,  # type: ignore[arg-type]
        pytest.warns(UserWarning, match=r"ended in an unusual way, taken as they are \(content_filter: 1\)"),
    ):
        (response,) = endpoint(server.url).complete([ask()])
    assert (response.text, response.finish) == ("", "stop")


def test_the_key_comes_back_in_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may say it as the name of a model, as an owner, as the end of a response, or in a response."""
    key = "sk-very-secret-0123456789"
    monkeypatch.setenv("SERVERS_KEY", key)
    answer = says(f"it is {key}", finish=f"{key}\n" + "x" * 1000)
    for owner in (key, "vllm"):
        with JsonServer(otherwise=server_of(lambda _: answer, owner)) as server:
            backend = endpoint(server.url, api_key_env="SERVERS_KEY")
            with pytest.warns(UserWarning, match=r"unusual way, taken as they are \(\*\*\* x+\.\.\.: 1\)$") as told:
                (response,) = backend.complete([ask()])
            assert response.text == "it is ***"
            assert not any(key in str(one.message) for one in told)
            assert key not in repr(backend.versions)
    names = (key, "pear-2")
    with JsonServer(otherwise=server_of(lambda _: answer, names=names)) as server:
        with pytest.raises(UserError, match=r"has no model 'apple'; it has pear-2, \*\*\*$"):
            list(endpoint(server.url, "apple", api_key_env="SERVERS_KEY").complete([ask()]))
        with pytest.raises(UserError, match=r"has no model 'sk-very-secret-012345678'; did you mean \*\*\*\?$"):
            list(endpoint(server.url, key[:-1], api_key_env="SERVERS_KEY").complete([ask()]))


def test_a_key_that_is_a_word_changes_no_response(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of one's own are given keys such as EMPTY."""
    monkeypatch.setenv("SERVERS_KEY", "EMPTY")
    with JsonServer(otherwise=server_of(lambda _: says("an EMPTY basket"))) as server:
        (response,) = endpoint(server.url, api_key_env="SERVERS_KEY").complete([ask()])
    assert response.text == "an EMPTY basket"


def test_one_that_fails_costs_none_of_those_under_way() -> None:
    """The second request is refused while the first and third are made; they are paid for, and handed over."""
    all_there = threading.Barrier(3)

    def handler(call: Call) -> Answer:
        all_there.wait(60)
        if call.body["max_tokens"] == 2:
            return Answer({"message": "no"}, 400)
        time.sleep(0.4)
        return says()

    with JsonServer(otherwise=server_of(handler)) as server:
        requests = [ask(max_new_tokens=number) for number in (1, 2, 3, 4, 5, 6)]
        seen: list[str] = []
        with pytest.raises(UserError, match="refuses"):
            collect(endpoint(server.url, concurrency=3).complete(requests), seen)
    assert sorted(seen) == sorted([requests[0].key, requests[2].key])
    assert len(posts(server)) == 3


def test_drops_and_refusals_for_a_while_lose_nothing() -> None:
    numbers = iter(range(10_000))

    def flaky(call: Call) -> Answer:
        number = next(numbers)
        if number % 3 == 0:
            return Answer({}, 429, {"Retry-After": "0.01"})
        if number % 3 == 1:
            return Answer(b"x" * 100, cut=50)
        return says(str(call.body["seed"]))

    requests = [ask(index=index) for index in range(12)]
    with JsonServer(otherwise=server_of(flaky)) as server:
        backend = endpoint(server.url, concurrency=3, tries=50, first_wait=0.001)
        responses = {response.key: response.text for response in backend.complete(requests)}
    assert responses == {request.key: str(request.seed) for request in requests}
    assert backend.usage.retries > 10
    assert backend.usage.completion_tokens == 24


def test_ctrl_c_ends_at_once() -> None:
    def handler(call: Call) -> Answer:
        if call.body["max_tokens"] == 9:
            time.sleep(5)
        return says()

    with JsonServer(otherwise=server_of(handler)) as server:
        requests = [ask(max_new_tokens=number) for number in (1, 9, 2, 3)]
        seen: list[str] = []
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            collect(endpoint(server.url, concurrency=4).complete(requests), seen)
        assert time.monotonic() - start < 3
    assert sorted(seen) == sorted(requests[number].key for number in (0, 2, 3))


def test_what_has_come_is_handed_over_after_ctrl_c() -> None:
    all_are_asked = threading.Barrier(4)

    def handler(call: Call) -> Answer:
        all_are_asked.wait(timeout=60)
        return says()

    with JsonServer(otherwise=server_of(handler)) as server:
        requests = [ask(index=index) for index in range(4)]
        responses: Any = endpoint(server.url, concurrency=4).complete(requests)
        seen = [next(responses).key]
        time.sleep(0.3)
        seen.append(responses.throw(KeyboardInterrupt).key)
        with pytest.raises(KeyboardInterrupt):
            collect(responses, seen)
    assert sorted(seen) == sorted(request.key for request in requests)


def test_nobody_asks_on_when_nobody_listens() -> None:
    with JsonServer(otherwise=server_of(lambda _: says())) as server:
        responses = endpoint(server.url, concurrency=1).complete([ask(index=index) for index in range(500)])
        next(responses)
        responses.close()  # type: ignore[attr-defined]
        time.sleep(0.3)
        count = len(posts(server))
        time.sleep(0.3)
        assert len(posts(server)) == count < 500
