"""AlpacaEval and NoveltyBench as users run them: a real small model, tiny judges, a table; again, asking nothing."""

import json
import re
from pathlib import Path

import pytest

from tests.support.judges import count_rows
from ts2_lightning.cli import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_data: Path, judge_cache: Path) -> Path:
    """A working directory with a few instructions, prompts and outputs."""
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"Tell me of a {thing}.", "output": f"A {thing} is a thing."} for thing in ("dog", "cat")]
    rows.append({"instruction": "Say hello.", "output": "Hello!"})
    Path("alpaca.json").write_text(json.dumps(rows))
    Path("outputs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    Path("prompts.jsonl").write_text('{"id": "a", "prompt": "Name a colour."}\n{"id": "b", "prompt": "Name a day."}\n')
    return tmp_path


def evaluate(shared_data: Path, reward_dir: Path, similarity_dir: Path) -> int:
    return main([
        "evaluate", str(shared_data / "models/stories260K"), "--protocol", "alpaca,novelty", "--out", "side",
        "--data", "alpaca=alpaca.json", "--data", "novelty.curated=prompts.jsonl", "--set", "novelty.sets=[curated]",
        "--set", "alpaca.baseline=outputs.jsonl", "--reward_model", str(reward_dir), "--n", "4",
        "--max_new_tokens", "12", "--set", f"novelty.equivalence={similarity_dir}", "--device", "cpu",
        "--set", "novelty.reward=null",
    ])  # fmt: skip


def test_a_real_model_is_judged_and_nothing_is_asked_twice(
    here: Path,
    shared_data: Path,
    reward_dir: Path,
    similarity_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen = count_rows(monkeypatch)
    with pytest.warns(UserWarning, match="no output to 1 of 3 instructions, which are left out, such as 'Say hello"):
        assert evaluate(shared_data, reward_dir, similarity_dir) == 0
    shown = capsys.readouterr().out
    for line in (
        "win rate, best of 4 ",
        "win rate at equal length ",
        "100 - self-BLEU ",
        "novelty curated",
        "distinct ",
    ):
        assert line in shown
    assert re.search(r"win rate at equal length, best of 4 +\d+\.\d \[\d+\.\d, \d+\.\d\]", shown)
    assert "best of 4" in Path("side/table.md").read_text()
    assert Path("side/alpaca-samples.png").is_file()
    assert sum(seen) >= 2 * 4 + 2  # rewards of both sides, and pairs
    seen.clear()
    for values in here.glob("side/*/measures"):
        values.rename(here / "old")
    assert evaluate(shared_data, reward_dir, similarity_dir) == 0
    assert capsys.readouterr().out.partition("\n\n")[2] == shown.partition("\n\n")[2]
    assert not seen


def test_generate_needs_neither_judge_nor_outputs(
    here: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(shared_data / "models/stories260K")
    options = ["--data", "alpaca=alpaca.json", "--n", "2", "--max_new_tokens", "4", "--device", "cpu"]
    assert main(["generate", model, "--protocol", "alpaca", "--out", "made", *options]) == 0
    [part] = here.glob("made/**/part-*.jsonl")
    assert len(part.read_text().splitlines()) == 1 + 3 * 2
