"""What README.md says is done as it says it: its commands run, its code runs, its links lead somewhere."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from tests.e2e.command_line import ROOT, CommandLine, column, empty_working_directory, json_lines, make_blank
from ts2_lightning.cli import COMMANDS
from ts2_lightning.toyworld import resolve_source

README = ROOT / "README.md"
HUB_MODEL = re.compile(r"--model\.lm\.path[ =]([\w.-]+/[\w.-]+)")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language (`sh` stands for every name of a shell)."""
    names = "sh|bash|shell|console" if language == "sh" else language
    found = re.findall(rf"^```(?:{names})[^\n]*\n(.*?)^```", README.read_text(encoding="utf-8"), re.S | re.M)
    return [str(block) for block in found]


def commands() -> list[list[str]]:
    """Every `python cli.py COMMAND ...` of the shell blocks, split into words, without what only stands for more."""
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    parts = [part.strip().removeprefix("$ ") for line in lines for part in line.split("&&")]
    words = [shlex.split(part, comments=True) for part in parts]
    return [[w for w in words_ if w != "..."] for words_ in words if words_[:2] == ["python", "cli.py"]]


COMMAND_LINES = commands()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What a clone looks like to a command: `configs/`, and the user's rows and model under the README's names."""
    directory = tmp_path_factory.mktemp("clone")
    (directory / "configs").symlink_to(ROOT / "configs")
    with empty_working_directory(directory, directory / "cache"):
        rows = resolve_source("toyworld:validation").read_text(encoding="utf-8").splitlines(keepends=True)
        named = re.findall(r"[\w-]+\.jsonl", "\n".join(blocks("sh")))
        for start, file in enumerate(sorted(set(named))):
            Path(file).write_text("".join(rows[10 * start : 10 * start + 10]), encoding="utf-8")
        for model in set(HUB_MODEL.findall("\n".join(blocks("sh")))):
            small_model(directory / model)  # a directory of that name comes before the hub
        for number, block in enumerate(blocks("python")):
            name = re.match(r"# (\w+\.py)\n", block)
            Path(name[1] if name else f"block{number}.py").write_text(block, encoding="utf-8")
        yield directory


def small_model(directory: Path) -> None:
    make_blank(directory)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory)).save_pretrained(directory)


def test_the_first_screen_sets_up_runs_and_tests() -> None:
    first, second = blocks("sh")[:2]
    assert first.strip().endswith("python cli.py quickstart")
    assert "pip install -c constraints.txt -e ." in first
    assert "pytest" in second
    for block in (first, second):
        assert len(block.strip().splitlines()) == 1
    position = README.read_text(encoding="utf-8").index(second)
    assert README.read_text(encoding="utf-8")[:position].count("\n") < 25


def test_there_are_commands_of_every_kind() -> None:
    assert {words[2] for words in COMMAND_LINES} >= {"quickstart", "fit", "test", "predict"}
    assert {words[2] for words in COMMAND_LINES} <= COMMANDS.keys()


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README.read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target


@pytest.mark.timeout(300)
def test_its_commands_run(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All of them but the quickstart, in their order, in one folder: a later one may need what an earlier one left."""
    ts2 = CommandLine(capfd, folder)
    ran = 0
    for words in COMMAND_LINES:
        if words[2] == "quickstart":
            continue
        arguments = toy_sized(words[2:])
        ts2(*arguments).done()
        ran += 1
    assert ran >= 5
    assert column("runs/mine/1", "val/cross_entropy")
    assert (folder / "runs/mine/1/export/model.safetensors").is_file()
    assert json_lines(next(Path("runs/mine/1/predict").glob("*/predictions.jsonl")))


def toy_sized(words: list[str]) -> list[str]:
    """A command with what the README leaves open, and few enough rows, in this process alone."""
    if words[0] in ("losses", "protocols", "export", "report"):
        return words
    if words[0] == "ablate":  # tests/e2e/test_ablate.py runs one
        return [*words, *({"--dry-run"} - {*words})]
    if words[0] == "measure":
        spec = yaml.safe_load(words[-1])
        return [
            *words[:-1],
            json.dumps({**spec, "diversity": {**spec["diversity"], "samples": 2, "max_new_tokens": 4}}),
        ]
    if words[0] == "evaluate":
        Path("gsm8k.jsonl").write_text(json.dumps({"question": "1 + 1?", "answer": "#### 2"}) + "\n", encoding="utf-8")
        return [*words, "--n=2", "--set=gsm8k.max_new_tokens=4"]
    if words[0] == "judge":
        rows = [{"instruction": "Name a fruit.", "response": "plum" * i, "label": i} for i in (1, 2)]
        Path("labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return [*words, "--set=max_new_tokens=4", "--device=cpu"]
    if words[0] == "probe":
        return [*words, "--queries=2", "--max_new_tokens=4", "--limit=2"]
    if words[0] == "generate":
        return [*words, "--max_new_tokens=4", "--limit=2", "--device=cpu"]
    if words[0] == "plan":
        return [*words, f"--model.lm.path={HUB_MODEL.findall(' '.join(blocks('sh')))[0]}"]
    more: dict[str, Any] = {"trainer.enable_progress_bar": "false", "trainer.accelerator": "cpu"}
    if any("configs/strategy" in word for word in words):  # tests/e2e/test_cluster.py starts several
        more |= {"trainer.strategy": "auto", "trainer.devices": 1, "trainer.precision": "32-true"}
    if any("quickstart.yaml" in word for word in words):
        model = HUB_MODEL.findall("\n".join(blocks("sh")))[0]
        more |= {"model.lm.path": model, "data.limit_train": 16, "data.limit_validation": 8, "trainer.max_epochs": 1}
    elif words[0] == "fit" and "--ckpt_path" not in words and not any("model.lm.path" in word for word in words):
        first = next(w for w in COMMAND_LINES if w[2] == "fit" and any("model.lm.path" in word for word in w))
        more |= options_of(first)
    return [*words, *(f"--{key}={value}" for key, value in more.items())]


def options_of(words: list[str]) -> dict[str, str]:
    """The model and the data that a command names."""
    pairs = zip(words, [*words[1:], ""], strict=True)
    return {name[2:]: value for name, value in pairs if name.startswith(("--model.lm", "--data"))}


def test_its_code_runs(folder: Path) -> None:
    """The library's example, with a model and hidden states to begin with."""
    example = next(block for block in blocks("python") if "ChunkedEngine" in block)
    model = AutoModelForCausalLM.from_pretrained(HUB_MODEL.findall("\n".join(blocks("sh")))[0])
    hidden_states = torch.randn(6, model.config.hidden_size, requires_grad=True)
    names: dict[str, Any] = {"model": model, "hidden_states": hidden_states, "labels": torch.arange(6)}
    exec(compile(example, str(README), "exec"), names)
    assert hidden_states.grad is not None
    assert names["output"].tokens["support_size"].shape == (6,)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quickstart(tmp_path: Path) -> None:
    """As the README has it, from its own words; a base model that is cached already saves the minute of its making."""
    line = next(words for words in COMMAND_LINES if words[2] == "quickstart")
    cache = tmp_path / "cache"
    ready = Path(os.environ.get("TS2_CACHE_DIR") or Path.home() / ".cache" / "ts2_lightning")
    if ready.is_dir():
        shutil.copytree(ready, cache, ignore=shutil.ignore_patterns("*.lock", ".*"))
    environment = {**os.environ, "TS2_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *line[2:]], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    table = (tmp_path / "runs/quickstart/table.txt").read_text(encoding="utf-8")
    assert table.strip() in done.stdout
    for label in ("base", "CE", "CE, half rate", "TS2", "TS2, half rate"):
        assert re.search(rf"^\W*{label}\b.*\d", table, re.M), label
    picture = tmp_path / "runs/quickstart/next_token.png"
    assert "next_token.png" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000
    for name in ("quickstart-ce", "quickstart-ce-half-rate", "quickstart-ts2", "quickstart-ts2-half-rate"):
        assert (tmp_path / "runs" / name / "1" / "export" / "model.safetensors").is_file()
