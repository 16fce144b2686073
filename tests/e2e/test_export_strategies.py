"""Every strategy's own checkpoint, from two processes, exported and loaded by plain transformers."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.e2e.command_line import CONFIGS, QUICKSTART, ROOT, CommandLine, make_blank, play

IDS = torch.arange(2, 30)[None]
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


def by_torch(checkpoint: Path, scratch: Path) -> dict[str, Tensor]:
    """Torch's own tool, which reads everything at once."""
    dcp_to_torch_save(checkpoint, scratch / "whole.pt")
    return torch.load(scratch / "whole.pt", weights_only=False)["state_dict"]


def by_deepspeed(checkpoint: Path, scratch: Path) -> dict[str, Tensor]:
    """DeepSpeed's own tool, which reads everything at once."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    return get_fp32_state_dict_from_zero_checkpoint(str(checkpoint))


def options(base: Path, *files: str) -> list[str]:
    few = {"model.lm.path": base, "trainer.max_steps": 3, "trainer.limit_val_batches": 1, "name": "run"}
    fragments = [word for file in files for word in ("-c", str(CONFIGS / file))]
    settings = [
        *fragments,
        "--trainer.enable_progress_bar=false",
        *(f"--{name}={value}" for name, value in few.items()),
    ]
    return ["fit", "-c", str(QUICKSTART), *settings]


def fit(base: Path, *files: str) -> Path:
    """The directory of a run of two processes."""
    start = {"argv": [*options(base, *files), "--trainer.devices=2"], "ranks": 2}
    assert play([start], timeout=500) == [[0, 0]], Path("printed.txt").read_text()[-3000:]
    return Path("runs/run/1")


def fit_from_a_shell(base: Path, *files: str) -> Path:
    """The same of `python cli.py fit ...`, which starts the second process."""
    line = [sys.executable, str(ROOT / "cli.py"), *options(base, *files)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return Path("runs/run/1")


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(input_ids=IDS).logits
    return result


@pytest.mark.parametrize(
    ("strategy", "whole"),
    [
        pytest.param("fsdp2", by_torch, marks=pytest.mark.slow),
        pytest.param("zero3", by_deepspeed, marks=pytest.mark.slow),
        pytest.param("zero2", by_deepspeed, marks=pytest.mark.long),
        pytest.param("zero1", by_deepspeed, marks=pytest.mark.long),
    ],
)
def test_logits_are_the_trained_models(
    tmp_path: Path, ts2: CommandLine, base: Path, strategy: str, whole: Callable[[Path, Path], dict[str, Tensor]]
) -> None:
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")
    run = fit(base, f"strategy/rehearsal/{strategy}.yaml")
    checkpoint = (run / "checkpoints" / "last.ckpt").resolve()
    assert checkpoint.is_dir()
    ts2("export", "--ckpt", "last", "--name", "run", "--out", "exported").done()

    trained = AutoModelForCausalLM.from_pretrained(base)
    before = logits(trained)
    weights = {n.removeprefix(PREFIX): w for n, w in whole(checkpoint, tmp_path).items() if n.startswith(PREFIX)}
    absent, unknown = trained.load_state_dict(weights, strict=False)
    assert set(absent) <= {"lm_head.weight"}
    assert not unknown
    after = logits(trained)
    assert not torch.allclose(before, after)
    for out in (Path("exported"), run / "export"):  # the command's, and that of the end of the fit
        model = AutoModelForCausalLM.from_pretrained(out)
        assert model.dtype == torch.float32
        assert torch.equal(logits(model), after)
    assert Path("exported/config.json").read_text() == (run / "export" / "config.json").read_text()
    ts2("export", "--ckpt", "last", "--name", "run", "--out", "between", "--toward-base", "0.7").done()
    start = AutoModelForCausalLM.from_pretrained(base).state_dict()
    for name, weight in AutoModelForCausalLM.from_pretrained("between").state_dict().items():
        expected = 0.3 * start[name].double() + 0.7 * trained.state_dict()[name].double()
        torch.testing.assert_close(weight.double(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_adapter_of_a_sharded_fit(ts2: CommandLine, base: Path) -> None:
    """The base model is not in the checkpoint: it is read from its own files."""
    peft = pytest.importorskip("peft")
    run = fit_from_a_shell(base, "model/adapter/lora.yaml", "strategy/rehearsal/fsdp2.yaml")
    ts2("export", "--ckpt", "last", "--name", "run", "--out", "merged").done()
    ts2("export", "--ckpt", "last", "--name", "run", "--out", "apart", "--adapter", "separate").done()
    plain = AutoModelForCausalLM.from_pretrained(base)
    before = logits(plain)
    expected = logits(peft.PeftModel.from_pretrained(plain, "apart"))
    assert (expected - before).abs().max() > 1e-4
    for out in (Path("merged"), run / "export"):
        merged = logits(AutoModelForCausalLM.from_pretrained(out))
        torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)
