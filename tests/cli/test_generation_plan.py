"""What making responses will take, before anything is made: counted responses and tokens, hours, what was measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig

from tests.cli.conftest import Run
from ts2_lightning.cli import generate
from ts2_lightning.cli.asked_models import AskedModels
from ts2_lightning.cli.generation_plan import parts_of
from ts2_lightning.evaluation.protocols.gsm8k import GSM8K
from ts2_lightning.generation.rates import RATES, read_rates
from ts2_lightning.generation.store import place_of
from ts2_lightning.planning import TRANSFORMERS, Decoding, Wanted, find_gpu, generation_cost
from ts2_lightning.toyworld import build_tokenizer
from ts2_lightning.types import UserError

WORDS = ("fruit", "name", "answer", "pear", "is")
ROWS = [{"question": f"name {word}", "answer": f"it is so\n#### {number}"} for number, word in enumerate(WORDS)]
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "dtype": "bfloat16",
    "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
ASK = ("--protocol=gsm8k", "--data=gsm8k=gsm8k.jsonl", "--device=cpu", "--template=plain")


@pytest.fixture
def model(here: Path) -> str:
    """A model without weights: whoever loads them fails."""
    tokenizer = build_tokenizer()
    LlamaConfig(vocab_size=len(tokenizer), **SIZES).save_pretrained(here / "model")
    tokenizer.save_pretrained(here / "model")
    Path("gsm8k.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return "model"


def rows_of(out: str) -> dict[str, list[str]]:
    """Cells of the table by its first column."""
    lines = [line.split() for line in out.splitlines() if line.startswith("gsm8k") and ":" not in line]
    return {cells[0]: cells[1:] for cells in lines}


def test_responses_tokens_and_hours(ts2: Run, model: str, here: Path) -> None:
    before = sorted(here.rglob("*"))
    answer = ts2("evaluate", model, *ASK, "--n=3", "--plan", "--gpu=a100", "--processes=4").done()
    assert sorted(here.rglob("*")) == before
    rows = rows_of(answer.out)
    assert list(rows) == ["gsm8k-greedy", "gsm8k"]
    assert rows["gsm8k"][:2] == ["15", "0"]
    assert rows["gsm8k"][3] == f"{15 * 512:,}"
    assert rows["gsm8k"][4:6] == ["15", "1"]
    prompt_tokens = int(rows["gsm8k"][2].replace(",", ""))
    assert rows["gsm8k-greedy"][:4] == ["5", "0", rows["gsm8k"][2], f"{5 * 512:,}"]
    wanted = Wanted(15, 5, prompt_tokens, 15 * 512, prompt_tokens // 5 + 512)
    cost = generation_cost(wanted, Decoding.of(model, torch.bfloat16), find_gpu("a100"), TRANSFORMERS)
    assert cost.seconds is not None
    assert rows["gsm8k"][6] == f"{15 * 512 / cost.seconds:,.0f}"
    assert "0.04 million parameters" in answer.out
    assert "A100 SXM 80 GB" in answer.out
    assert "with 4 processes of 1 GPU" in answer.out
    assert "An estimate, of 40% of the GPU's peak" in answer.out


def test_what_is_there_is_counted_and_what_was_measured_is_used(ts2: Run, model: str, here: Path) -> None:
    """Of the same part on the same kind of GPU the hours follow from the rate; another device is told beside it."""
    command = ("generate", model, *ASK, "--n=2", "--plan", "--out=out")
    options: Any = generate._parser().parse_args(list(command[1:]))
    asked_model = AskedModels(options, here, Path("out")).model(model)
    part = next(one for one in parts_of(asked_model, [GSM8K(data="gsm8k.jsonl", n=2)]) if one.name == "gsm8k")
    directory = place_of(asked_model.out, part.name, part.settings)
    directory.mkdir(parents=True)
    line = {
        "key": part.wanted["0"][0].key, "item": "0", "index": 0, "seed": 0, "text": "x", "tokens": 7, "finish": "stop",
        "mean_probability": 0.5,
    }  # fmt: skip
    (directory / "part-00000.jsonl").write_text(f'{{"format": 1}}\n{json.dumps(line)}\n')
    rates = [
        ("transformers", "NVIDIA H200", 10, 60, 9),
        ("transformers", "NVIDIA H200", 30, 40, 391),
        ("transformers", "cpu", 100, 100, 200),
        ("vllm", "NVIDIA H200", 5, 9, 99),
    ]
    names = ("backend", "device", "seconds", "responses", "tokens")
    lines = [json.dumps({**dict(zip(names, rate, strict=True)), "devices": 1}) for rate in rates]
    (directory / RATES).write_text("".join(f"{line}\n" for line in lines))
    answer = ts2(*command, "--gpu=h200").done()
    assert rows_of(answer.out)["gsm8k"][:2] == ["9", "1"]
    assert rows_of(answer.out)["gsm8k"][6] == "10"  # 9 + 391 tokens in 40 s
    assert "gsm8k: not estimated but at the rate of the responses that are there, 10 tokens a second" in answer.out
    assert "measured on 1 x cpu with transformers: 2 tokens a second, 2 tokens a response: 0.64 hours" in answer.out
    assert "vllm" not in answer.out  # too few to go by
    other = ts2(*command, "--gpu=a100").done()
    assert "not estimated but" not in other.out
    assert "measured on 1 x NVIDIA H200" in other.out


def test_prompts_of_a_file(ts2: Run, model: str) -> None:
    Path("few.jsonl").write_text("".join(f'{{"prompt": "name {word}"}}\n' for word in WORDS[:3]))
    options = ("--prompts=few.jsonl", "--template=plain", "--device=cpu", "--out=out", "--max_new_tokens=9")
    answer = ts2("generate", model, *options, "--n=4", "--plan").done()
    [cells] = [line.split() for line in answer.out.splitlines() if line.startswith("few")]
    assert cells[1:3] == ["12", "0"]
    assert cells[4] == "108"
    assert not Path("out").exists()


def test_a_served_model_has_tokens_only(ts2: Run, model: str) -> None:
    address = "endpoint:http://localhost:9#big"
    answer = ts2("evaluate", address, *ASK[:2], "--api_key_env=", "--n=2", "--plan").done()
    assert rows_of(answer.out)["gsm8k"][:2] == ["10", "0"]
    assert "prompt tokens (about)" in answer.out
    assert "GPU" not in answer.out


def test_a_model_that_does_not_fit(ts2: Run, model: str) -> None:
    """Ninety billion parameters: transformers has a model on one GPU, and says what would have it on several."""
    big = {**SIZES, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 100}
    LlamaConfig(vocab_size=len(build_tokenizer()), **big).save_pretrained(model)
    answer = ts2("evaluate", model, *ASK, "--plan", "--gpu=a100").done()
    assert "WARNING: it does not fit on one A100 SXM 80 GB" in answer.out
    assert "--vllm_args '{tensor_parallel_size: 4}'" in answer.out


def test_what_judges_take_is_told(ts2: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A protocol that needs another model says what, and how much of it, in its own units."""
    monkeypatch.setattr(GSM8K, "models_needed", "a judge")
    monkeypatch.setattr(GSM8K, "judging", lambda self, responses: {"judge calls": 2 * responses})
    answer = ts2("evaluate", model, *ASK, "--n=3", "--plan").done()
    assert "gsm8k: judging needs a judge, 30 judge calls" in answer.out
    assert "gsm8k-greedy: judging needs a judge, 10 judge calls" in answer.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpu=h20"], "--gpu: is for --plan"),
        (["--processes=2"], "--processes: is for --plan"),
        (["--plan", "--gpu=h20"], "--gpu: expected one of"),
        (["--plan", "--processes=0"], "--processes must be"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_options_that_are_wrong(command: str, options: list[str], message: str, ts2: Run, model: str) -> None:
    answer = ts2(command, model, *ASK, *options)
    assert (answer.status, answer.err.count("\n")) == (2, 1)
    assert message in answer.err


def test_a_line_that_is_no_rate(tmp_path: Path) -> None:
    (tmp_path / RATES).write_text('{"backend": "x"}\n')
    with pytest.raises(UserError, match=r"rates.jsonl:1: no rate \(KeyError\('device'\)\); remove the line"):
        read_rates(tmp_path)


GRID = {
    "base": "toy.yaml",
    "axes": {"rate": {"low": {"set": {"model.optimizer.lr": 1e-4}}, "high": {"set": {"model.optimizer.lr": 1e-3}}}},
    "seeds": [0, 1],
    "measure": {"gsm8k": {"data": "gsm8k.jsonl", "n": 4}, "cost": {}},
    "base_model": {"label": "start", "measure": {"arc": {}}},
}


def test_a_dry_run_says_what_protocols_need(real: Run, model: str) -> None:
    """Two seeds of four responses and one greedy one to each of five questions; ARC as it is documented."""
    settings = {"model": {"lm": {"path": model}}, "data": {"train": "gsm8k.jsonl"}, "trainer": {"accelerator": "cpu"}}
    Path("toy.yaml").write_text(yaml.safe_dump(settings))
    Path("grid.yaml").write_text(yaml.safe_dump(GRID, sort_keys=False))
    answer = real("ablate", "-c", "grid.yaml", "--dry-run", "--gpu=h100").done()
    [block] = [block for block in answer.out.split("\n\n") if block.startswith("Evaluation")]
    cells = [line.split() for line in block.splitlines()]
    assert cells[2][:4] == ["start", "arc", "1,172", f"{1172 * 8:,}"]
    assert cells[3][:4] == ["low", "gsm8k", "50", f"{2 * (5 + 20) * 512:,}"]
    assert cells[4][0] == "high"
    assert "H100 SXM" in block
    assert "arc: rows of the hub are not looked at, and counted as they are documented" in block
    assert "GPU hours in all. An estimate" in block
    on_cpu = real("ablate", "-c", "grid.yaml", "--dry-run").done()
    assert "No hours: there are no figures of a CPU's speed" in on_cpu.out
    refused = real("ablate", "-c", "grid.yaml", "--gpu=h100")
    assert "--gpu: is for --dry-run" in refused.err


def test_a_dry_run_counts_verdicts_and_dollars(real: Run, model: str) -> None:
    """229 prompts of stories, ten responses to each, three votes, two seeds. Nothing is asked: there is no server."""
    settings = {"model": {"lm": {"path": model}}, "data": {"train": "gsm8k.jsonl"}, "trainer": {"accelerator": "cpu"}}
    Path("toy.yaml").write_text(yaml.safe_dump(settings))
    prices = {"prompt_price": 2.0, "completion_price": 8.0}
    judge = {"model": "endpoint:http://localhost:9#judge", "api_key_env": "", "votes": 3, "temperature": 1.0, **prices}
    Path("grid.yaml").write_text(yaml.safe_dump({**GRID, "measure": {"stories": {"judge": judge}}}, sort_keys=False))
    [block] = [
        block
        for block in real("ablate", "-c", "grid.yaml", "--dry-run").done().out.split("\n\n")
        if block.startswith("Evaluation")
    ]
    lines = block.splitlines()
    assert lines[1].split("  ")[-2:] == ["judge calls", "dollars, about"]
    for line in lines[3:5]:
        assert line.split()[:3] == [*line.split()[:1], "stories", f"{2 * 2290:,}"]
        calls, dollars = (float(cell.replace(",", "")) for cell in line.split()[-2:])
        assert calls == 3 * 2 * 2290
        assert calls * (64 * 2.0 + 32 * 8.0) / 1e6 < dollars < calls * ((64 + 1_000) * 2.0 + 32 * 8.0) / 1e6
    assert lines[2].split()[-2:] == ["-", "-"], "the base model has no judge"
