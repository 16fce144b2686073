"""A stand-in for vLLM in an environment of its own: an interpreter whose `vllm` answers from the request alone.

Environment variables say how it behaves: `STAND_IN_CRASHES`, a file with the number of crashes that are left, each
after `STAND_IN_CRASH_AFTER` responses, 1 if it is not set; `STAND_IN_GPUS`; `STAND_IN_LOAD`, an error's text;
`STAND_IN_SLEEP`, seconds for a response; `STAND_IN_HANGS`, a file with the number of times that it is still to hang.
"""

import subprocess
import sys
from pathlib import Path

_VLLM = """
import os, signal, time
from dataclasses import dataclass
from types import SimpleNamespace as Plain

print("vllm greets on standard output")

@dataclass
class EngineArgs:
    model: str
    dtype: str = "auto"
    max_model_len: int = 64
    max_num_seqs: int = 4
    tensor_parallel_size: int = 1
    enable_chunked_prefill: bool = True
    skip_tokenizer_init: bool = False
    generation_config: str = "auto"
    logprobs_mode: str = "processed"
    load_format: str = "auto"
    trust_remote_code: bool = True
    disable_log_stats: bool = False
    seed: int = 1

class SamplingParams(Plain):
    pass

class LLMEngine:
    @classmethod
    def from_engine_args(cls, args):
        if words := os.environ.get("STAND_IN_LOAD"):
            raise RuntimeError(words)
        if log := os.environ.get("STAND_IN_STARTS"):
            with open(log, "a") as file:
                file.write(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')} {sorted(vars(args).items())}\\n")
        return cls(args)

    def __init__(self, args):
        self.model_config = Plain(max_model_len=args.max_model_len)
        self.vllm_config = Plain(scheduler_config=Plain(max_num_seqs=args.max_num_seqs))
        self._asked = []
        self._made = 0

    def add_request(self, name, prompt, params):
        if prompt["prompt_token_ids"][0] == 13:
            raise ValueError("no\\nthirteens")
        self._asked.append((name, prompt["prompt_token_ids"], params))

    def has_unfinished_requests(self):
        return bool(self._asked)

    def step(self):
        print("a step")
        time.sleep(float(os.environ.get("STAND_IN_SLEEP", 0)))
        if (file := os.environ.get("STAND_IN_HANGS")) and (left := int(open(file).read())):
            open(file, "w").write(str(left - 1))
            time.sleep(1000)
        name, prompt, params = self._asked.pop()
        self._made += 1
        is_time = self._made > int(os.environ.get("STAND_IN_CRASH_AFTER", 1))
        if is_time and (file := os.environ.get("STAND_IN_CRASHES")):
            left = int(open(file).read())
            if left:
                open(file, "w").write(str(left - 1))
                print("the last words", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
        ids = [(params.seed + number) % 12 for number in range(min(params.max_tokens, 1 + params.seed % 3))]
        entries = [{number: Plain(logprob=-0.5)} for number in ids]
        reason = "abort" if prompt == [12] else "length" if len(ids) == params.max_tokens else "stop"
        answer = Plain(token_ids=ids, logprobs=entries, finish_reason=reason)
        unfinished = Plain(request_id="?", finished=False)
        return [unfinished, Plain(request_id=name, finished=True, outputs=[answer])]
"""

_TORCH = """
import os
from types import SimpleNamespace

__version__ = "2.99.0"
cuda = SimpleNamespace(
    device_count=lambda: int(os.environ.get("STAND_IN_GPUS", 0)), get_device_name=lambda number: "NVIDIA H200"
)
"""


def write_interpreter(directory: Path, version: str | None = "0.32.0") -> str:
    """Makes an environment with the stand-in; without a version no vLLM is in it. Returns its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    (packages,) = (directory / "lib").glob("python*/site-packages")
    (packages / "torch.py").write_text(_TORCH)
    if version is not None:
        (packages / "vllm").mkdir()
        (packages / "vllm" / "__init__.py").write_text(_VLLM)
        kind = "class RequestOutputKind:\n    FINAL_ONLY = 'final'\n"
        (packages / "vllm" / "sampling_params.py").write_text(kind)
        information = packages / f"vllm-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    return str(directory / "bin" / "python")
