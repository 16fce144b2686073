"""A pretrained Llama without a chat template, fine-tuned on real rows, exported, and used by plain transformers."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests.e2e.command_line import CommandLine, column

RUN = Path("runs/real/1")
STEPS = 40
OPTIONS = (
    "--data.train=[alpaca.jsonl,threads.jsonl.gz]", "--data.validation=validation.jsonl", "--data.max_length=512",
    "--data.overlong=raise", "--data.batch_size=8", "--data.micro_batch_size=8", "--model.schedule.warmup_ratio=0.1",
    "--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.gradient_clip_val=1.0",
    "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1",
)  # fmt: skip


def write_rows(shared_data: Path) -> None:
    """Alpaca's fields, and threads as messages, in one training set; validation is Alpaca rows that are not trained."""
    with gzip.open(shared_data / "sft" / "alpaca_5000.jsonl.gz", "rt", encoding="utf-8") as stream:
        alpaca = [line for line in stream if len(line) < 300]
    with gzip.open(shared_data / "chat" / "oasst1_eval_threads.jsonl.gz", "rt", encoding="utf-8") as stream:
        threads = [
            row for row in map(json.loads, stream) if row["lang"] == "en" and is_short_conversation(row["messages"])
        ]
    Path("alpaca.jsonl").write_text("".join(alpaca[:280]), encoding="utf-8")
    Path("validation.jsonl").write_text("".join(alpaca[1000:1050]), encoding="utf-8")
    lines = [json.dumps({"messages": row["messages"]}) + "\n" for row in threads[:40]]
    Path("threads.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode()))
    assert len(lines) == 40


def is_short_conversation(messages: list[dict[str, Any]]) -> bool:
    answered = any(m["role"] == "assistant" and m["content"].strip() for m in messages)
    return answered and sum(len(m["content"]) for m in messages) < 500


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "rate", "drop", "stopping"),
    [("CrossEntropyLoss", "5e-3", 0.5, 4), ("TS2Loss", "2e-3", 0.05, 0)],  # the gentle one has not learnt to stop yet
)
def test_a_real_run(loss: str, rate: str, drop: float, stopping: int, ts2: CommandLine, shared_data: Path) -> None:
    base = shared_data / "models" / "stories260K"
    write_rows(shared_data)
    options = (f"--model.lm.path={base}", *OPTIONS, f"--model.loss={loss}", f"--model.optimizer.lr={rate}")
    ts2("validate", *options, "--name=before").done()
    before = json.loads(Path("runs/before/1/metrics.json").read_text())
    ts2("fit", *options, "--name=real").done()
    after = {name: column(RUN, name)[STEPS] for name in ("val/cross_entropy", "val/objective")}
    assert len(column(RUN, "train/objective")) == STEPS
    for name, value in after.items():
        print(f"{loss}, {name}: {before[name]:.3f} before, {value:.3f} after {STEPS} steps")
        assert value < before[name] - drop, name
    check_export(base, stopping)


def check_export(base: Path, stopping: int) -> None:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(RUN / "export").eval()
    tokenizer = AutoTokenizer.from_pretrained(RUN / "export")
    state = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    trained = AutoModelForCausalLM.from_pretrained(base).eval()
    ids = torch.tensor([tokenizer("Once upon a time, there was a little girl").input_ids])
    with torch.no_grad():
        untrained = trained(input_ids=ids).logits
        place = "network.language_model."
        trained.load_state_dict({k.removeprefix(place): v for k, v in state.items() if k.startswith(place)})
        logits = model(input_ids=ids).logits
        assert torch.equal(logits, trained(input_ids=ids).logits)
        assert not torch.allclose(logits, untrained, atol=0.1)
    check_generation(model, tokenizer, stopping)


def check_generation(model: PreTrainedModel, tokenizer: Any, stopping: int) -> None:
    """Through the chat template that was trained; a turn ends with the token that closes it."""
    assert tokenizer.chat_template
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id
    messages = [{"role": "user", "content": "Name three colors."}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    torch.manual_seed(0)
    limit = 200
    answers = model.generate(**prompt, max_new_tokens=limit, do_sample=True, num_return_sequences=16)
    answers = answers[:, prompt["input_ids"].shape[1] :]
    lengths = [(answer == tokenizer.eos_token_id).nonzero()[:1, 0].tolist() for answer in answers]
    stopped = [length for length in lengths if length and length[0] < limit - 1]
    assert len(stopped) >= stopping, f"of 16 answers {len(stopped)} stopped"
    assert all(tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in answers)
