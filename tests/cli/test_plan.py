"""`plan`: what it prints of a configuration, and what it says to a wrong one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from ts2_lightning.cli import main

ROOT = Path(__file__).resolve().parents[2]
Plan = Callable[..., tuple[int, str, str]]
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "intermediate_size": 90, "vocab_size": 301},
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
           "head_dim": 64, "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
           "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False},
    "70b": {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
            "intermediate_size": 28672, "vocab_size": 128256, "tie_word_embeddings": False},
}  # fmt: skip


@pytest.fixture
def plan(here: Path, capfd: pytest.CaptureFixture[str]) -> Plan:
    """Runs `plan` in an empty directory with models that are a config.json; status, output, errors."""

    def run(*options: str) -> tuple[int, str, str]:
        for name, shape in SHAPES.items():
            LlamaConfig(**shape, architectures=["LlamaForCausalLM"]).save_pretrained(name)
        capfd.readouterr()
        status = main(["plan", *options])
        return status, *capfd.readouterr()

    return run


def found(plan: Plan, *options: str) -> dict[str, Any]:
    status, out, err = plan("--json", "true", *options)
    assert status == 0, err
    result: dict[str, Any] = json.loads(out)
    return result


def experiment(model: str, strategy: str) -> list[str]:
    paths = [
        ROOT / "configs/experiment/llama-3.1-8b_ultrafeedback_ts2.yaml",
        ROOT / f"configs/strategy/{strategy}.yaml",
    ]
    return [word for path in paths for word in ("-c", str(path))] + ["--model.lm.path", model]


def test_a_table_of_what_is_held(plan: Plan) -> None:
    status, out, err = plan(*experiment("tiny", "zero2"), "--gpus", "4")
    assert (status, err) == (0, "")
    assert "4 x H200 SXM (140.4 GiB each); ZeRO-2, bf16-mixed, fused attention" in out
    assert "128 rows a step: micro-batches of 8 x 2,048 tokens, 4 on each GPU" in out
    assert [line for line in out.splitlines() if line.startswith("It fits:")]
    assert max(map(len, out.splitlines())) <= 100
    assert not Path("runs").exists()


def test_the_toy_world_is_not_made_for_it(plan: Plan, monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setenv("TS2_CACHE_DIR", str(here / "cache"))
    assert found(plan, "-c", str(ROOT / "configs/experiment/quickstart.yaml"))["fits"]
    assert not (here / "cache").exists()


def test_devices_and_nodes_are_the_trainers(plan: Plan) -> None:
    options = ["--model.lm.path", "tiny", "--trainer.devices", "8", "--trainer.num_nodes", "4"]
    there = found(plan, *options)
    assert (there["gpus"], there["nodes"], there["strategy"]) == (32, 4, "DDP")
    assert found(plan, *options, "--gpus", "2", "--nodes", "1")["gpus"] == 2


def test_a_model_that_does_not_fit(plan: Plan) -> None:
    """Sixteen bytes for each of 1.2 billion parameters are 18.4 GiB; activations want checkpointing."""
    options = ["--model.lm.path", "1b", "--gpu", "rtx4090", "--gpus", "8", "--data.micro_batch_size", "2"]
    options += ["--data.max_length", "1024"]
    result = found(plan, *options)
    memory = result["memory"]["no_checkpointing"]
    assert (memory["weights"] + memory["gradients"] + memory["optimizer"]) / 1_235_814_400 == pytest.approx(
        16, rel=1e-4
    )
    assert not result["fits"]
    assert "strategy fsdp2" in result["fits_with"]
    status, out, _ = plan(*options)
    assert status == 0
    assert "WARNING: it will not fit:" in out
    assert "  fits with strategy fsdp2" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "model.lm.path: plan needs a model"),
        (["--model.lm.path", "./absent"], "model.lm.path: cannot load './absent': no such directory here"),
        (["--model.lm.path", "tiny", "--gpu", "h20"], "--gpu: expected one of h200"),
        (["--model.lm.path", "tiny", "--gpus", "0"], "--gpus must be a whole number of at least 1 or null, got 0"),
        (["--model.lm.path", "tiny", "--hfu", "40"], "--hfu must be a finite number above 0 and at most 1, got 40"),
        (["--model.lm.path", "tiny", "--trainer.strategy", "deepspeed_stage2"], "did you mean deepspeed_stage_2?"),
        (
            ["--model.lm.path", "tiny", "--trainer.precision", "transformer-engine"],
            "trainer.precision: expected one of",
        ),
    ],
)
def test_errors_are_one_line(plan: Plan, options: list[str], message: str) -> None:
    status, out, err = plan(*options)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.slow
def test_the_papers_run(plan: Plan) -> None:
    """8 billion parameters on four H200: with checkpointing it fits, as it did for the papers, and else it does not."""
    for strategy in ("zero2", "fsdp2"):
        result = found(plan, *experiment("8b", strategy), "--gpus", "4")
        assert result["model"]["parameters"] == 8_030_261_248
        assert result["fits"]
        memory = result["memory"]
        assert memory["no_checkpointing"]["total"] > result["gpu"]["memory"] > memory["checkpointing"]["total"]
        # Moments and, under ZeRO, masters: 2 or 3 float32 for each parameter, over four GPUs.
        share = {"zero2": 12, "fsdp2": 8}[strategy] * 8_030_261_248 / 4
        assert memory["checkpointing"]["optimizer"] == pytest.approx(share, rel=1e-4)


@pytest.mark.slow
def test_seventy_billion(plan: Plan) -> None:
    """On 32 H200 with ZeRO-3, a row at a time."""
    options = [*experiment("70b", "zero3"), "--gpus", "8", "--nodes", "4", "--data.micro_batch_size", "4"]
    result = found(plan, *options)
    assert result["model"]["parameters"] == 70_553_706_496
    assert result["fits"]
    memory = result["memory"]["checkpointing"]
    held = memory["weights"] + memory["gradients"] + memory["optimizer"]
    assert held == pytest.approx(20 * 70_553_706_496 / 32, rel=1e-3)
