"""`export`: from a run directory to a model directory, and what it says where that cannot be."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from tests.callbacks.tiny_llama import END, EOS, TRAINED_TEMPLATE, write_base
from tests.cli.conftest import Run
from tests.export.stand_ins import load, logits, save_checkpoint, shake, stored
from ts2_lightning.modules import AdapterConfig, LanguageModelConfig
from ts2_lightning.modules.language_model import load_language_model


@pytest.fixture
def run(here: Path) -> Path:
    """A run as `fit` leaves it: a tiny model, trained a little, with a template from a file that was edited since."""
    base = write_base(here / "base")
    (here / "chat.jinja").write_text("{{ messages }}")
    model = load(base)
    shake(model)
    return write_run(here / "runs" / "chat" / "1", model, {"path": "base"})


def write_run(run: Path, model: Any, lm: dict[str, Any], **data: Any) -> Path:
    (run / "checkpoints").mkdir(parents=True)
    save_checkpoint(model, run / "checkpoints" / "last.ckpt")
    config = {"model": {"lm": lm}, "data": {"tokenizer": None}, "ckpt_path": None}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    about = {"tokenizer": "base", "chat_template": TRAINED_TEMPLATE, "end_of_turn_ids": [END], **data}
    (run / "data.json").write_text(json.dumps(about))
    return run


def test_everything_comes_from_the_run(run: Path, ts2: Run) -> None:
    answer = ts2("export", "--ckpt", "last", "--name", "chat", "--out", "out")
    assert (answer.status, answer.err.count("error")) == (0, 0)
    assert answer.out == "Exported runs/chat/1/checkpoints/last.ckpt to out\n"
    expected = load(Path("base"))
    shake(expected)
    assert torch.equal(logits(load(Path("out"))), logits(expected))
    assert AutoTokenizer.from_pretrained("out").chat_template == TRAINED_TEMPLATE
    assert json.loads(Path("out/generation_config.json").read_text())["eos_token_id"] == [EOS, END]
    assert Path("out/tokenizer.json").read_bytes() == Path("base/tokenizer.json").read_bytes()


def test_options(run: Path, ts2: Run) -> None:
    checkpoint = str(run.relative_to(Path.cwd()) / "checkpoints" / "last.ckpt")
    ts2("export", "--ckpt", checkpoint, "--out", "a/b", "--dtype", "bfloat16").done()
    assert {tensor.dtype for tensor in stored(Path("a/b")).values()} == {torch.bfloat16}
    ts2("export", "--ckpt", checkpoint, "--out", "a/b").done()
    assert {tensor.dtype for tensor in stored(Path("a/b")).values()} == {torch.float32}
    assert os.listdir("a") == ["b"]


def test_adapter(here: Path, run: Path, ts2: Run) -> None:
    adapter: dict[str, Any] = {"r": 4, "alpha": 8, "target_modules": ["q_proj", "up_proj"], "head": True}
    model = load_language_model(LanguageModelConfig("base", adapter=AdapterConfig(**adapter)))
    shake(model)
    write_run(here / "runs" / "lora" / "1", model, {"path": "base", "adapter": adapter})
    ts2("export", "--ckpt", "last", "--name", "lora", "--out", "merged").done()
    torch.testing.assert_close(logits(load(Path("merged"))), logits(model), rtol=1e-5, atol=1e-5)
    ts2("export", "--ckpt", "last", "--name", "lora", "--out", "apart", "--adapter", "separate").done()
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(os.listdir("apart"))
    answer = ts2("export", "--ckpt", "last", "--name", "chat", "--out", "other", "--adapter", "separate")
    assert "separate needs a run with an adapter" in answer.complaint


def test_between_base_and_tuned_model(run: Path, ts2: Run) -> None:
    last = ["export", "--ckpt", "last", "--name", "chat", "--out", "out"]
    assert ts2(*last, "--toward-base", "0.7").done().out == (
        "Exported runs/chat/1/checkpoints/last.ckpt, 0.7 of the way from the base model base to it, to out\n"
    )
    tuned, then, between = load(Path("base")), stored(Path("base")), stored(Path("out"))
    shake(tuned)
    for name, tensor in tuned.state_dict().items():
        torch.testing.assert_close(between[name], 0.3 * then[name] + 0.7 * tensor, rtol=1e-5, atol=1e-7)
    assert json.loads(Path("out/export.json").read_text())["toward_base"] == 0.7
    shutil.move("base/model.safetensors", "elsewhere")
    assert "the base model 'base', without which there is nothing between" in ts2(*last, "--toward-base", "0").complaint


def test_mean_of_checkpoints(run: Path, ts2: Run) -> None:
    model = load(Path("base"))
    shake(model, seed=5)
    kept = run / "checkpoints"
    (kept / "last.ckpt").rename(kept / "step-000002.ckpt")
    save_checkpoint(model, kept / "step-000004.ckpt")
    (kept / "last.ckpt").symlink_to("step-000004.ckpt")
    last = ["export", "--ckpt", "last", "--name", "chat", "--out", "out"]
    names = ", ".join(f"runs/chat/1/checkpoints/{name}" for name in ("last.ckpt", "step-000002.ckpt"))
    assert ts2(*last, "--average", "2").done().out == f"Exported the mean of {names} to out\n"
    other = load(Path("base"))
    shake(other)
    for name, tensor in stored(Path("out")).items():
        expected = (model.state_dict()[name] + other.state_dict()[name]) / 2
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-7)
    assert "--average 3: runs/chat/1 has kept 2 of them up to last.ckpt" in ts2(*last, "--average", "3").refusal
    first = ["export", "--ckpt", str(kept / "step-000002.ckpt"), "--out", "out"]
    assert "has kept 1 of them up to step-000002.ckpt" in ts2(*first, "--average", "2").refusal
    whole = bytearray((kept / "step-000002.ckpt").read_bytes())
    whole[len(whole) // 2] ^= 1
    (kept / "step-000002.ckpt").write_bytes(whole)
    os.utime(kept / "step-000002.ckpt", (0, 0))
    assert "step-000002.ckpt is damaged" in ts2(*last, "--average", "2").refusal


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ckpt", "last", "--name", "chat", "--toward-base", "1.5"], "--toward-base must be a finite number of at"),
        (["--ckpt", "last", "--name", "chat", "--toward-base", "nan"], "--toward-base must be a finite number of at"),
        (["--ckpt", "last", "--name", "chat", "--average", "0"], "--average must be a whole number of at least 1"),
        (["--ckpt", "last"], "no run in runs/run"),
        (["--ckpt", "last", "--name", "chet"], "did you mean --name chat?"),
        (["--ckpt", "best", "--name", "chat"], "--ckpt best: runs/chat/1 has checkpoints"),
        (["--ckpt", "runs/chat/1/checkpoints/lst.ckpt"], "did you mean runs/chat/1/checkpoints/last.ckpt?"),
        (["--ckpt", "base"], "this is a model directory, not a checkpoint"),
        (["--ckpt", "elsewhere.ckpt"], "it lies in no run"),
        (["--ckpt", "cut.ckpt"], "not a complete checkpoint"),
        (
            ["--ckpt", "last", "--name", "chat", "--dtype", "fp8"],
            "--dtype: expected one of float32, bfloat16,",
        ),
        (["--ckpt", "last", "--name", "chat", "--out", "base"], "base is the model's own source"),
        (["--ckpt", "last", "--name", "chat", "--out", "runs"], "holds something that is not an export (chat)"),
        (["--ckpt", "last", "--name", "chat", "--out", "chat.jinja"], "chat.jinja is a file"),
        (["--ckpt", "last", "--name", "chat", "--out", "chat.jinja/out"], "export to "),
    ],
)
def test_one_line_says_what_is_wrong(run: Path, ts2: Run, options: list[str], said: str) -> None:
    whole = (run / "checkpoints" / "last.ckpt").read_bytes()
    Path("elsewhere.ckpt").write_bytes(whole)
    Path("cut.ckpt").write_bytes(whole[:-100])
    before = sorted(os.listdir())
    answer = ts2("export", *(options if "--out" in options else [*options, "--out", "out"]))
    assert said in answer.refusal
    assert "--ckpt_path" not in answer.err
    assert sorted(os.listdir()) == before


def test_records_of_the_run(run: Path, ts2: Run) -> None:
    last = ["export", "--ckpt", "last", "--name", "chat", "--out", "out"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["lm"]["adapter"] = {"rank": 4}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert "config.yaml: model.lm: " in ts2(*last).refusal
    for content in ("{}", "[1", "\tx: [}"):
        (run / "config.yaml").write_text(content)
        assert "runs/chat/1" in ts2(*last).refusal
    (run / "data.json").unlink()
    assert "runs/chat/1: no data.json" in ts2(*last).refusal


def test_missing_base(run: Path, ts2: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shutil.rmtree("base")
    assert ts2("export", "--ckpt", "last", "--name", "chat", "--out", "out").refusal


def test_interrupt_leaves_nothing(run: Path, ts2: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    ts2("export", "--ckpt", "last", "--name", "chat", "--out", "out").done()
    first = Path("out/model.safetensors").read_bytes()
    before = sorted(os.listdir())
    monkeypatch.setattr("ts2_lightning.export.shards.TensorFile.add", interrupted)
    answer = ts2("export", "--ckpt", "last", "--name", "chat", "--out", "out", "--dtype", "bfloat16")
    assert answer.status == 130
    assert sorted(os.listdir()) == before
    assert Path("out/model.safetensors").read_bytes() == first


def test_help(ts2: Run) -> None:
    assert "vLLM itself was never run" in ts2("export", "--help").done().out


def test_damage_is_noticed_before_it_leaves(run: Path, ts2: Run) -> None:
    """The older checkpoint takes the place of a damaged one, and a line says so."""
    folder = run / "checkpoints"
    (folder / "last.ckpt").rename(folder / "step-000003.ckpt")
    shutil.copy(folder / "step-000003.ckpt", folder / "step-000004.ckpt")
    newest = folder / "step-000004.ckpt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    answer = ts2("export", "--ckpt", "last", "--name", "chat", "--out", "out").done()
    assert answer.out == "Exported runs/chat/1/checkpoints/step-000003.ckpt to out\n"
    assert (
        "runs/chat/1/checkpoints/step-000004.ckpt is damaged: step-000004.ckpt is not as it was written" in answer.err
    )
    answer = ts2("export", "--ckpt", "runs/chat/1/checkpoints/step-000004.ckpt", "--out", "other")
    assert answer.complaint.endswith("or name another checkpoint of the run with --ckpt")
    assert not Path("other").exists()


@pytest.mark.parametrize("adapter", [None, {"r": 4, "alpha": 8}])
def test_weights_that_are_not_finite_do_not_leave(
    here: Path, run: Path, ts2: Run, adapter: dict[str, Any] | None
) -> None:
    lm = LanguageModelConfig("base", adapter=None if adapter is None else AdapterConfig(**adapter))
    model = load_language_model(lm)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).view(-1)[3] = torch.nan
    write_run(here / "runs" / "bad" / "1", model, {"path": "base", "adapter": adapter})
    ways = ["merged", "separate"] if adapter else ["merged"]
    for way in ways:
        answer = ts2("export", "--ckpt", "last", "--name", "bad", "--out", "out", "--adapter", way)
        assert "cannot export NaN or infinite weights: " in answer.complaint
        assert not Path("out").exists()
    if adapter is None:
        with torch.no_grad():
            next(model.parameters()).view(-1)[3] = 1e5
        write_run(here / "runs" / "large" / "1", model, {"path": "base"})
        answer = ts2("export", "--ckpt", "last", "--name", "large", "--out", "out", "--dtype", "float16")
        assert "cannot export in torch.float16, into which weights do not fit: " in answer.complaint
