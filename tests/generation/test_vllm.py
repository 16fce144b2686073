"""The vLLM backend with a stand-in for vLLM under an interpreter of its own; `test_vllm_itself.py` has the real one."""

import gc
import json
import math
import os
import queue
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.callbacks.tiny_llama import WORDS, write_base
from tests.support.stand_in_vllm import write_interpreter
from ts2_lightning.generation import Decoder
from ts2_lightning.generation.backends import vllm_worker
from ts2_lightning.generation.backends.vllm import OWN_ARGUMENTS, VLLMBackend, read_arguments
from ts2_lightning.generation.requests import GenerationSettings, Request, Response
from ts2_lightning.types import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_interpreter(tmp_path_factory.mktemp("stand-in"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_base(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def tokenizer(place: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(place)


@pytest.fixture
def starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """File that gets a line for each engine that starts: its process, its GPUs, its arguments."""
    monkeypatch.setenv("STAND_IN_STARTS", str(tmp_path / "starts"))
    return tmp_path / "starts"


@pytest.fixture
def make(interpreter: str, place: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[Any]:
    made: list[VLLMBackend] = []

    def backend(python: str = interpreter, **settings: Any) -> VLLMBackend:
        made.append(VLLMBackend(python, place, tokenizer, **settings))
        return made[-1]

    yield backend
    for one in made:
        one.close()


def ask(count: int = 1, prompt: Any = (6, 7, 8), max_new_tokens: int = 2, seed: int = 0, **how: Any) -> list[Request]:
    settings = GenerationSettings("m", Decoder(**how), max_new_tokens, (5,), seed)
    return [Request(prompt, index, settings) for index in range(count)]


def expected(request: Request, tokenizer: PreTrainedTokenizerBase) -> Response:
    """What the stand-in answers."""
    limit = request.settings.max_new_tokens
    ids = [(request.seed + number) % 12 for number in range(min(limit, 1 + request.seed % 3))]
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    finish: Any = "length" if len(ids) == limit else "stop"
    return Response(request.key, text, len(ids), finish, math.exp(-0.5), tuple(ids), (-0.5,) * len(ids))


def collect(responses: Iterator[Response], keys: list[str]) -> None:
    for response in responses:
        keys.append(response.key)


def alive(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[:1]
    except FileNotFoundError:
        return False


def ends_soon(process: int) -> bool:
    for _ in range(100):
        if not alive(process):
            return True
        time.sleep(0.05)
    return False


def processes(starts: Path) -> list[int]:
    return [int(line.split()[0]) for line in starts.read_text().splitlines()]


def test_every_request_is_answered(make: Any, tokenizer: PreTrainedTokenizerBase, starts: Path) -> None:
    backend = make(arguments={"dtype": "float32"})
    requests = ask(40, temperature=0.7, top_k=3, top_p=0.9)
    assert sorted(backend.complete(requests), key=lambda one: one.key) == sorted(
        (expected(request, tokenizer) for request in requests), key=lambda one: one.key
    )
    assert backend.versions == {
        "backend": "vllm",
        "vllm": "0.32.0",
        "torch": "2.99.0",
        "python": sys.version.split()[0],
    }
    assert len(list(backend.complete(ask(3, seed=1)))) == 3
    (line,) = starts.read_text().splitlines()  # the model stays loaded
    for name, value in {**OWN_ARGUMENTS, "dtype": "float32", "enable_chunked_prefill": False}.items():
        assert repr((name, value)) in line
    backend.close()
    assert ends_soon(int(line.split()[0]))


def test_prompts_of_every_kind(make: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    requests = [one for prompt in ("name a fruit", ({"role": "user", "content": "name"},)) for one in ask(2, prompt)]
    assert {one.key for one in make().complete(requests)} == {request.key for request in requests}


def test_requests_are_taken_when_there_is_room(make: Any) -> None:
    """Whoever shares requests with others claims them as they are taken: at most two batches of four beforehand."""
    taken: list[Request] = []

    def stream() -> Iterator[Request]:
        for request in ask(40):
            taken.append(request)
            yield request

    done = 0
    for _ in make().complete(stream()):
        done += 1
        assert len(taken) - done < 8 + 1
    assert done == 40


def test_nothing_to_do_starts_nothing(make: Any, starts: Path) -> None:
    assert list(make().complete([])) == []
    assert not starts.exists()


# What dies ------------------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_is_started_again_and_nothing_is_lost(
    make: Any, tokenizer: PreTrainedTokenizerBase, starts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashes = tmp_path / "crashes"
    crashes.write_text("5")
    monkeypatch.setenv("STAND_IN_CRASHES", str(crashes))
    requests = ask(60)
    with pytest.warns(
        UserWarning, match=r"vLLM has died \(signal SIGKILL; its log ends: .*the last words\); it is started"
    ):
        responses = list(make(restarts=1).complete(requests))
    assert sorted(one.key for one in responses) == sorted(request.key for request in requests)  # and none twice
    assert {one.key: one for one in responses} == {one.key: expected(one, tokenizer) for one in requests}
    assert (crashes.read_text(), len(processes(starts))) == ("0", 6)


@pytest.mark.filterwarnings("ignore:vLLM has died")
def test_one_that_dies_again_and_again_is_given_up(
    make: Any, starts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "crashes").write_text("1000")
    monkeypatch.setenv("STAND_IN_CRASHES", str(tmp_path / "crashes"))
    monkeypatch.setenv("STAND_IN_CRASH_AFTER", "0")
    with pytest.raises(
        UserError, match=r"^vLLM has died 3 times in a row \(signal SIGKILL; its log ends: .*last words\)$"
    ):
        list(make(restarts=2).complete(ask(20)))
    assert len(processes(starts)) == 3
    assert all(map(ends_soon, processes(starts)))


def test_one_that_died_between_two_calls(make: Any, starts: Path) -> None:
    backend = make()
    assert len(list(backend.complete(ask(2)))) == 2
    os.kill(processes(starts)[0], signal.SIGKILL)
    with pytest.warns(UserWarning, match="vLLM has died"):
        assert len(list(backend.complete(ask(2, seed=1)))) == 2
    assert len(processes(starts)) == 2


def test_what_does_not_load_is_told_at_once(make: Any, monkeypatch: pytest.MonkeyPatch, starts: Path) -> None:
    monkeypatch.setenv("STAND_IN_LOAD", "not enough\nmemory")
    with pytest.raises(UserError, match=r"^vLLM does not load the model \(RuntimeError: not enough memory\)$"):
        list(make().complete(ask()))
    with pytest.raises(UserError, match=r"vllm_args: vLLM has no argument dtpye; did you mean dtype\?"):
        list(make(arguments={"dtpye": "float32"}).complete(ask()))


def test_ctrl_c_ends_the_workers(make: Any, starts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_SLEEP", "0.2")
    responses = make().complete(ask(100))
    next(responses)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        list(responses)
    assert ends_soon(processes(starts)[0])


def test_what_has_come_is_handed_over_after_ctrl_c(make: Any) -> None:
    requests = ask(4)
    responses = make().complete(requests)
    seen = [next(responses).key]
    time.sleep(0.5)
    seen += [responses.throw(KeyboardInterrupt).key]
    with pytest.raises(KeyboardInterrupt):
        collect(responses, seen)
    assert sorted(seen) == sorted(request.key for request in requests)


@pytest.mark.parametrize("way", ["close", "forget"])
def test_nobody_works_on_when_nobody_listens(
    way: str,
    interpreter: str,
    place: str,
    tokenizer: PreTrainedTokenizerBase,
    starts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STAND_IN_SLEEP", "0.1")
    backend: Any = VLLMBackend(interpreter, place, tokenizer)
    responses: Any = backend.complete(ask(100))
    next(responses)
    if way == "close":
        responses.close()
    else:
        del responses, backend
        gc.collect()
    assert ends_soon(processes(starts)[0])


SCRIPT = """
import sys
from transformers import AutoTokenizer
from ts2_lightning.generation import Decoder
from ts2_lightning.generation.backends.vllm import VLLMBackend
from ts2_lightning.generation.requests import GenerationSettings, Request

interpreter, place, ending = sys.argv[1:]
settings = GenerationSettings("m", Decoder(), 2)
backend = VLLMBackend(interpreter, place, AutoTokenizer.from_pretrained(place))
responses = backend.complete([Request((6, 7), index, settings) for index in range(1000)])
print(next(responses).key, flush=True)
if ending == "wait":
    list(responses)
raise RuntimeError("unexpected")
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["wait", "error"])
def test_no_worker_outlives_the_program(
    ending: str, interpreter: str, place: str, starts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is killed while it waits, and one that an error ends."""
    monkeypatch.setenv("STAND_IN_SLEEP", "0.05")
    command = [sys.executable, "-c", SCRIPT, interpreter, place, ending]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT) as program:
        assert program.stdout is not None
        assert len(program.stdout.readline()) == 33
        (worker,) = processes(starts)
        if ending == "wait":
            assert alive(worker)
            program.kill()
    assert ends_soon(worker)


# Interpreters ---------------------------------------------------------------------------------------------------------


def script(place: Path, lines: str) -> str:
    place.write_text(f"#!/bin/sh\n{lines}\n")
    place.chmod(place.stat().st_mode | stat.S_IXUSR)
    return str(place)


TOLD = json.dumps({"python": "3.12.1", "vllm": "0.32.0", "torch": "2.9.0", "gpus": 0})


def test_one_that_writes_nonsense_is_given_up(make: Any, tmp_path: Path) -> None:
    lines = (
        f"case \"$*\" in *--versions) echo '{TOLD}';; *) echo 'all is well' >&2; echo 'hello there'; sleep 60;; esac"
    )
    with (
        pytest.warns(UserWarning, match="vLLM has died"),
        pytest.raises(UserError, match=r"died 2 times in a row \(signal SIGKILL; its log ends: all is well\)"),
    ):
        list(make(script(tmp_path / "python", lines), restarts=1).complete(ask()))


def test_one_that_hangs_is_ended_and_started_again(
    make: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starts: Path
) -> None:
    """Nothing is lost, and nothing of it is left. (On a busy machine a start may take longer than the silence.)"""
    (tmp_path / "hangs").write_text("1")
    monkeypatch.setenv("STAND_IN_HANGS", str(tmp_path / "hangs"))
    requests = ask(20)
    with pytest.warns(UserWarning, match=r"vLLM has said nothing for 2 s and was ended \(signal SIGKILL; .*again"):
        responses = list(make(arguments={"silence": 2}, restarts=50).complete(requests))
    assert {one.key: one for one in responses} == {request.key: expected(request, tokenizer) for request in requests}
    assert len(responses) == 20
    first = processes(starts)[0]
    assert ends_soon(first)


def test_one_that_does_not_even_listen(make: Any, tmp_path: Path) -> None:
    """Requests that it does not take stop nobody: there are more of them than the pipe holds."""
    ready = '{"ready": {"at_once": 100, "context": 999}}'
    lines = f"case \"$*\" in *--versions) echo '{TOLD}';; *) echo '{ready}'; sleep 60;; esac"
    backend = make(script(tmp_path / "python", lines), restarts=0, arguments={"silence": 0.5})
    with pytest.raises(UserError, match=r"has said nothing for 0.5 s and was ended 1 times in a row \(signal SIGKILL"):
        list(backend.complete(ask(200, prompt=(6,) * 60)))


def test_more_requests_than_a_pipe_holds(make: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """What it does not take at once it gets later, whole."""
    requests = ask(600, prompt=(6,) * 60)
    responses = list(make(arguments={"max_num_seqs": 500}).complete(requests))
    assert {one.key for one in responses} == {request.key for request in requests}


def test_an_engine_that_goes_on_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long its responses are."""
    said: list[dict[str, Any]] = []

    class Engine:
        steps = 0

        def has_unfinished_requests(self) -> bool:
            return True

        def step(self) -> list[Any]:
            self.steps += 1
            if self.steps > 3:
                raise KeyboardInterrupt
            return []

    class Lines:
        received: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def write(self, value: dict[str, Any]) -> None:
            said.append(value)

    monkeypatch.setattr(vllm_worker, "_ALIVE_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        vllm_worker.serve(Engine(), Lines())  # type: ignore[arg-type]
    assert said == [{"alive": True}] * 3


@pytest.mark.parametrize("silence", [0, -1, "long", True])
def test_a_silence_that_cannot_be(silence: Any, make: Any) -> None:
    with pytest.raises(UserError, match="vllm_args: silence must be"):
        make(arguments={"silence": silence})


@pytest.mark.parametrize(
    "said", ["[1]", '{"id": "of nobody"}', '"x"', "{}", '{"ready": {"at_once": 1, "context": 99}}\\n{"id": 3}\\n']
)
def test_one_that_says_what_it_was_not_asked(said: str, make: Any, tmp_path: Path) -> None:
    lines = f"case \"$*\" in *--versions) echo '{TOLD}';; *) printf '{said}\\n'; sleep 60;; esac"
    with pytest.raises(UserError, match=r"died 1 times in a row \(signal SIGKILL; its log is empty\)"):
        list(make(script(tmp_path / "python", lines), restarts=0).complete(ask()))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("echo no such option >&2; exit 3", r"does not run as a Python interpreter \(no such option\)$"),
        ("exit 3", r"does not run as a Python interpreter \(exit status 3\)$"),
        ("echo '[1]'", r"does not run as a Python interpreter \(\[1\]\)$"),
        (
            f"echo '{TOLD.replace('0.32.0', '0.10.2')}'",
            r"has vLLM 0.10.2, which is not supported; install it in an .*pip",
        ),
        (f"echo '{TOLD.replace('0.32.0', '1.0.0rc1')}'", r"has vLLM 1.0.0rc1, which is not supported"),
        (f"echo '{TOLD.replace('0.32.0', 'dev')}'", r"has vLLM dev, which is not supported"),
    ],
)
def test_interpreters_that_do_not_do(lines: str, message: str, make: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make(script(tmp_path / "python", lines))
    assert "\n" not in str(caught.value)


def test_a_home_directory_is_written_as_in_a_shell(
    make: Any, interpreter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(Path(interpreter).parent))
    assert len(list(make("~/python").complete(ask()))) == 1


def test_no_interpreter(make: Any, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^vllm:/no/such/python: not a Python interpreter \(No such file or directory\)"
    ):
        make("/no/such/python")
    with pytest.raises(UserError, match=r"not a Python interpreter \(Permission denied\); name its bin/python"):
        make(str(tmp_path))


def test_an_interpreter_without_vllm(make: Any, tmp_path: Path) -> None:
    python = write_interpreter(tmp_path / "bare", version=None)
    with pytest.raises(
        UserError, match=r"has no vLLM; install it in an environment of its own: \S+ -m pip install 'vllm>="
    ):
        make(python)


# GPUs -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "visible", "arguments", "expected"),
    [
        (0, None, {}, ["None"]),
        (2, None, {}, ["0", "1"]),
        (3, "4,GPU-a, 6", {}, ["4", "6", "GPU-a"]),
        (4, None, {"tensor_parallel_size": 2}, ["0,1", "2,3"]),
        (3, None, {"tensor_parallel_size": 2}, ["0,1"]),
    ],
)
def test_each_worker_has_gpus_of_its_own(
    gpus: int, visible: str | None, arguments: dict[str, Any], expected: list[str], make: Any, starts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("STAND_IN_GPUS", str(gpus))
    monkeypatch.setenv("STAND_IN_SLEEP", "0.02")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    requests = ask(40)
    responses = list(make(arguments=arguments).complete(requests))
    assert sorted(one.key for one in responses) == sorted(request.key for request in requests)
    for _ in range(200):  # the first may have made all before the last has started
        if len(processes(starts)) == len(expected):
            break
        time.sleep(0.05)
    assert sorted(line.split()[1] for line in starts.read_text().splitlines()) == expected


def test_too_few_gpus(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_GPUS", "2")
    with pytest.raises(UserError, match="a worker is to have 4 GPUs, but there are 2"):
        make(arguments={"tensor_parallel_size": 4})


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ask(projection="sparsemax"), "vLLM samples from the softmax only, not with sparsemax; take the transformers"),
        (ask(projection="entmax"), "not with entmax"),
        (ask(temperature=0.001), r"no temperature between 0 and 0.01, got 0.001; take 0"),
        (ask(prompt=()), "a prompt has no token"),
        (ask(prompt=(6, 14)), "token id 14 of a prompt has no row in the embedding of llama, which has 14"),
        (ask(prompt=(6,) * 64), r"the prompt 'name name .*'... has 64 tokens, which leaves no room .* of llama"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_made(request_: list[Request], message: str, make: Any, starts: Path) -> None:
    backend = make()
    with pytest.raises(UserError, match=message):
        backend.check(request_)
    with pytest.raises(UserError, match=message):
        list(backend.complete(request_))
    assert not starts.exists()


def test_a_context_that_was_made_shorter_cuts_nothing_off(make: Any) -> None:
    with pytest.raises(UserError, match=r"3 tokens, which with 30 new ones is more than max_model_len, 32; raise it"):
        make(arguments={"max_model_len": 32}).check(ask(max_new_tokens=30))
    (response,) = make().complete(ask(prompt=(6,) * 63, max_new_tokens=30))
    assert (response.tokens, response.finish) == (1, "length")  # the model's own context


def test_what_vllm_refuses_is_told(make: Any) -> None:
    with pytest.raises(UserError, match=r"vLLM does not take the prompt '\.'... \(ValueError: no thirteens\)"):
        list(make().complete(ask(prompt=(WORDS.index("."),))))
    with pytest.raises(UserError, match=r"vLLM ended a response to 'pear'... with 'abort'"):
        list(make().complete(ask(prompt=(WORDS.index("pear"),))))


@pytest.mark.parametrize("name", ["load_format", "trust_remote_code", "model", "logits_processors", "seed"])
def test_arguments_that_cannot_be_set(name: str, make: Any) -> None:
    with pytest.raises(UserError, match=f"vllm_args: {name} cannot be set"):
        make(arguments={name: True})


def test_arguments_from_a_file_or_a_text(tmp_path: Path) -> None:
    (tmp_path / "args.yaml").write_text("dtype: bfloat16\nmax_model_len: 4096\n")
    assert read_arguments(str(tmp_path / "args.yaml")) == {"dtype": "bfloat16", "max_model_len": 4096}
    assert read_arguments('{"gpu_memory_utilization": 0.8}') == {"gpu_memory_utilization": 0.8}
    for text in (str(tmp_path / "none.yaml"), "{a: ", "{1: 2}", str(tmp_path)):
        with pytest.raises(UserError, match=r"^vllm_args"):
            read_arguments(text)
