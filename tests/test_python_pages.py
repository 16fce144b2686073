"""What docs/python.md and docs/integrations.md show runs as it stands there, on a small model."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.integrations.trainings import dataset
from tests.support.ranks import ROOT
from ts2_lightning.callbacks import default_callbacks

NAME = re.compile(r'MODEL = "([\w./-]+)"')


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def blocks(name: str) -> list[str]:
    return [str(block) for block in re.findall(r"^```python\n(.*?)^```", page(name), re.S | re.M)]


def execute(name: str, block: str, names: dict[str, Any]) -> None:
    exec(compile(block, name, "exec"), names)


@pytest.fixture(scope="module")
def folder(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with the rows and the model that the pages name."""
    directory = tmp_path_factory.mktemp("notebook")
    model = directory / NAME.findall(page("python.md"))[0]
    model.parent.mkdir(parents=True)
    model.symlink_to(world / "tied")
    (directory / "rows.jsonl").symlink_to(world / "train.jsonl")
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TS2_CACHE_DIR", str(directory / "cache"))
        os.chdir(directory)
        yield directory
        os.chdir(before)


@pytest.fixture(scope="module")
def notebook(folder: Path) -> dict[str, Any]:
    """The names of docs/python.md once its cells have run, but for the sweep and the script."""
    names: dict[str, Any] = {}
    for block in blocks("python.md"):
        if "optuna" not in block and "__main__" not in block:
            execute("docs/python.md", block, names)
    return names


def test_a_notebook(notebook: dict[str, Any], folder: Path) -> None:
    assert notebook["data"].tokenizer_path == NAME.findall(page("python.md"))[0]
    assert notebook["trainer"].accumulate_grad_batches == 4
    assert notebook["stopping"].best_score > 0
    assert (folder / "run/export/model.safetensors").is_file()
    assert (folder / "run/checkpoints/last.ckpt").exists()
    assert (folder / "run/state.json").is_file()


def test_the_table_has_the_default_callbacks() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", page("python.md"), re.M)
    assert listed == [type(callback).__name__ for callback in default_callbacks("run")]


def test_a_sweep(notebook: dict[str, Any]) -> None:
    pytest.importorskip("optuna", reason="needs optuna, which is no dependency")
    (sweep,) = (block for block in blocks("python.md") if "optuna" in block)
    execute("docs/python.md", sweep, notebook)
    assert notebook["study"].best_params.keys() == {"lr", "alpha"}
    assert all(trial.value > 0 for trial in notebook["study"].trials)


@pytest.mark.slow
def test_two_ranks(notebook: dict[str, Any], folder: Path) -> None:
    (script,) = (block for block in blocks("python.md") if "__main__" in block)
    file = Path(re.findall(r"^# (\w+\.py)\n", script)[0])
    file.write_text(script, encoding="utf-8")
    values = []
    for source in (script, script.replace('devices=2, strategy="ddp"', "devices=1")):
        file.write_text(source, encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, file.name], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        values.append(float(done.stdout.strip().splitlines()[-1]))
    assert values[0] == pytest.approx(values[1], rel=1e-5)


INTEGRATIONS = blocks("integrations.md")


@pytest.mark.parametrize("number", range(len(INTEGRATIONS)))
def test_other_trainers(number: int, folder: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = INTEGRATIONS[number]
    if "trl" in block:
        pytest.importorskip("trl", reason="needs the extra `trl`")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
        block = block.replace("report_to=[]", "report_to=[], use_cpu=True")  # as the page says
    rows, tokenizer = dataset(world, range(4)), AutoTokenizer.from_pretrained(world / "tied")
    names: dict[str, Any] = {"model": AutoModelForCausalLM.from_pretrained(world / "tied"), "rows": rows}
    names |= {"tokenizer": tokenizer, "dataset": Dataset.from_list(rows)}
    names |= {key: torch.tensor([rows[0][key]]) for key in ("input_ids", "labels")}
    before = {name: p.detach().clone() for name, p in names["model"].named_parameters()}
    execute("docs/integrations.md", block, names)
    if "trainer" not in names:
        assert names["model"].lm_head.weight.grad.any()
        return
    assert any(not before[name].equal(p) for name, p in names["model"].named_parameters())
