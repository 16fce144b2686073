"""The next stage is another library's: an export, and rows of preferences, in TRL's DPOTrainer."""

import math
from pathlib import Path

import pytest
import torch

from tests.callbacks.tiny_llama import END, WORDS, write_base
from tests.export.stand_ins import load, settings, shake, stored
from ts2_lightning.export import export_model
from ts2_lightning.generation.exports import Answered, preference_rows

ANSWERED = [
    Answered("1", "name a fruit", "", False, {}, ["pear .", "the answer"], ["a", "b"]),
    Answered("2", "a fruit", "", False, {}, ["name", "the answer is pear ."], ["c", "d"]),
]
SCORES = {("1", "a"): 0.9, ("1", "b"): 0.1, ("2", "c"): 0.2, ("2", "d"): 0.7}


@pytest.mark.slow
def test_two_steps_of_dpo(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="needs trl, which is in no extra: pip install trl")
    from datasets import Dataset

    model = load(write_base(tmp_path / "base", width=32))
    shake(model)
    out = export_model(model, tmp_path / "export", settings(tmp_path / "base"))
    arguments = trl.DPOConfig(
        str(tmp_path / "dpo"),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    rows = Dataset.from_list(preference_rows(ANSWERED, SCORES) * 2)
    trainer = trl.DPOTrainer(str(out), args=arguments, train_dataset=rows)
    batch = next(iter(trainer.get_train_dataloader()))
    texts = [[WORDS[i] for i in row] for row in batch["input_ids"].tolist()]
    assert all("<|assistant|>" in text for text in texts), (
        "the prompt is the template's, with its opening of the answer"
    )
    assert all(END in row for row in batch["input_ids"].tolist()), "the end of the turn is learnt"
    before = stored(out)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3), "it begins at the reference, the export itself"
    assert losses[1] < losses[0]
    trainer.save_model(str(tmp_path / "tuned"))
    after = stored(tmp_path / "tuned")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
