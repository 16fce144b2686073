"""Models with a short context and a small vocabulary, from the command line to the export."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config

from tests.e2e.command_line import CommandLine, json_lines, make_blank
from ts2_lightning.toyworld import build_tokenizer

WORDS = len(build_tokenizer())
POSITIONS = 14  # of the toy world's rows some are longer
ROWS = ("--data.train=toyworld:train", "--data.validation=toyworld:validation", "--data.limit_train=60",
        "--data.limit_validation=20", "--data.batch_size=12", "--data.micro_batch_size=6")  # fmt: skip
STEPS = ("--trainer.max_steps=2", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu",
         "--model.lm.init=random")  # fmt: skip


def write_gpt2(directory: str, vocabulary: int = WORDS, positions: int = POSITIONS) -> str:
    """A model without weights, whose positions are learned, with the toy world's tokenizer."""
    make_blank(Path(directory))
    GPT2Config(
        n_positions=positions, vocab_size=vocabulary, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1
    ).save_pretrained(directory)
    return directory


def fit(ts2: CommandLine, model: str, *options: str) -> Any:
    return ts2("fit", "--name=run", f"--model.lm.path={model}", *STEPS, *ROWS, *options)


@pytest.fixture
def gpt2(ts2: CommandLine) -> str:
    return write_gpt2("gpt2")


@pytest.mark.parametrize(
    "more", [(), ("--data.packing=packed",), ("--data.streaming=true", "--data.limit_train=null")], ids=str
)
def test_rows_are_no_longer_than_the_model_takes(ts2: CommandLine, gpt2: str, more: tuple[str, ...]) -> None:
    prompts = "[name a fruit, think of a single digit number]"
    samples = ("--trainer.callbacks+=SampleGenerations", f"--trainer.callbacks.prompts={prompts}")
    fit(ts2, gpt2, *more, *samples, "--trainer.callbacks.max_new_tokens=500").done()
    run = Path("runs/run/1")
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["max_length"] is None
    recorded = json.loads((run / "data.json").read_text())
    assert recorded["max_length"] == POSITIONS
    assert recorded["splits"]["validation"]["longest"] == POSITIONS
    assert recorded["splits"]["validation"]["truncated"] > 0
    assert len(json_lines(run / "samples.jsonl")) == 4


def test_what_a_run_had_is_measured(ts2: CommandLine, gpt2: str) -> None:
    """By `measure`, which knows the number from the run, and by the probes, which know it from the model."""
    fit(ts2, gpt2).done()
    ts2("measure", "runs/run/1", "--spec", "{validation: {}, probes: {max_new_tokens: 300, limit: 3}}").done()
    answer = ts2("measure", "runs/run/1", "--spec", "{validation: {max_length: 300}}")
    assert answer.status == 2
    assert f"validation.max_length is 300, more than the context of gpt2, {POSITIONS} tokens" in answer.err
    few = ("--model", "a=runs/run/1", "--limit", "4", "--max_new_tokens", "300")
    ts2("probe", "all", *few, "--out", "out").done()
    answer = ts2("probe", "tail", *few, "--out", "out", "--max_length", "300")
    assert answer.status == 2
    assert answer.err.startswith(f"error: --max_length is 300, more than the context of gpt2, {POSITIONS} tokens")


def test_more_than_the_model_takes(ts2: CommandLine, gpt2: str) -> None:
    answer = fit(ts2, gpt2, f"--data.max_length={POSITIONS + 1}")
    assert answer.status == 2
    assert answer.err.splitlines()[-1].startswith(f"error: data.max_length is {POSITIONS + 1}, more than the context")
    assert not Path("runs/run").exists()


def test_a_run_that_recorded_a_number_goes_on(ts2: CommandLine, gpt2: str) -> None:
    """Under a configuration that leaves it to the model; the other way round too."""
    fit(ts2, gpt2, f"--data.max_length={POSITIONS}").done()
    for length, steps in (("null", 3), (POSITIONS, 4)):
        answer = fit(
            ts2, gpt2, f"--data.max_length={length}", f"--trainer.max_steps={steps}", "--ckpt_path=last"
        ).done()
        assert "runs/run/1 goes on: data.max_length " in answer.err
    assert not Path("runs/run/2").exists()
    answer = fit(ts2, gpt2, "--data.max_length=13", "--trainer.max_steps=5", "--ckpt_path=last")
    assert answer.status == 2
    assert "cannot resume: the checkpoint's training data has lengths of rows" in answer.err


def test_a_run_from_before_the_check(ts2: CommandLine) -> None:
    """It recorded 2048, the default, though the model has fewer positions; its rows are shorter than those."""
    fit(ts2, write_gpt2("gpt2", positions=64)).done()
    run = Path("runs/run/1")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["max_length"] = 2048
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    recorded = json.loads((run / "data.json").read_text())
    del recorded["max_length"]
    (run / "data.json").write_text(json.dumps(recorded))
    last = str(run / "checkpoints/last.ckpt")
    for command, *more in (("fit", "--trainer.max_steps=3"), ("validate",)):
        ts2(command, *more, f"--ckpt_path={last}").done()
    ts2("measure", str(run), "--spec", "{validation: {}}").done()
    assert ts2("measure", str(run), "--spec", "{validation: {max_length: 65}}").status == 2


def test_new_tokens_from_the_settings_to_the_export(ts2: CommandLine) -> None:
    """A tokenizer with more tokens than the model: refused with a row's place, trained with new rows, gone on with."""
    model = write_gpt2("gpt2", vocabulary=WORDS - 100)
    answer = fit(ts2, model)
    assert answer.status == 2
    line = answer.err.splitlines()[-1]
    assert f"has no row in the embedding of gpt2, which has {WORDS - 100}; take the model's own tokenizer" in line
    fit(ts2, model, "--model.lm.resize_embeddings=true").done()
    fit(ts2, model, "--model.lm.resize_embeddings=true", "--trainer.max_steps=4", "--ckpt_path=last").done()
    run = Path("runs/run/1")
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["lm"]["resize_embeddings"] is True
    ts2("export", "--name", "run", "--ckpt", "last", "--out", "out").done()
    for place in (run / "export", Path("out")):
        exported = AutoModelForCausalLM.from_pretrained(place)
        assert exported.config.vocab_size == exported.get_input_embeddings().weight.shape[0] == WORDS
    mine, theirs = (load_file(place / "model.safetensors") for place in (run / "export", Path("out")))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    ts2("validate", "-c", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints/last.ckpt")).done()
    said = json.loads(next(run.glob("validate/*/metrics.json")).read_text())["val/cross_entropy"]
    ts2("measure", str(run), "--spec", "{validation: {}}").done()
    [measured] = [json.loads(file.read_text()) for file in run.glob("measures/*.json")]
    assert measured["values"]["validation/cross_entropy"] == pytest.approx(said, rel=1e-5)
    answer = fit(ts2, model, f"--model.lm.resize_embeddings={WORDS + 9}", "--trainer.max_steps=5", "--ckpt_path=last")
    assert answer.status == 2, "another network"
