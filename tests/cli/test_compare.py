"""`compare`: what it takes from disk, what it says of it, and what it leaves."""

import csv
import itertools
import json
import re
import shlex
import statistics
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.test_evaluate import answer, here, store
from tests.support.canned import canned_model
from ts2_lightning.cli import asked_models, main
from ts2_lightning.cli.asked_models import evaluated_place
from ts2_lightning.evaluation import check_spec, make_measures

__all__ = ["here"]  # the working directory with rows of two protocols

SKILLS = {"weak": 2, "mid": 3, "strong": 6}


def run(*words: str) -> int:
    return main(["compare", *words])


def table(out: str = "comparison") -> dict[tuple[str, str, str, str, str], dict[str, str]]:
    """The lines of the table for programs, by protocol, part, value and the two models."""
    with open(f"{out}/table.csv") as stream:
        rows = list(csv.DictReader(stream))
    keyed = {tuple(row[name] for name in ("protocol", "part", "value", "first", "second")): row for row in rows}
    assert len(keyed) == len(rows)
    return keyed  # type: ignore[return-value]


def accuracies(skill: int) -> list[float]:
    """Of the six sums: of four samples the first `skill - i` are right."""
    return [max(0, min(4, skill - i)) / 4 for i in range(6)]


def enumerated(differences: list[float]) -> float:
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    return sum(one >= abs(sum(differences)) - 1e-9 for one in sums) / len(sums)


@pytest.fixture
def stored(here: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Three models that have been evaluated."""
    for name, skill in SKILLS.items():
        store(name, skill)
    capsys.readouterr()
    return here


def test_models_are_compared_with_the_first_one(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SKILLS) == 0
    shown = capsys.readouterr().out
    rows = table()
    assert {(first, second) for *_, first, second in rows} == {("weak", "mid"), ("weak", "strong")}
    assert {key[:3] for key in rows} == {
        ("gsm8k", "greedy", "accuracy"),
        ("gsm8k", "", "accuracy"),
        ("gsm8k", "", "pass_at_4"),
        ("arc", "", "accuracy"),
    }
    for (protocol, part, value, first, second), row in rows.items():
        if protocol == "gsm8k":
            of = [accuracies(SKILLS[name]) for name in (first, second)]
            of = [[float(one > 0) for one in of_model] for of_model in of] if part or value == "pass_at_4" else of
            differences = [after - before for before, after in zip(*of, strict=True)]
            assert float(row["difference"]) == pytest.approx(statistics.fmean(differences))
            assert float(row["second_mean"]) == pytest.approx(statistics.fmean(of[1]))
            assert float(row["low"]) <= float(row["difference"]) <= float(row["high"])
            assert float(row["p"]) == pytest.approx(enumerated(differences))
            assert (row["test"], row["questions"], row["better"]) == ("exact", "6", "higher")
    p_values = [float(row["p"]) for row in rows.values()]
    rising = sorted(p_values)
    for row in rows.values():
        needed = [min(1.0, (len(rising) - i) * p) for i, p in enumerate(rising) if p <= float(row["p"])]
        assert float(row["p_holm"]) == pytest.approx(max(needed))
    assert "corrected for the 8 comparisons shown here" in shown
    line = re.search(r"^gsm8k accuracy ↑\n  mid .*\n  strong +0\.750 +weak +0\.125 +\+0\.625 \[.*$", shown, re.M)
    assert line is not None
    assert line[0].split()[-4:] == ["0.031", "0.250", "6", "-"], "5 and 1 of 64 signs; 8 tests"
    assert "gsm8k accuracy ↑ | strong | 0.750 | weak | 0.125 | +0.625 [" in Path("comparison/table.md").read_text()
    assert len(Image.open("comparison/differences.png").convert("RGB").getcolors(1 << 24) or ()) > 10
    assert "<text" in Path("comparison/differences.svg").read_text()
    page = Path("comparison/report.html").read_text()
    assert "weak, mid, strong: each with weak, on the questions that both were asked." in page
    assert "3: strong minus weak +0.750" in page, "where they differ most"
    assert "The answer is: 6" in page


def test_every_two_models_and_another_baseline(stored: Path) -> None:
    assert run(*SKILLS, "--all_pairs", "--protocol", "gsm8k", "--values", "accuracy", "--out", "all") == 0
    pairs = {
        (first, second): float(row["difference"])
        for (*_, part, _, first, second), row in table("all").items()
        if not part
    }
    assert list(pairs) == [("weak", "mid"), ("weak", "strong"), ("mid", "strong")]
    assert pairs["weak", "strong"] == pytest.approx(pairs["weak", "mid"] + pairs["mid", "strong"])
    assert run(*SKILLS, "--baseline", "strong", "--values", "all", "--out", "other") == 0
    others = table("other")
    assert {(first, second) for *_, first, second in others} == {("strong", "weak"), ("strong", "mid")}
    assert {value for _, part, value, *_ in others if not part} >= {"accuracy", "majority_at_4", "distinct_answers"}
    assert float(others["gsm8k", "", "accuracy", "strong", "weak"]["difference"]) == -pairs["weak", "strong"]


def test_what_is_missing_is_said_with_the_command_that_makes_it(
    stored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(asked_models, "make_endpoint", lambda address, options: answer(3))
    name = "endpoint:http://localhost:9#mine"
    assert run("weak", name) == 2
    refused = capsys.readouterr()
    assert "nothing to compare: no two of these models were measured in the same way" in refused.err
    commands = re.findall(r"^mine was not measured under \w+: \w+(?: cli.py)? (evaluate .*)$", refused.out, re.M)
    assert len(commands) == 2
    assert "--n 4" in commands[0]
    for command in commands:
        assert main(shlex.split(command)) == 0
    capsys.readouterr()
    assert run("weak", name) == 0
    assert "not measured" not in capsys.readouterr().out
    assert float(table()["gsm8k", "", "accuracy", "weak", "mine"]["difference"]) == pytest.approx(0.125)


def test_the_command_says_all_that_is_not_as_usual(
    stored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that what it makes is compared with what is there."""
    monkeypatch.setattr(asked_models, "make_endpoint", lambda address, options: answer(3))
    settings = {"data": "sums.jsonl", "variant": "papers_code", "n": 3, "ks": [1, 3], "greedy": False, "seed": 7}
    spec = check_spec({"gsm8k": settings, "decoding": "sparsemax", "template": "plain"})
    make_measures(canned_model(Path("weak"), answer(2)), spec, lambda line: None, draw=False)
    capsys.readouterr()
    name = "endpoint:http://localhost:9#mine"
    others = ["--decoding", "sparsemax", "--evaluation_dir", "else where"]
    assert run("weak", name, *others) == 2
    [command] = re.findall(r"^mine was not measured under gsm8k: \w+(?: cli.py)? (.*)$", capsys.readouterr().out, re.M)
    assert main(shlex.split(command)) == 0
    assert run("weak", name, *others) == 0
    assert table()["gsm8k", "", "accuracy", "weak", "mine"]["questions"] == "6"


def test_only_what_both_were_asked_is_compared(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in Path("sums.jsonl").read_text().splitlines()]
    rows[0], rows[1] = rows[1], rows[0]
    Path("sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:5]))
    store("other", 4)
    capsys.readouterr()
    assert run("weak", "other", "--protocol", "gsm8k") == 0
    row = table()["gsm8k", "", "accuracy", "weak", "other"]
    assert [row[name] for name in ("questions", "first_questions", "second_questions")] == ["3", "6", "5"]
    assert float(row["first_mean"]) == 0.0
    assert float(row["difference"]) == pytest.approx(statistics.fmean([2 / 4, 1 / 4, 0]))
    assert "3 of 5 and 6" in capsys.readouterr().out
    Path("sums.jsonl").write_text(json.dumps({"question": "7 + 7?", "answer": "#### 14"}) + "\n")
    store("none", 9)
    capsys.readouterr()
    assert run("weak", "none", "--protocol", "gsm8k") == 2
    assert "nothing to compare: no two of these models were asked the same questions" in capsys.readouterr().err


def test_other_settings_are_another_way_and_more_questions_count(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("weak", "strong"):
        for settings in ({"variant": "papers_code", "n": 4}, {"n": 4, "limit": 2}):
            spec = check_spec({"gsm8k": {"data": "sums.jsonl", **settings}})
            make_measures(canned_model(Path(name), answer(SKILLS[name])), spec, lambda line: None, draw=False)
    capsys.readouterr()
    assert run("weak", "strong", "--protocol", "gsm8k") == 0
    shown = capsys.readouterr().out
    rows = table()
    named = {key[0] for key in rows}
    assert named == {"gsm8k (top_k 0, variant paper)", "gsm8k (top_k 50, variant papers_code)"}
    assert {row["questions"] for row in rows.values()} == {"6"}
    assert "weak: 2 results of gsm8k differ in questions or seed alone; the one that counts has most questions" in shown


def test_files_that_cannot_be_read_are_told(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [file] = Path("mid/measures").glob("arc-*.json")
    file.write_text("{")
    document = json.loads(next(Path("strong/measures").glob("arc-*.json")).read_text())
    del document["documents"]["asked"]
    next(Path("strong/measures").glob("arc-*.json")).write_text(json.dumps(document))
    [other] = Path("mid/measures").glob("gsm8k-*.json")
    document = json.loads(other.read_text())
    document["documents"]["per_item"]["accuracy"]["3"] = "three"
    other.write_text(json.dumps(document))
    assert run(*SKILLS) == 0
    shown = capsys.readouterr().out
    assert f"{file}: not what `measure` writes" in shown
    assert f"{other}: not what `evaluate` writes of questions; remove it, and evaluate again" in shown
    assert "does not say what was asked, as of an earlier version; evaluate it again" in shown
    assert "arc" not in {key[0] for key in table()}
    assert len(re.findall(r"^(mid|strong) was not measured under arc: ", shown, re.M)) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["weak"], "weak: name at least two models"),
        (["weak", "weak"], "weak: it is named twice"),
        (["weak", "nowhere/at/all"], "nowhere/at/all: no such model"),
        (["weak", "mid", "--protocol", "gsm9k"], "--protocol: no protocol 'gsm9k'; did you mean gsm8k?"),
        (["weak", "mid", "--protocol", ","], "--protocol: name some of gsm8k, "),
        (["weak", "mid", "--protocol", "maths"], "none of these models was measured under a protocol"),
        (["weak", "mid", "--baseline", "mad"], "--baseline mad: none of the models; did you mean mid?"),
        (
            ["weak", "mid", "--values", "accurcy"],
            "no value 'accurcy' is there for each question; did you mean",
        ),
        (
            ["endpoint:http://localhost:9#a", "endpoint:http://localhost:9#b", "--evaluation_dir", "evaluaton"],
            "nothing to compare: --evaluation_dir evaluaton: no such directory",
        ),
        (["weak", "mid", "--items", "-1"], "--items must be a whole number of at least 0, got -1"),
        (["weak", "mid", "--decoding", "sparse"], "--decoding: no decoding 'sparse'; did you mean sparsemax?"),
        (["weak", "mid", "--decoding", "sparsemax"], "none of these models was measured under a protocol (sparsemax"),
        (["weak", "mid", "--out", "sums.jsonl"], "--out sums.jsonl: this is a file; name a directory"),
        (["weak", "weak/responses"], "weak/responses: it is the same as weak, "),
        (["endpoint:localhost", "mid"], "an endpoint must be like endpoint:http://localhost:8000#MODEL"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    stored: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert run(*words) == 2
    shown = capsys.readouterr()
    assert said in shown.err.strip().splitlines()[-1]
    assert shown.out != "\n"
    assert not Path("comparison").exists()


def test_where_models_have_what_was_measured(stored: Path) -> None:
    """As `evaluate` leaves it: beside a run, below its own --out, or in the directory of the responses."""
    run_of = Path("runs/ts2/2")
    run_of.mkdir(parents=True)
    (run_of / "config.yaml").write_text("name: ts2\n")
    places: dict[str, Any] = {name: evaluated_place(name, Path("evaluation")) for name in ("weak", "weak/responses")}
    assert places == {"weak": ("weak", Path("weak")), "weak/responses": ("responses", Path("weak"))}
    [greedy] = Path("weak/responses").glob("gsm8k-greedy-*")
    assert evaluated_place(str(greedy), Path("evaluation")) == (greedy.name, Path("weak"))
    for name in ("runs/ts2", "runs/ts2/2"):
        assert evaluated_place(name, Path("evaluation")) == ("ts2/2", run_of)
    title, place = evaluated_place("endpoint:http://localhost:9#mine", Path("out"))
    assert (title, place.parent) == ("mine", Path("out"))
