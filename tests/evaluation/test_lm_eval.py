"""lm-eval as a measure: what is asked of its process, what becomes of the answer, and how it fails."""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ts2_lightning.evaluation import Model, check_spec, describe, make_measures
from ts2_lightning.evaluation.measures import lm_eval, lm_eval_worker
from ts2_lightning.evaluation.results import read_result
from ts2_lightning.types import UserError

STORIES = Path(__file__).resolve().parents[3] / "shared/data/models/stories260K"
absent = importlib.util.find_spec("lm_eval") is None
with_package = pytest.mark.skipif(absent, reason="lm-eval is not installed")
with_model = pytest.mark.skipif(not STORIES.is_dir(), reason="shared/data is not beside the checkout")

ANSWER = {
    "lm_eval": "0.4.13",
    "tasks": {
        "arc": {
            "version": 1.0,
            "num_fewshot": 0,
            "rows": 2,
            "of_rows": 9,
            "higher_is_better": {"acc": True},
            "metrics": {"acc": 0.5, "acc_stderr": 0.5},
        },
        "gsm": {
            "version": 2,
            "num_fewshot": 5,
            "rows": None,
            "of_rows": None,
            "higher_is_better": {},
            "metrics": {"exact_match,strict-match": 0.25},
        },
    },
    "per_item": {"arc|acc": {"0": 1.0, "1": 0.0}, "gsm|exact_match,strict-match": {"0": 0.25}},
    "asked": {"arc": {"0": "a", "1": "b"}, "gsm": {"0": "c"}},
}


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model("model", "model", lambda: str(STORIES), tmp_path / "out")


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts another script in the place of the worker, and lm-eval there if it is not."""
    version, spec = importlib.metadata.version, importlib.util.find_spec
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.4.13" if name == "lm_eval" else version(name))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name == "lm_eval" else spec(name))
    monkeypatch.setattr(lm_eval, "check_weight_files", lambda place: None)

    def put(code: str) -> None:
        script = tmp_path / "worker.py"
        script.write_text(
            "import json, os, sys, time\nwanted = json.loads(sys.stdin.readline())\n"
            "def answer(value): open(sys.argv[1], 'w').write(json.dumps(value))\n" + textwrap.dedent(code)
        )
        monkeypatch.setattr(lm_eval_worker, "__file__", str(script))

    return put


def measured(model: Model, **settings: Any) -> dict[str, float]:
    return make_measures(model, check_spec({"lm_eval": {"tasks": ["arc"], **settings}}), lambda line: None)


# What is asked, and what becomes of the answer ------------------------------------------------------------------


def test_values_and_documents(model: Model, worker: Any, tmp_path: Path) -> None:
    worker(
        f"""
        print("a line for the log")
        with open({str(tmp_path / "wanted.jsonl")!r}, "a") as stream:
            stream.write(json.dumps(wanted) + "\\n")
        answer({{}} if wanted["what"] == "check" else json.loads({json.dumps(json.dumps(ANSWER))}))
        """
    )
    values = measured(model, limit=2, num_fewshot=3, add_bos_token=True)
    assert values == {
        "lm_eval/arc/acc": 0.5,
        "lm_eval/arc/acc_stderr": 0.5,
        "lm_eval/arc/rows": 2.0,
        "lm_eval/gsm@strict-match/exact_match": 0.25,
    }
    assert [describe(name).better for name in values] == ["higher", None, None, "higher"]
    assert describe("lm_eval/gsm@strict-match/exact_match").title == "lm_eval: exact match, gsm@strict-match"
    [file] = (model.out / "measures").glob("*.json")
    documents = read_result(file).documents
    assert documents["lm_eval"] == "0.4.13"
    assert documents["tasks"]["gsm"] == {
        "version": 2, "num_fewshot": 5, "rows": None, "of_rows": None, "higher_is_better": {}
    }  # fmt: skip
    assert documents["per_item"]["gsm@strict-match/exact_match"] == {"0": 0.25}
    assert documents["asked"] == {"arc": {"0": "a", "1": "b"}, "gsm@strict-match": {"0": "c"}}
    assert "a line for the log" in file.with_suffix(".log").read_text()
    checked, asked = map(json.loads, (tmp_path / "wanted.jsonl").read_text().splitlines())
    assert (checked["what"], checked["tasks"]) == ("check", ["arc"])
    assert asked["model"] == {
        "pretrained": str(STORIES),
        "dtype": "float32",
        "trust_remote_code": False,
        "use_safetensors": True,
        "add_bos_token": True,
    }
    assert (asked["limit"], asked["num_fewshot"], asked["batch_size"], asked["device"]) == (2, 3, 8, "cpu")
    assert measured(model, limit=2, num_fewshot=3, add_bos_token=True, batch_size=1) == values
    assert len((tmp_path / "wanted.jsonl").read_text().splitlines()) == 2  # kept, whatever the batch


def test_changed_tasks_and_rows_are_measured_anew(model: Model, worker: Any, tmp_path: Path) -> None:
    worker(f"answer({{}} if wanted['what'] == 'check' else json.loads({json.dumps(json.dumps(ANSWER))}))")
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows, task = tmp_path / "rows.jsonl", folder / "arc.yaml"
    rows.write_text("{}\n")
    task.write_text(f"task: arc\ndataset_kwargs: {{data_files: {{test: {rows}}}}}\n")
    measure = lm_eval.LMEval(tasks=("arc",), include_path=str(folder))
    keys = [measure.inputs(model)]
    rows.write_text('{"a": 1}\n')
    keys.append(measure.inputs(model))
    task.write_text(task.read_text() + "num_fewshot: 1\n")
    keys.append(measure.inputs(model))
    assert len({json.dumps(key) for key in keys}) == 3
    assert measure.inputs(model) == keys[-1]


# How it fails ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            {"error": "unknown", "task": "arc_chalenge", "names": ["arc_challenge", "arc_easy"]},
            "lm_eval.tasks: no task 'arc_chalenge'; did you mean arc_challenge?",
        ),
        ({"error": "unknown", "task": "x", "names": []}, "lm_eval.tasks: no task 'x'; `lm-eval ls tasks` lists them"),
        (
            {"error": "hub", "task": "arc", "reason": "ConnectionError: no"},
            "lm_eval.tasks: the rows of arc are on the hub, which cannot be reached (ConnectionError: no); load them",
        ),
        ({"error": "unsafe", "task": "humaneval"}, "lm_eval.tasks: humaneval runs generated code without a sandbox"),
        ({"error": "task", "task": "arc", "reason": "KeyError: 'gold'"}, "lm_eval.tasks: arc: KeyError: 'gold'"),
    ],
)
def test_what_the_user_can_mend_is_told_in_one_line(
    model: Model, worker: Any, answer: dict[str, Any], said: str
) -> None:
    worker(f"answer(json.loads({json.dumps(json.dumps(answer))}))")
    with pytest.raises(UserError) as error:
        measured(model)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("os.kill(os.getpid(), 9)", "lm_eval: lm-eval was ended by signal 9"),
        ("raise RuntimeError('out of memory\\n\\n')", "lm_eval: lm-eval ended with status 1 (RuntimeError: out of mem"),
    ],
)
def test_a_process_that_ends_without_an_answer(model: Model, worker: Any, code: str, said: str) -> None:
    worker(f"answer({{}}) if wanted['what'] == 'check' else None\nif wanted['what'] != 'check':\n    {code}")
    with pytest.raises(UserError) as error:
        measured(model)
    assert str(error.value).startswith(said)
    assert str(error.value).endswith(".log has all it said")


def test_the_process_ends_when_its_caller_does(tmp_path: Path) -> None:
    script = (
        Path(lm_eval_worker.__file__)
        .read_text()
        .replace("from lm_eval import simple_evaluate", "import time; time.sleep(100)")
    )
    (tmp_path / "worker.py").write_text(script)
    wanted = b'{"what": "measure"}\n'
    command = [sys.executable, "-P", str(tmp_path / "worker.py"), str(tmp_path / "answer.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(wanted)
        process.stdin.flush()
        time.sleep(0.5)
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(20) == 1


def test_without_the_package(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^lm_eval needs the package lm-eval: pip install 'ts2-lightning\[lm-eval\]'$"):
        measured(model)


def test_an_old_version(model: Model, worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    worker("")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.4.9.1")
    with pytest.raises(UserError, match=r"needs lm-eval 0\.4\.13 or later, got 0\.4\.9\.1"):
        measured(model)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tasks": []}, "lm_eval: tasks: name one or more tasks of lm-eval"),
        ({"tasks": "arc"}, "lm_eval.tasks: expected"),
        ({"limit": 0}, "limit must be a whole number of at least 1 or null, got 0"),
        ({"num_fewshot": -1}, "num_fewshot must be a whole number of at least 0 or null, got -1"),
        ({"include_path": "nowhere"}, "include_path: no folder nowhere"),
        ({"task": ["arc"]}, "no setting 'task'; did you mean tasks?"),
    ],
)
def test_a_bad_setting_is_told_in_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        check_spec({"lm_eval": {"tasks": ["arc"], **settings}})
    assert said in str(error.value)


# The real one ---------------------------------------------------------------------------------------------------

ROWS = [
    {"text": "Once upon a time, there was a little", "choices": [" girl", " xqz", " of the"], "gold": 0},
    {"text": "Lily was very", "choices": [" of", " happy", " qq zz"], "gold": 1},
    {"text": "The dog ran to the", "choices": [" park", " were was", " and"], "gold": 2},
]
TASK = """
task: local_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: text
doc_to_choice: choices
doc_to_target: gold
target_delimiter: ""
metric_list:
- {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 3.0}}
"""


@pytest.fixture
def tasks(tmp_path: Path) -> str:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "local.yaml").write_text(TASK.format(rows=rows))
    (folder / "hub.yaml").write_text(
        TASK.format(rows="x").replace("local_words", "of_the_hub").replace("path: json", "path: some/where")
    )
    (folder / "lost.yaml").write_text(TASK.format(rows=tmp_path / "lost.jsonl").replace("local_words", "lost"))
    return str(folder)


def best_choices() -> list[int]:
    """The most probable continuation of each row, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    network = AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32).eval()
    best = []
    for row in ROWS:
        sums = []
        for choice in row["choices"]:  # type: ignore[attr-defined]
            whole = tokenizer(f"{row['text']}{choice}")["input_ids"]
            begun = len(tokenizer(row["text"])["input_ids"])
            with torch.no_grad():
                logs = network(torch.tensor([whole])).logits[0].double().log_softmax(-1)
            sums.append(sum(logs[place - 1, whole[place]].item() for place in range(begun, len(whole))))
        best.append(max(range(len(sums)), key=sums.__getitem__))
    return best


@pytest.mark.slow
@with_package
@with_model
def test_a_task_of_ones_own_end_to_end(
    model: Model, tasks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    before = torch.get_rng_state()
    settings: dict[str, Any] = {"tasks": ["local_words"], "include_path": tasks}
    values = measured(model, **settings)
    right = [best == row["gold"] for best, row in zip(best_choices(), ROWS, strict=True)]
    assert 0 < sum(right) < 3
    assert values["lm_eval/local_words/acc"] == pytest.approx(sum(right) / 3)
    assert values["lm_eval/local_words/rows"] == 3
    [file] = (model.out / "measures").glob("*.json")
    documents = read_result(file).documents
    assert documents["tasks"]["local_words"]["version"] == 3.0
    assert documents["per_item"]["local_words/acc"] == {str(i): float(each) for i, each in enumerate(right)}
    assert len(set(documents["asked"]["local_words"].values())) == 3
    assert torch.equal(torch.get_rng_state(), before)
    assert "lm_eval" not in sys.modules
    for task, said in (
        ("of_the_hub", "lm_eval.tasks: the rows of of_the_hub are on the hub, which cannot be reached"),
        ("lost", "lm_eval.tasks: lost: FileNotFoundError"),
    ):
        with pytest.raises(UserError) as error:
            measured(model, tasks=[task], include_path=tasks)
        assert str(error.value).startswith(said), str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.slow
@with_package
@with_model
def test_a_misspelt_task_has_a_neighbour(model: Model) -> None:
    with pytest.raises(UserError, match="no task 'arc_chalenge'; did you mean arc_challenge"):
        measured(model, tasks=["arc_chalenge"])
