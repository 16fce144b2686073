"""`plan`: what it prints of a configuration, and what it says to a wrong one."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import GPT2Config, LlamaConfig

from tests.cli.conftest import Run
from tests.e2e.command_line import CONFIGS, QUICKSTART
from ts2_lightning import hardware
from ts2_lightning.cli import plan as command
from ts2_lightning.hardware import Machine
from ts2_lightning.planning.public_models import PUBLIC_MODELS
from ts2_lightning.toyworld import build_tokenizer

ZERO2 = '{"class_path": "ts2_lightning.strategies.DeepSpeed", "init_args": {"stage": 2}}'
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "intermediate_size": 90, "vocab_size": 301},
    "1b": {"hidden_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 32, "num_key_value_heads": 8,
           "head_dim": 64, "intermediate_size": 24688, "vocab_size": 128256, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
           "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False},
    "70b": {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
            "intermediate_size": 28672, "vocab_size": 128256, "tie_word_embeddings": False},
}  # fmt: skip
WIDE = 1_235_707_904
"""Parameters of `1b`: about as many as Llama 3.2 1B has, in six layers, since every layer takes its time."""


@pytest.fixture
def plan(real: Run) -> Run:
    """Runs `plan` in an empty directory with models that are a config.json."""
    for name, shape in SHAPES.items():
        LlamaConfig(**shape, architectures=["LlamaForCausalLM"]).save_pretrained(name)
    return lambda *options: real("plan", *options)


def said(plan: Run, *options: str) -> str:
    """What it prints where nothing is wrong."""
    answer = plan(*options)
    assert (answer.status, answer.err) == (0, "")
    return answer.out


def found(plan: Run, *options: str) -> dict[str, Any]:
    return json.loads(plan("--json", "true", *options).done().out)


def experiment(model: str, strategy: str) -> list[str]:
    files = ("experiment/llama-3.1-8b_ultrafeedback_ts2.yaml", f"strategy/{strategy}.yaml")
    return [word for file in files for word in ("-c", str(CONFIGS / file))] + ["--model.lm.path", model]


def test_a_table_of_what_is_held(plan: Run) -> None:
    out = said(plan, *experiment("tiny", "zero2"), "--gpus", "4")
    assert "4 x H200 SXM (140.4 GiB each); ZeRO-2, bf16-mixed, fused attention" in out
    assert "128 rows a step: micro-batches of 8 x 2,048 tokens, 4 on each GPU" in out
    assert [line for line in out.splitlines() if line.startswith("It fits:")]
    assert max(map(len, out.splitlines())) <= 100
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("strategy", "bytes_of_a_parameter"), [("ddp", 12), ("fsdp2", 12 / 4), ("zero2", 4 + 12 / 4), ("zero3", 12 / 4)]
)
def test_an_asynchronous_checkpoint_is_copied_into_the_hosts_memory(
    plan: Run, strategy: str, bytes_of_a_parameter: float
) -> None:
    """The process of the first GPU of four copies what it saves of weights and moments."""
    job = [*experiment("1b", strategy), "--gpus", "4", "--trainer.callbacks+=Checkpoints"]
    mode = found(plan, *job)["memory"]
    copied = found(plan, *job, "--trainer.callbacks.asynchronous=true")["memory"]
    for name, memory in mode.items():
        assert copied[name]["host"] - memory["host"] == pytest.approx(bytes_of_a_parameter * WIDE, rel=1e-3)
        assert copied[name]["total"] == memory["total"], "the GPU has the same to hold"
    assert "in the host's memory, for each GPU" in said(plan, *job, "--trainer.callbacks.asynchronous=true")


def test_a_run_on_cpus_is_planned_for_this_machine(plan: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes share its memory; nothing is said of its speed, and nothing of GPUs."""
    monkeypatch.setattr(command, "this_machine", lambda: Machine("this machine's CPU", 2.5 * 2**30))
    options = ["--model.lm.path", "tiny", "--trainer.accelerator", "cpu", "--data.max_length", "64"]
    out = said(plan, *options, "--trainer.devices", "2")
    assert "2 processes on this machine's CPU (2.5 GiB for all of a node); DDP, 32-true, fused attention" in out
    assert "Memory per process in GiB" in out
    assert out.splitlines()[-1].startswith("It fits: 1.")
    assert out.splitlines()[-1].endswith(" of 1.2 GiB.")
    assert "GPU" not in out
    assert "Seconds" not in out
    result = found(plan, *options, "--trainer.devices", "3")
    assert (result["gpu"], result["machine"]["memory"]) == (None, 2.5 * 2**30)
    assert (result["step"], result["fits"]) == ({}, False)
    one = found(plan, *options)
    assert "1 process on this machine's CPU" in plan(*options).out
    assert 2**30 < one["memory"]["no_checkpointing"]["total"] < 1.2 * 2**30
    there = found(plan, *options, "--gpu", "l40s")
    assert (there["gpu"]["name"], there["machine"], there["precision"]) == ("L40S", None, "bf16-mixed")


def test_this_machines_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A container may have a part of it."""
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(hardware, "_LIMIT", limit)
    whole = hardware.this_machine().memory
    assert whole == psutil.virtual_memory().total
    for text, memory in (("max\n", whole), ("1000000\n", 1_000_000), (f"{2 * whole}\n", whole)):
        limit.write_text(text)
        assert hardware.this_machine().memory == memory


def test_a_checkpoint(plan: Run) -> None:
    """Weights and moments: 12 bytes for each parameter, under ZeRO-2 16, in the time that a disk takes."""
    options = ["--model.lm.path", "1b", "--gpus", "8", "--data.micro_batch_size", "1", "--data.max_length", "64"]
    out = plan(*options).done().out
    assert "Checkpoint: 14.8 GB, written in 14.8 s at 1 GB/s (--write_speed, a guess)." in out
    assert "WARNING" not in out
    result = found(plan, *options, "--write_speed", "0.025")["checkpoint"]
    assert result["bytes"] == pytest.approx(12 * WIDE, rel=1e-4)
    assert result["seconds"] == pytest.approx(result["bytes"] / 25e6)
    assert (result["warned_in_time"], result["warning_seconds"] % 60) == (False, 0)
    assert 1.2 * result["seconds"] < result["warning_seconds"] < 1.4 * result["seconds"]
    out = plan(*options, "--write_speed", "0.025").out
    assert "WARNING: fit.slurm has a run warned 300 s before its time limit, and it needs 59" in out
    setting = f"sbatch --signal=USR1@{result['warning_seconds']}, or SBATCH_SIGNAL=USR1@{result['warning_seconds']}"
    assert f"  to finish its step and to save: {setting}" in out
    assert max(map(len, out.splitlines())) <= 100
    zero2 = found(plan, *options, "--trainer.strategy", ZERO2)["checkpoint"]
    assert zero2["bytes"] == pytest.approx(16 * WIDE, rel=1e-4)
    adapter = found(plan, *options, "--model.lm.adapter.r", "16")["checkpoint"]
    assert adapter["bytes"] < 0.02 * result["bytes"]


def test_the_toy_world_is_not_made_for_it(plan: Run, monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setenv("TS2_CACHE_DIR", str(here / "cache"))
    assert found(plan, "-c", str(QUICKSTART))["fits"]
    assert not (here / "cache").exists()


def test_devices_and_nodes_are_the_trainers(plan: Run) -> None:
    options = ["--model.lm.path", "tiny", "--trainer.devices", "8", "--trainer.num_nodes", "4"]
    there = found(plan, *options)
    assert (there["gpus"], there["nodes"], there["strategy"]) == (32, 4, "DDP")
    assert found(plan, *options, "--gpus", "2", "--nodes", "1")["gpus"] == 2


def test_hybrid_sharding_in_the_plan(plan: Run) -> None:
    """Sixteen bytes a parameter over the eight GPUs of a node; a job of one node has one copy."""
    options = [*experiment("1b", "fsdp2_hybrid"), "--gpus", "8"]
    there = found(plan, *options, "--nodes", "4")
    assert there["strategy"] == "FSDP2, 4 copies over 8 GPUs each"
    memory = there["memory"]["checkpointing"]
    assert (memory["weights"] + memory["gradients"] + memory["optimizer"]) / WIDE == pytest.approx(16 / 8, rel=1e-3)
    assert found(plan, *options)["strategy"] == "FSDP2"
    message = "trainer.strategy: FSDP2(shard_size): 8 ranks with rows of their own cannot be divided by 3"
    assert message in plan(*options, "--trainer.strategy.shard_size", "3").refusal


def test_a_model_that_does_not_fit(plan: Run) -> None:
    """Sixteen bytes for each of 1.2 billion parameters are 18.4 GiB; activations want checkpointing."""
    options = ["--model.lm.path", "1b", "--gpu", "rtx4090", "--gpus", "8", "--data.micro_batch_size", "2"]
    options += ["--data.max_length", "1024"]
    result = found(plan, *options)
    memory = result["memory"]["no_checkpointing"]
    assert (memory["weights"] + memory["gradients"] + memory["optimizer"]) / WIDE == pytest.approx(16, rel=1e-4)
    assert not result["fits"]
    assert "strategy fsdp2" in result["fits_with"]
    out = plan(*options).done().out
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
        (["--model.lm.path", "tiny", "--write_speed", "0"], "--write_speed must be a finite number above 0, got 0"),
        (
            ["--model.lm.path", "tiny", "--trainer.accelerator", "mps"],
            "trainer.accelerator: plan has figures of GPUs and",
        ),
        (["--model.lm.path", "tiny", "--trainer.strategy", "deepspeed_stage2"], "did you mean deepspeed_stage_2?"),
        (
            ["--model.lm.path", "tiny", "--trainer.precision", "transformer-engine"],
            "trainer.precision: expected one of",
        ),
    ],
)
def test_errors_are_one_line(plan: Run, options: list[str], message: str) -> None:
    assert message in plan(*options).refusal


@pytest.mark.slow
def test_the_papers_run(plan: Run) -> None:
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
def test_seventy_billion(plan: Run) -> None:
    """On 32 H200 with ZeRO-3, a row at a time."""
    options = [*experiment("70b", "zero3"), "--gpus", "8", "--nodes", "4", "--data.micro_batch_size", "4"]
    result = found(plan, *options)
    assert result["model"]["parameters"] == 70_553_706_496
    assert result["fits"]
    memory = result["memory"]["checkpointing"]
    held = memory["weights"] + memory["gradients"] + memory["optimizer"]
    assert held == pytest.approx(20 * 70_553_706_496 / 32, rel=1e-3)
    assert result["checkpoint"]["bytes"] == pytest.approx(12 * 70_553_706_496, rel=1e-3)
    assert (result["checkpoint"]["warned_in_time"], result["checkpoint"]["warning_seconds"]) == (False, 1080)


def test_null_is_the_models_context(plan: Run) -> None:
    """Its bytes are those of the number."""
    GPT2Config(n_positions=48, n_embd=32, n_layer=2, n_head=2, vocab_size=301).save_pretrained("gpt2")
    options = ("--model.lm.path", "gpt2", "--trainer.accelerator", "cpu")
    assert "micro-batches of 8 x 48 tokens" in said(plan, *options)
    assert found(plan, *options) == found(plan, *options, "--data.max_length", "48")
    assert found(plan, *options) != found(plan, *options, "--data.max_length", "47")
    assert "micro-batches of 8 x 2,048 tokens" in plan("--model.lm.path", "tiny").out
    refusal = plan(*options, "--data.max_length", "49").refusal
    assert refusal.startswith("data.max_length is 49, more than the context of gpt2, 48 tokens, and there is no")


def test_new_rows_of_the_embedding_are_counted(plan: Run) -> None:
    """To the last parameter: tied rows of 48, and untied ones twice."""
    build_tokenizer().save_pretrained("tokenizer")
    tokens = len(build_tokenizer())
    options = ("--model.lm.path", "small", "--trainer.accelerator", "cpu", "--data.tokenizer", "tokenizer")
    for tied in (True, False):
        LlamaConfig(**{**SHAPES["tiny"], "vocab_size": 90, "tie_word_embeddings": tied}).save_pretrained("small")
        before, after = found(plan, *options), found(plan, *options, "--model.lm.resize_embeddings", "true")
        added = (tokens - 90) * 48 * (1 if tied else 2)
        assert added > 0
        assert after["model"]["parameters"] - before["model"]["parameters"] == added
        weights = [result["memory"]["no_checkpointing"]["weights"] for result in (before, after)]
        assert weights[1] - weights[0] == 4 * added
        assert found(plan, *options, "--model.lm.resize_embeddings", str(tokens)) == after


def test_a_plan_of_a_public_model_fetches_nothing(real: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is out of reach, so that a plan of another model is refused."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    answer = real("plan", "--model.lm.path", "google/gemma-3-270m", "--gpu", "h200")
    assert "Gemma3ForCausalLM, 0.27 billion parameters" in answer.out
    assert answer.err.splitlines()[0] == (
        "google/gemma-3-270m: planned with the sizes that this package has of it; nothing was fetched"
    )
    assert "somebody/else" in real("plan", "--model.lm.path", "somebody/else", "--gpu", "h200").complaint


def test_a_directory_of_that_name_is_meant_before_the_public_model(real: Run) -> None:
    directory = Path("google/gemma-3-270m")
    directory.mkdir(parents=True)
    config = {**PUBLIC_MODELS["google/gemma-3-270m"], "num_hidden_layers": 1, "vocab_size": 1000}
    (directory / "config.json").write_text(json.dumps(config))
    answer = real("plan", "--model.lm.path", str(directory), "--gpu", "h200")
    assert "6.21 million parameters" in answer.out
    assert "nothing was fetched" not in answer.err
