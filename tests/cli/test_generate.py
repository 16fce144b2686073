"""`generate`: prompts in, responses on disk out, whatever stops it and whoever shares the work."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.callbacks.tiny_llama import write_base
from tests.cli.conftest import Run
from tests.support.ranks import ROOT
from tests.support.stand_in_vllm import write_interpreter
from ts2_lightning.generation.response_files import read_store

QUESTIONS = ["name a fruit", "name", "the answer is pear . name a fruit"]
FEW = ("--max_new_tokens=6", "--temperature=1", "--top_k=0", "--top_p=1", "--device=cpu", "--template=plain")


@pytest.fixture
def base(here: Path) -> str:
    rows = [{"prompt": text, "completion": "pear"} for text in QUESTIONS]
    Path("few.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(write_base(here / "base", width=16))


def lines(out: str = "out") -> list[dict[str, Any]]:
    parts = sorted(Path(out).glob("responses/*/part-*.jsonl"))
    return [json.loads(line) for part in parts for line in part.read_text().splitlines()[1:]]


def texts(out: str = "out") -> dict[tuple[str, int], str]:
    return {(line["item"], line["index"]): line["text"] for line in lines(out)}


def test_more_are_made_in_addition(ts2: Run, base: str) -> None:
    """More samples and more prompts; the batch and the order are of no account."""
    command = ("generate", base, "--prompts", "few.jsonl", *FEW)
    first = ts2(*command, "--out=out", "--limit=2", "--n=2")
    assert first.status == 0, first.err
    [directory] = Path("out/responses").glob("few-*")
    assert f"4 responses, of which 0 are there; 4 are to be made, of at most 24 tokens -> {directory}" in first.out
    assert len(lines()) == 4
    again = ts2(*command, "--out=out", "--n=3", "--batch_size=2")
    assert "9 responses, of which 4 are there; 5 are to be made" in again.out
    assert ts2(*command, "--out=out", "--n=3").out.startswith("9 responses, ")
    assert ts2(*command, "--out=whole", "--n=3", "--batch_size=9").status == 0
    assert texts() == texts("whole")
    assert len(lines()) == len(texts()) == 9
    stored = read_store(directory)
    assert stored.head["model"] == base
    assert [(item["text"], item["gold"]) for item in stored.items.values()] == [(text, "pear") for text in QUESTIONS]
    assert ts2(*command, "--out=out", "--seed=1").status == 0
    assert len(list(Path("out/responses").glob("few-*"))) == 2


def test_vllm_makes_what_another_backend_has_left(ts2: Run, base: str, here: Path) -> None:
    """A response's name does not say who has made it. (A stand-in for vLLM.)"""
    command = ("generate", base, "--prompts", "few.jsonl", *FEW, "--out=out")
    assert ts2(*command, "--limit=1").status == 0
    python = write_interpreter(here / "environment")
    answer = ts2(*command, "--n=4", f"--backend=vllm:{python}", "--vllm_args={max_num_seqs: 3}", "--ids")
    assert answer.status == 0, answer.err
    assert "12 responses, of which 1 are there; 11 are to be made" in answer.out
    heads = [json.loads(part.read_text().splitlines()[0]) for part in sorted(Path("out").glob("responses/*/part-*"))]
    assert [head["backend"] for head in heads] == ["transformers", "vllm"]
    assert heads[1]["versions"]["vllm"] == "0.32.0"
    assert len({line["key"] for line in lines()}) == len(lines()) == 12
    assert all(len(line["ids"]) == line["tokens"] for line in lines()[1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n=0"], "--n must be"),
        (["--seed=-1"], "--seed must be"),
        (["--top_p=0"], "--top_p must be"),
        (["--decoding=sparsmax"], "no decoding 'sparsmax'; did you mean sparsemax"),
        (["--backend=vlm"], "--backend: no backend 'vlm'"),
        (["--backend=vllm:/no/python"], "vllm:/no/python: not a Python interpreter (No such file or directory)"),
        (["--backend=endpoint:http://h#m"], "--backend: endpoint:http://h#m is no backend but a model"),
        (["--backend=vllm:x", "--vllm_args=none.yaml"], "--vllm_args: none.yaml: must be a mapping"),
        (["--vllm_args={dtype: float32}"], "--vllm_args: is for --backend vllm:PYTHON"),
        (["--name=a/b"], "--name a/b: it begins the name of a directory"),
        (["--name="], "--name : it begins the name of a directory"),
        (["--name=.."], "--name ..: it begins the name of a directory"),
        (["--temperature=0", "--n=4"], "--n 4: at temperature 0 all samples are the same"),
        (["--prompts=none.jsonl"], "none.jsonl"),
        (["--slurm={partition: gpu}"], "--slurm: how many jobs share the work?"),
        (["--slurm=none.yaml"], "--slurm none.yaml: cannot be read"),
        (["--slurm={jobs: 0}"], "--slurm: jobs must be"),
    ],
)
def test_what_it_refuses(options: list[str], message: str, ts2: Run, base: str) -> None:
    answer = ts2("generate", base, "--prompts=few.jsonl", "--out=out", *FEW, *options)
    assert (answer.status, answer.err.count("\n")) == (2, 1)
    assert message in answer.err


def test_a_model_of_no_run_needs_a_place(ts2: Run, base: str) -> None:
    answer = ts2("generate", base, "--prompts=few.jsonl", *FEW)
    assert answer.status == 2
    assert "say with --out where its responses go" in answer.err


def test_a_run_s_own_settings_of_its_data_count(ts2: Run, base: str) -> None:
    """As for `evaluate`: here that bad rows are allowed for; of no run, `--config` says it."""
    run = Path("runs/mine/1")
    run.mkdir(parents=True)
    Path(base).rename(run / "export")
    (run / "config.yaml").write_text("data: {max_rejects: 0.5}\n")
    Path("bad.jsonl").write_text('{"prompt": "name a fruit"}\n{"text": 3}\n')
    answer = ts2("generate", str(run), "--prompts=bad.jsonl", *FEW).done()
    assert "1 responses, of which 0 are there" in answer.out
    elsewhere = ("generate", str(run / "export"), "--prompts=bad.jsonl", "--out=out", *FEW)
    (run / "config.yaml").rename("config.yaml")
    assert "bad.jsonl:2: no format fits" in ts2(*elsewhere).refusal
    assert ts2(*elsewhere, "--config=config.yaml").done()


def start(base: str, *options: str) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "ts2_lightning.cli", "generate", base, "--prompts=many.jsonl", "--out=out", "--n=8",
        "--batch_size=8", *FEW, *options,
    ]  # fmt: skip
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_processes_share_the_work_and_one_is_stopped(number: signal.Signals, base: str) -> None:
    """What it was making is made by the other; no response is there twice, and all are those of one process alone."""
    words = ["name", "fruit", "answer", "pear"]
    asked = [f"{one} {other} {third}" for one in words for other in words for third in words]
    rows = [{"prompt": text} for text in asked]
    Path("many.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    options = ("--max_new_tokens=100", "--ids")
    processes = [start(base, *options) for _ in range(2)]
    while len(list(Path("out").glob("responses/*/part-*.jsonl"))) < 2:
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        time.sleep(0.05)
    processes[0].send_signal(number)
    assert processes[0].wait(120) == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    out, err = processes[1].communicate(timeout=300)
    assert processes[1].returncode == 0, err
    assert "512 responses, " in out
    keys = Counter(line["key"] for line in lines())
    assert len(keys) == 512
    assert set(keys.values()) == {1}
    shared = {line["key"]: line["ids"] for line in lines()}
    Path("out").rename("shared")
    alone = start(base, *options)
    _, err = alone.communicate(timeout=300)
    assert alone.returncode == 0, err
    assert {line["key"]: line["ids"] for line in lines()} == shared
