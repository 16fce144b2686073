"""The moving average of a training's weights, against one in float64 of the checkpoints of all steps."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from tests.e2e.command_line import CONFIGS, QUICKSTART, CommandLine, column, make_blank, play
from ts2_lightning.checkpoint_files.reading import read_checkpoint

DECAY = 0.8
DATA = ("--data.limit_train=45", "--data.limit_validation=9", "--data.micro_batch_size=3", "--trainer.max_epochs=1")
CONSTANT = ("--model.schedule.name=constant", "--model.schedule.warmup_steps=0", "--model.optimizer.lr=1e-3")
EVERY_STEP = (
    "--trainer.callbacks+=Checkpoints",
    "--trainer.callbacks.every_n_steps=1",
    "--trainer.callbacks.keep_last=9",
)
AVERAGE = ("--trainer.callbacks+=EMA", f"--trainer.callbacks.decay={DECAY}")
PREFIX = "network.language_model."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy world's model with random weights, tied, as the harder case."""
    directory = make_blank(tmp_path_factory.mktemp("base"))
    config = AutoConfig.from_pretrained(directory)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


def options(base: Path, *more: str) -> tuple[str, ...]:
    model = ("--model.lm.path", str(base), "--trainer.enable_progress_bar=false", "--name=run")
    return ("fit", "-c", str(QUICKSTART), *model, *DATA, *CONSTANT, *EVERY_STEP, *more)


def read(stored: Any) -> dict[str, Tensor]:
    return {name.removeprefix(PREFIX): weight.read().clone() for name, weight in stored.items()}


def checkpoint(step: int, run: str = "runs/run/1") -> Any:
    return read_checkpoint(Path(run, "checkpoints", f"step-{step:06d}.ckpt"))


def check_average(base: Path, steps: int, every: int = 1, start: int = 0) -> None:
    """After each step, by hand."""
    average = {
        name: tensor.double() for name, tensor in AutoModelForCausalLM.from_pretrained(base).state_dict().items()
    }
    for step in range(1, steps + 1):
        stored = checkpoint(step)
        for name, tensor in read(stored.weights).items():
            if step <= start:
                average[name] = tensor.double()
            elif step % every == 0:
                average[name] = DECAY * average[name] + (1 - DECAY) * tensor.double()
        found = read(stored.ema)
        assert found.keys() == average.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor.double(), average[name], rtol=1e-5, atol=1e-7, msg=f"{step} {name}")


def test_average_of_the_steps_its_export_and_its_resumption(ts2: CommandLine, base: Path) -> None:
    ts2(*options(base, *AVERAGE)).done()
    check_average(base, 6)
    ts2("export", "--ckpt", "last", "--name", "run", "--out", "ema", "--ema").done()
    exported = AutoModelForCausalLM.from_pretrained("ema").state_dict()
    for name, tensor in read(checkpoint(6).ema).items():
        assert torch.equal(exported[name], tensor), name
    ts2("export", "--ckpt", "last", "--name", "run", "--out", "plain").done()
    plain = AutoModelForCausalLM.from_pretrained("plain").state_dict()
    assert all(torch.equal(plain[name], tensor) for name, tensor in read(checkpoint(6).weights).items())
    assert not torch.equal(plain["lm_head.weight"], exported["lm_head.weight"])

    ts2(*options(base, *AVERAGE, "--trainer.max_steps=3", "--name=broken")).done()
    ts2(*options(base, *AVERAGE, "--name=broken", "--ckpt_path=last")).done()
    unbroken, resumed = checkpoint(6), checkpoint(6, "runs/broken/1")
    assert resumed.ema.keys() == unbroken.ema.keys()
    for name, tensor in read(unbroken.ema).items():
        assert torch.equal(read(resumed.ema)[name], tensor), name


def test_average_of_every_second_step_from_a_late_one(ts2: CommandLine, base: Path) -> None:
    more = ("--trainer.callbacks.every_n_steps=2", "--trainer.callbacks.start_step=3")
    ts2(*options(base, *AVERAGE, *more)).done()
    check_average(base, 6, every=2, start=3)


def test_checkpoints_that_are_written_while_training_goes_on(ts2: CommandLine, base: Path) -> None:
    ts2(*options(base, "--trainer.callbacks.asynchronous=true", *AVERAGE)).done()
    check_average(base, 6)


def test_a_checkpoint_without_an_average(ts2: CommandLine, base: Path) -> None:
    ts2(*options(base, "--trainer.max_steps=3")).done()
    answer = ts2("export", "--ckpt", "last", "--name", "run", "--out", "ema", "--ema")
    assert "step-000003.ckpt has no moving averages of the weights" in answer.complaint.replace("last", "step-000003")
    with pytest.warns(UserWarning, match="EMA: the checkpoint of step 3 has no average: it begins with the weights"):
        ts2(*options(base, *AVERAGE, "--ckpt_path=last")).done()
    weights = read(checkpoint(3).weights)["model.norm.weight"].double()
    for step in (4, 5, 6):
        weights = DECAY * weights + (1 - DECAY) * read(checkpoint(step).weights)["model.norm.weight"].double()
    torch.testing.assert_close(read(checkpoint(6).ema)["model.norm.weight"].double(), weights, rtol=1e-6, atol=0)


def test_an_adapter_has_an_average_of_its_factors_alone(ts2: CommandLine, base: Path) -> None:
    pytest.importorskip("peft")
    ts2(*options(base, *AVERAGE, "-c", str(CONFIGS / "model/adapter/lora.yaml"))).done()
    assert all(".lora_" in name for name in checkpoint(6).ema)
    ts2("export", "--ckpt", "last", "--name", "run", "--out", "ema", "--ema", "--toward-base", "0.5").done()


def test_validation_of_the_average(ts2: CommandLine, base: Path) -> None:
    """What is logged is the average's; the weights train on as they would have."""
    often = ("--trainer.val_check_interval=3",)
    ts2(*options(base, *AVERAGE, *often)).done()
    ts2(*options(base, *AVERAGE, *often, "--trainer.callbacks.validate=true", "--name=average")).done()
    plain, averaged = (column(f"runs/{name}/1", "val/cross_entropy") for name in ("run", "average"))
    assert plain.keys() == averaged.keys()
    for name, tensor in read(checkpoint(6).weights).items():
        assert torch.equal(read(checkpoint(6, "runs/average/1").weights)[name], tensor), name
    ts2("export", "--ckpt", "last", "--name", "run", "--out", "ema", "--ema").done()
    ts2(
        "validate", "-c", str(QUICKSTART), "--model.lm.path=ema", *DATA[:3], "--trainer.enable_progress_bar=false"
    ).done()
    [file] = Path("runs").glob("quickstart/**/metrics.json")
    assert averaged[6] == pytest.approx(json.loads(file.read_text())["val/cross_entropy"], rel=1e-5)
    assert averaged[6] != pytest.approx(plain[6], rel=1e-4)


@pytest.mark.parametrize(
    "validate", [pytest.param("false", marks=pytest.mark.long), pytest.param("true", marks=pytest.mark.slow)]
)
def test_sharded(ts2: CommandLine, base: Path, validate: str) -> None:
    """FSDP2 on two ranks, stopped and resumed, with validations of the average in between."""
    more = ("-c", str(CONFIGS / "strategy/rehearsal/fsdp2.yaml"), f"--trainer.callbacks.validate={validate}")
    own = (*AVERAGE, *more[2:], "--trainer.val_check_interval=2", *more[:2])
    extras = ("--trainer.max_steps=3", "--ckpt_path=last")
    starts = [{"argv": options(base, *own, "--trainer.devices=2", extra), "ranks": 2} for extra in extras]
    assert play(starts, timeout=500) == [[0, 0], [0, 0]], Path("printed.txt").read_text()[-3000:]
    assert checkpoint(6).weights.keys() == checkpoint(6).ema.keys()
    check_average(base, 6)
    ts2("export", "--ckpt", "last", "--name", "run", "--out", "ema", "--ema").done()
    exported = AutoModelForCausalLM.from_pretrained("ema").state_dict()
    assert all(torch.equal(exported[name], tensor) for name, tensor in read(checkpoint(6).ema).items())


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_deepspeed_is_refused(ts2: CommandLine, base: Path, strategy: str) -> None:
    pytest.importorskip("deepspeed")
    answer = ts2(
        *options(base, *AVERAGE, "-c", str(CONFIGS / f"strategy/rehearsal/{strategy}.yaml")), "--trainer.devices=1"
    )
    assert (
        "EMA: DeepSpeed keeps the float32 weights, or their names, inside its optimizer; take ddp" in answer.complaint
    )
