"""`evaluate` and `protocols`: what they take, what they show, what they leave on disk."""

import csv
import itertools
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.canned import Canned, canned_model
from ts2_lightning.cli import asked_models, main
from ts2_lightning.evaluation import check_spec, files_of, make_measures
from ts2_lightning.evaluation.results import read_result
from ts2_lightning.generation.backends.endpoint import Address

CHOICES = {"text": ["gold", "iron", "zinc"], "label": ["A", "B", "C"]}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with rows of two protocols."""
    monkeypatch.chdir(tmp_path)
    sums = [{"question": f"{i} + {i}?", "answer": f"#### {2 * i}"} for i in range(6)]
    choices = [{"question": f"Metal {i}?", "choices": CHOICES, "answerKey": "ABC"[i % 3]} for i in range(4)]
    for name, rows in (("sums", sums), ("choices", choices)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def answer(skill: int) -> Canned:
    """Right in the first samples of each question, fewer of them for the later questions; B for every choice."""

    def text(question: str, index: int) -> str:
        if "Metal" in question:
            return "Answer: B"
        number = int(question.rpartition("Question: ")[2].split(" +")[0])
        return f"The answer is: {2 * number if index < skill - number else -1 - index}"

    return Canned(text)


def store(out: str, skill: int, n: int = 4) -> dict[str, float]:
    """Responses of a model that is not there any more."""
    spec = check_spec({"gsm8k": {"data": "sums.jsonl", "n": n}, "arc": {"data": "choices.jsonl"}})
    return make_measures(canned_model(Path(out), answer(skill)), spec, lambda line: None, draw=False)


def run(*words: str) -> int:
    return main(["evaluate", *words])


def test_several_models_end_in_a_table_and_pictures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {name: store(name, skill) for name, skill in (("weak", 2), ("strong", 4))}
    capsys.readouterr()
    assert run("weak", "strong", "--protocol", "gsm8k,arc", "--out", "side") == 0
    shown = capsys.readouterr().out
    table = shown[shown.index("gsm8k greedy") :]
    for line in ("accuracy", "pass@4", "majority@4", "questions", "responses to each", "unparsed", "truncated"):
        assert re.search(rf"^  {line}\b.*\S  +\S", table, re.M), line
    assert re.search(r"^  accuracy \(chance 0\.333\)  0\.250 \[0\.000, ", table, re.M)
    assert "the 95 % interval of the bootstrap over questions" in table
    assert "k = 4" in table

    with open("side/table.csv") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        whole = "/".join(filter(None, [row["protocol"], row["part"], row["value"]]))
        assert float(row["mean"]) == values[row["model"]][whole]
        assert float(row["questions"]) == (6 if row["protocol"] == "gsm8k" else 4)
        assert row["unparsed"] == row["truncated"] == "0.0"
        assert bool(row["chance"]) == (row["protocol"] == "arc")
    assert len({(row["model"], row["protocol"], row["part"], row["value"]) for row in rows}) == len(rows)
    [strong] = [row for row in rows if (row["model"], row["part"], row["value"]) == ("strong", "", "pass_at_4")]
    assert float(strong["low"]) < float(strong["mean"]) < float(strong["high"])
    markdown = Path("side/table.md").read_text()
    assert "## gsm8k\n\n|  | weak | strong |\n| --- | ---: | ---: |\n| accuracy | " in markdown
    pictures = {file.name for file in Path("side").glob("*.png")}
    assert pictures == {"gsm8k-samples.png", "gsm8k-successes.png", "gsm8k-diversity.png"}
    for name in pictures:
        assert len(Image.open(Path("side", name)).convert("RGB").getcolors(1 << 24) or ()) > 10
        assert "n = 6 questions, 4 responses each<" in Path("side", name).with_suffix(".svg").read_text()


def differences(out: str = "evaluation") -> dict[tuple[str, str, str], list[str]]:
    with open(f"{out}/table.csv") as stream:
        rows = [row for row in csv.DictReader(stream) if row["protocol"] == "gsm8k"]
    return {
        (row["model"], row["part"], row["value"]): [row[name] for name in row if name.startswith("difference")]
        for row in rows
    }


def test_models_are_compared_question_by_question(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Question i has max(0, skill - i) right samples of 4: six differences, whose resamples are all counted here."""
    for name, skill in (("weak", 2), ("strong", 4)):
        store(name, skill)
    capsys.readouterr()
    assert run("weak", "strong", "--protocol", "gsm8k,arc") == 0
    shown = capsys.readouterr().out
    each = [(max(0, 4 - i) - max(0, 2 - i)) / 4 for i in range(6)]
    number = differences()
    mean, low, high, questions = map(float, number["strong", "", "accuracy"])
    assert mean == pytest.approx(statistics.fmean(each))
    means = sorted(statistics.fmean(drawn) for drawn in itertools.product(each, repeat=6))
    for end, share in ((low, 0.025), (high, 0.975)):
        assert means[int(len(means) * (share - 0.01))] <= end <= means[int(len(means) * (share + 0.01))]
    assert questions == 6
    assert number["strong", "", "pass_at_4"][0] == str(statistics.fmean([0, 0, 1, 1, 0, 0]))
    assert number["weak", "", "accuracy"] == number["strong", "", "distinct_answers"] == [""] * 4
    line = rf"^  accuracy, minus weak +- +\+{mean:.3f} \[\+{low:.3f}, \+{high:.3f}\]$"
    assert re.search(line, shown, re.M)
    assert "| accuracy, minus weak | - | +" in Path("evaluation/table.md").read_text()
    assert shown.count("paired bootstrap over questions") == 1
    assert "are among the" not in shown
    assert run("weak", "--protocol", "gsm8k", "--out", "alone") == 0
    assert "minus" not in capsys.readouterr().out


def test_other_questions_are_not_compared(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Questions of one number are the same only if their text and their answer are."""
    store("weak", 2)
    rows = [json.loads(line) for line in Path("sums.jsonl").read_text().splitlines()]
    rows[0], rows[1] = rows[1], rows[0]
    Path("sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:5]))
    store("strong", 4)
    capsys.readouterr()
    assert run("weak", "strong", "--protocol", "gsm8k", "--out", "some") == 0
    mean, *_, questions = map(float, differences("some")["strong", "", "accuracy"])
    assert (mean, questions) == (pytest.approx(statistics.fmean([2 / 4, 1 / 4, 0])), 3)
    said = "strong, gsm8k: of its 5 questions 3 are among the 6 of weak; the difference is of those alone."
    assert said in capsys.readouterr().out
    Path("sums.jsonl").write_text(json.dumps({"question": "7 + 7?", "answer": "#### 14"}) + "\n")
    store("other", 9)
    capsys.readouterr()
    assert run("weak", "other", "--protocol", "gsm8k", "--out", "none") == 0
    assert differences("none")["other", "", "accuracy"] == ["", "", "", "0"]
    assert "0 are among the 6 of weak; there is no difference to show." in capsys.readouterr().out


def test_an_endpoint_is_asked_and_what_is_there_is_kept(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Canned] = []
    addresses: list[Address] = []

    def endpoint(address: Address, options: Any) -> Canned:
        addresses.append(address)
        asked.append(answer(3))
        return asked[-1]

    monkeypatch.setattr(asked_models, "make_endpoint", endpoint)
    words = ["endpoint:http://localhost:9#mine", "--protocol", "gsm8k", "--data", "gsm8k=sums.jsonl", "--limit", "3"]
    assert run(*words, "--n", "2") == 0
    assert {(one.url, one.model) for one in addresses} == {("http://localhost:9/v1", "mine")}
    assert sum(len(one.made) for one in asked) == 3 + 6
    [directory] = Path("evaluation").glob("endpoint-*")
    assert {path.name for path in directory.iterdir()} == {"responses", "scores", "measures"}
    before = capsys.readouterr().out
    assert run(*words, "--n", "2") == 0
    assert sum(len(one.made) for one in asked) == 9
    assert "values, kept in" in capsys.readouterr().out
    assert run(*words, "--n", "3", "--set", "gsm8k.ks=[1,3]", "--variant", "papers_code") == 0
    assert sum(len(one.made) for one in asked[1:]) == 9  # other top-k: all three anew, greedy kept
    assert "majority@3" in capsys.readouterr().out
    assert "majority@3" not in before


def test_n_is_for_those_that_sample(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(asked_models, "make_endpoint", lambda address, options: answer(3))
    data = ["--data", "gsm8k=sums.jsonl", "--data", "arc=choices.jsonl"]
    assert run("endpoint:http://localhost:9#mine", "--protocol", "arc,gsm8k", *data, "--n", "3") == 0
    [directory] = Path("evaluation").glob("endpoint-*")
    settings = {
        name: read_result(file).settings["n"]
        for name, file in ((file.name.split("-")[0], file) for file in (directory / "measures").iterdir())
    }
    assert settings == {"arc": 1, "gsm8k": 3}
    said = "--n 3 is not for arc: one response to each question, at temperature 0\n"
    assert capsys.readouterr().out.count(said) == 1
    assert (
        run("endpoint:http://localhost:9#mine", "--protocol", "arc", *data[2:], "--n", "3", "--temperature", "1") == 0
    )
    assert "--n 3" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["weak", "--protocol", "gsm9k"], "--protocol: no protocol 'gsm9k'; did you mean gsm8k?"),
        (["weak", "--protocol", "cost"], "--protocol: no protocol 'cost'; there are gsm8k, maths, "),
        (["weak", "--protocol", ","], "--protocol: name some of gsm8k, maths, "),
        (["weak", "--protocol", "gsm8k", "--n", "0"], "--n must be a whole number of at least 1, got 0"),
        (["weak", "--protocol", "gsm8k", "--n", "two"], "--n must be a whole number of at least 1, got 'two'"),
        (["weak", "--protocol", "gsm8k", "--data", "sums.jsonl"], "--data sums.jsonl: write PROTOCOL=FILE, or "),
        (
            ["weak", "--protocol", "gsm8k", "--data", "arc=x"],
            "--data arc=x: no such protocol in --protocol; there is gsm8k",
        ),
        (
            ["weak", "--protocol", "openllm", "--data", "openllm=x"],
            "--data openllm=x: write openllm.SET=x, SET being one of",
        ),
        (["weak", "--protocol", "openllm", "--data", "openllm.mmul=x"], "no data set 'mmul'; did you mean mmlu?"),
        (
            ["weak", "--protocol", "gsm8k", "--set", "ks=1"],
            "--set ks=1: write PROTOCOL.SETTING=VALUE, such as gsm8k.ks=",
        ),
        (["weak", "--protocol", "gsm8k", "--set", "gsm8k.k=1"], "gsm8k: no setting 'k'; did you mean ks?"),
        (
            ["weak", "--protocol", "gsm8k", "--set", "gsm8k.ks=many"],
            "gsm8k.ks: expected tuple[int, ...] | null, got 'many'",
        ),
        (["weak", "--protocol", "gsm8k", "--run_code"], "--run_code: none of gsm8k has this setting; leave it out"),
        (["weak", "--protocol", "gsm8k", "--backend", "vlm"], "no backend 'vlm'"),
        (["weak", "weak", "--protocol", "gsm8k"], "weak: it is named twice; name each model once"),
        (["weak", "--protocol", "maths"], "weak: no responses of maths; there is arc, gsm8k, gsm8k-greedy"),
        (["nowhere/at/all", "--protocol", "gsm8k"], "nowhere/at/all: no such model"),
        (
            ["endpoint:localhost", "--protocol", "gsm8k"],
            "an endpoint must be like endpoint:http://localhost:8000#MODEL",
        ),
        (["weak", "--protocol", "gsm8k", "--out", "sums.jsonl"], "--out sums.jsonl: this is a file; name a directory"),
        (["weak"], "evaluate: the following arguments are required: --protocol"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*no responses of")
def test_what_cannot_be_is_told_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    store("weak", 2, n=1)
    capsys.readouterr()
    assert run(*words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error


def test_a_model_that_gives_no_answers_is_named(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a pretrained model does that repeats the question until its tokens are used up."""
    monkeypatch.setattr(
        asked_models,
        "make_endpoint",
        lambda address, options: Canned(lambda question, index: "Answer the following..."),
    )
    assert run("endpoint:http://localhost:9#mine", "--protocol", "arc", "--data", "arc=choices.jsonl") == 0
    said = "mine, arc: 100% of the responses have no answer that can be read, and 100% were cut off"
    assert said in capsys.readouterr().out
    assert said in Path("evaluation/table.md").read_text()


def test_one_store_of_responses_is_named_by_itself(here: Path) -> None:
    store("weak", 2)
    [greedy] = Path("weak/responses").glob("gsm8k-greedy-*")
    with pytest.warns(UserWarning, match="no responses of gsm8k; this part is left out"):
        assert run(str(greedy), "--protocol", "gsm8k") == 0
    with open("evaluation/table.csv") as stream:
        assert {row["part"] for row in csv.DictReader(stream)} == {"greedy"}


# Listing --------------------------------------------------------------------------------------------------------


def test_the_protocols_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["protocols"]) == 0
    shown = capsys.readouterr().out
    for name in ("gsm8k", "maths", "openllm", "arc", "mmlu"):
        assert f"\n{name}\n  " in f"\n{shown}"
    assert re.search(r"1,319 questions; 16 responses at temperature 0\.6, top-p 0\.9, at most 512\s+tokens", shown)
    # 1,319 questions: 16 samples and a greedy one of 512 tokens each
    assert f"{1319 * 17 * 512:,} tokens at most" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("name", ["gsm8k", "maths", "openllm", "arc", "mmlu"])
def test_one_protocol_is_told_in_full(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["protocols", name]) == 0
    shown = capsys.readouterr().out
    for head in (
        "Source: ",
        "What the user says:",
        "Data, where you name no file:",
        "Variants, and what each samples:",
        "Models needed beside",
        "Where text, public code and this one differ:",
        "Settings, with their",
    ):
        assert head in shown
    settings = re.findall(r"^  (\w+) = .*\n      (\S.*)", shown, re.M)
    assert {"data", "n", "ks", "variant", "seed"} <= {setting for setting, _ in settings}


def test_a_program_reads_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["protocols", "--json"]) == 0
    listed: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    [maths] = [each for each in listed if each["name"] == "maths"]
    # Both temperatures: 2 x 16 responses of 4,096 tokens to 500, 272 and 1,319 problems.
    assert maths["variants"]["paper"]["tokens_at_most"] == (500 + 272 + 1319) * 2 * 16 * 4096
    assert maths["data"]["minerva"]["rows"] == 272


def test_an_unknown_protocol_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["protocols", "math"]) == 2
    assert "error: protocols: no protocol 'math'; did you mean maths?" in capsys.readouterr().err
    assert main(["protocols", "ts2_lightning.evaluation.measures.cost.Cost"]) == 2
    assert "is no protocol; derive it from" in capsys.readouterr().err


def test_the_values_of_a_grid_are_those_of_evaluate(here: Path) -> None:
    """`measure:` of a grid takes the same classes, with the same settings."""
    spec = check_spec({"gsm8k": {"data": "sums.jsonl", "n": 16, "ks": [1, 4, 16]}})
    model = canned_model(Path("out"), answer(4))
    values = make_measures(model, spec, lambda line: None)
    [file] = files_of(Path("out"), spec).values()
    result = read_result(file)
    assert result.values == values
    assert {name for name in values if "pass_at" in name} == {f"gsm8k/pass_at_{k}" for k in (1, 4, 16)}
    assert list(result.documents["curves"]["pass"]) == ["1", "4", "16"]
