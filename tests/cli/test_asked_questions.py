"""Responses to protocols that `generate` makes and `evaluate` scores, of a model that is loaded and of served ones."""

import csv
import json
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from tests.callbacks.tiny_llama import write_base
from tests.cli.conftest import Run
from tests.support.json_server import Answer, Call, JsonServer
from ts2_lightning.evaluation.protocols.humaneval import PROMPT

SUMS = [{"question": f"{i} + {i}?", "answer": f"#### {2 * i}"} for i in range(4)]
PROBLEM = {
    "task_id": "HumanEval/0",
    "prompt": 'def last(items):\n    """The last of them."""\n',
    "entry_point": "last",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 2\n",
}
RIGHT = "```python\ndef last(items):\n    return items[-1]\n```"


def answer(call: Call) -> Answer:
    """Sums are right but for the last; the program is right."""
    if call.path == "/v1/models":
        return Answer({"data": [{"id": "pear", "owned_by": "acme"}]})
    question = call.body["messages"][-1]["content"]
    asked = re.search(r"(\d) \+ \d", question)
    text = RIGHT if asked is None else f"The answer is: {2 * int(asked[1]) - (asked[1] == '3')}"
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return Answer({"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 7}})


@pytest.fixture
def server() -> Iterator[JsonServer]:
    with JsonServer(otherwise=answer) as running:
        yield running


@pytest.fixture
def rows(here: Path) -> Path:
    for name, some in (
        ("sums", SUMS),
        ("problems", [PROBLEM]),
        ("prompts", [{"prompt": "1 + 1"}, {"prompt": "2 + 2"}]),
    ):
        Path(f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in some))
    return here


def posts(server: JsonServer) -> list[Call]:
    return [call for call in server.calls if call.method == "POST"]


def lines(where: str) -> list[dict[str, Any]]:
    parts = sorted(Path(where).glob("responses/*/part-*.jsonl"))
    return [json.loads(line) for part in parts for line in part.read_text().splitlines()[1:]]


def accuracy(out: str) -> dict[str, float]:
    with open(f"{out}/table.csv") as stream:
        return {row["part"]: float(row["mean"]) for row in csv.DictReader(stream) if row["value"] == "accuracy"}


def test_evaluate_samples_nothing_that_generate_has_made(real: Run, rows: Path, server: JsonServer) -> None:
    asked = [f"endpoint:{server.url}#pear", "--protocol=gsm8k", "--data=gsm8k=sums.jsonl", "--out=side", "--seed=3"]
    how = ["--temperature=0.7", "--top_k=0", "--top_p=0.8", "--max_new_tokens=9", "--concurrency=2"]
    made = real("generate", *asked, *how, "--n=2", "--limit=3")
    assert made.status == 0, made.err
    assert "6 responses, 7.0 tokens each, 0.0 % cut off -> gsm8k" in made.out
    assert not list(Path("side").glob("*/scores"))
    assert len(posts(server)) == 3 + 6
    sampled = [call.body for call in posts(server) if call.body["temperature"] > 0]
    assert {(body["temperature"], body["top_p"], body["max_tokens"]) for body in sampled} == {(0.7, 0.8, 9)}
    assert not any("top_k" in body for body in sampled)
    scored = real("evaluate", *asked, *how, "--n=2", "--limit=3")
    assert scored.status == 0, scored.err
    assert len(posts(server)) == 9
    assert accuracy("side") == {"": 1.0, "greedy": 1.0}
    assert real("evaluate", *asked, *how, "--n=3").status == 0
    assert len(posts(server)) == 4 + 12
    assert accuracy("side") == {"": 0.75, "greedy": 0.75}
    assert real("generate", *asked, "--temperature=0", "--top_k=0").status == 0  # one response to each question
    assert len(posts(server)) == 16 + 4


def test_a_loaded_model_is_asked_the_same_by_both(ts2: Run, rows: Path) -> None:
    base = str(write_base(rows / "base", width=16))
    fruit = [{"question": question, "answer": "#### 1"} for question in ("name a fruit", "the answer is pear")]
    Path("fruit.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in fruit))
    asked = [base, "--protocol=gsm8k", "--data=gsm8k=fruit.jsonl", "--n=2", "--max_new_tokens=4"]
    how = ["--template=plain", "--device=cpu", "--batch_size=3"]
    assert ts2("generate", *asked, *how).status == 0
    [directory] = Path("evaluation").iterdir()
    before = lines(str(directory))
    assert len(before) == 2 + 4
    answered = ts2("evaluate", *asked, *how)
    assert answered.status == 0, answered.err
    assert lines(str(directory)) == before
    assert {path.name for path in directory.iterdir()} == {"responses", "scores", "measures"}


def test_programs_are_sampled_without_leave_and_judged_with_it(real: Run, rows: Path, server: JsonServer) -> None:
    asked = [f"endpoint:{server.url}#pear", "--protocol=humaneval", "--data=humaneval=problems.jsonl", "--n=2"]
    asked.append("--set=humaneval.top_k=0")
    refused = real("evaluate", *asked)
    assert refused.status == 2
    assert "`generate` samples without it" in refused.err
    assert not posts(server)
    assert real("generate", *asked).status == 0
    assert [call.body["messages"][0]["content"] for call in posts(server)] == [
        PROMPT.format(prompt=PROBLEM["prompt"].strip())
    ] * 2
    [directory] = Path("evaluation").iterdir()
    assert [path.name for path in directory.iterdir()] == ["responses"]
    judged = real("evaluate", str(directory), "--protocol=humaneval", "--run_code", "--out=side")
    assert judged.status == 0, judged.err
    assert accuracy("side") == {"": 1.0}
    assert real("evaluate", *asked, "--run_code").status == 0
    bare = ["evaluate", *asked, "--run_code", "--sandbox=none"]
    refused = real(*bare)
    assert refused.status == 2
    assert "if that is meant, add --i_know_what_i_run\n" in refused.err
    assert real(*bare, "--i_know_what_i_run").status == 0
    assert len(posts(server)) == 2


def test_prompts_are_sampled_of_a_served_model(
    real: Run, rows: Path, server: JsonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its options: the key of the variable that is named, and fields that are left out."""
    monkeypatch.setenv("MY_KEY", "secret")
    options = ["--api_key_env=MY_KEY", "--leave_out=seed", "--top_k=0", "--out=out"]
    command = ["generate", f"endpoint:{server.url}#pear", "--prompts=prompts.jsonl", "--n=2", *options]
    made = real(*command)
    assert made.status == 0, made.err
    assert {call.headers["authorization"] for call in posts(server)} == {"Bearer secret"}
    assert not any("seed" in call.body for call in posts(server))
    assert [(line["item"], line["text"]) for line in sorted(lines("out"), key=lambda line: line["item"])] == [
        ("0", "The answer is: 2")
    ] * 2 + [("1", "The answer is: 4")] * 2
    assert real(*command).status == 0
    assert len(posts(server)) == 4
    files = [path for path in Path("out").rglob("*") if path.is_file()]
    assert not any("secret" in path.read_text() for path in files)


def test_what_an_endpoint_is_not_sent(real: Run, rows: Path, server: JsonServer) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    turns = [{"role": "user", "content": "add"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    chat = {"messages": [*turns, {"role": "tool", "content": "2", "name": "add"}], "tools": [call]}
    Path("prompts.jsonl").write_text(json.dumps(chat) + "\n")
    refused = real("generate", f"endpoint:{server.url}#pear", "--prompts=prompts.jsonl", "--out=out")
    assert refused.status == 2
    assert (
        "prompt 1 has name, tool_calls, tools, and an endpoint is asked in messages of role and content" in refused.err
    )
    assert not posts(server)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("generate MODEL --out=out", "one of the arguments --prompts --protocol is required"),
        ("generate MODEL --prompts=prompts.jsonl --protocol=gsm8k", "not allowed with argument"),
        ("generate MODEL --prompts=prompts.jsonl", "it is not a run; say with --out where its responses go"),
        (
            "generate MODEL --prompts=prompts.jsonl --variant=paper",
            "--variant: is of no use with --prompts; leave it out",
        ),
        ("generate MODEL --protocol=gsm8k --name=x", "--name: is of no use with --protocol; leave it out"),
        ("generate MODEL --protocol=gsm9k", "--protocol: no protocol 'gsm9k'; did you mean gsm8k?"),
        ("generate MODEL --protocol=gsm8k --data=gsm8k=none.jsonl", "none.jsonl"),
        ("generate MODEL --protocol=gsm8k --temperature=hot", "--temperature must be"),
        ("generate MODEL --protocol=gsm8k --temperature=0 --n=2", "--n 2: at temperature 0 all samples are the same"),
        ("generate MODEL --protocol=gsm8k --timeout=0", "timeout must be a finite number above 0, got 0"),
        ("generate MODEL --protocol=gsm8k --template=plain", "--template: is not for endpoint:URL#MODEL, whose server"),
        ("evaluate MODEL --protocol=gsm8k --leave_out=top_p", "leave_out must be of seed, logprobs, got 'top_p'"),
        ("evaluate MODEL --protocol=gsm8k --backend=vllm:x", "--backend: is not for endpoint:URL#MODEL, whose server"),
        (
            "evaluate side --protocol=gsm8k --api_key_env=X",
            "--api_key_env: is for endpoint:URL#MODEL, and no such model",
        ),
    ],
)
def test_what_cannot_be_is_told_in_one_line(real: Run, rows: Path, server: JsonServer, command: str, said: str) -> None:
    words = command.replace("MODEL", f"endpoint:{server.url}#pear").split()
    refused = real(*words)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert said in refused.err
    assert not posts(server)


def test_responses_are_scored_and_not_asked_again(real: Run, rows: Path, server: JsonServer) -> None:
    asked = ["--protocol=gsm8k", "--data=gsm8k=sums.jsonl", "--n=1", "--limit=1"]
    assert real("generate", f"endpoint:{server.url}#pear", *asked).status == 0
    [directory] = Path("evaluation").iterdir()
    refused = real("generate", str(directory), *asked)
    assert refused.status == 2
    assert "these are responses, without a model; `evaluate` scores them" in refused.err


class Cluster:
    """In the place of submitit's executor: keeps jobs."""

    jobs: ClassVar[list[Callable[[], int]]] = []

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def update_parameters(self, **_: object) -> None:
        pass

    def batch(self) -> AbstractContextManager[None]:
        return nullcontext()

    def submit(self, job: Callable[[], int]) -> SimpleNamespace:
        self.jobs.append(pickle.loads(pickle.dumps(job)))
        return SimpleNamespace(job_id=f"7_{len(self.jobs)}")


def test_jobs_share_the_questions_of_a_protocol(
    real: Run, rows: Path, server: JsonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitit = pytest.importorskip("submitit")
    monkeypatch.setattr(submitit, "SlurmExecutor", Cluster)
    monkeypatch.setattr(Cluster, "jobs", [])
    asked = [f"endpoint:{server.url}#pear", "--protocol=gsm8k", "--data=gsm8k=sums.jsonl", "--n=2"]
    submitted = real("generate", *asked, "--slurm={jobs: 2, time: 60}", "--gpu", "h100", "--processes=9")
    assert submitted.status == 0, submitted.err
    assert re.search(r"^gsm8k +8 +0 ", submitted.out, re.M)  # what it will take, before it is submitted
    assert "2 jobs, 7_1 to 7_2, share the responses; their logs: evaluation/endpoint-" in submitted.out
    assert not posts(server)
    assert [job() for job in Cluster.jobs] == [0, 0]
    assert len(posts(server)) == 4 + 8
    assert real("evaluate", *asked).status == 0
    assert len(posts(server)) == 12
