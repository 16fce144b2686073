"""One row per logged step and per evaluation, written by the module, and returned by `Trainer.validate` and `test`."""

from pathlib import Path
from typing import Any

import pytest

from tests.modules.architectures import random_model
from tests.modules.normaliser import Memory
from tests.modules.test_packing import write_token_rows
from tests.support.training import make_trainer
from ts2_lightning.callbacks import DistributionMonitor
from ts2_lightning.data import SFTData
from ts2_lightning.losses import TS2Loss
from ts2_lightning.modules import LanguageModelConfig, SFTModule


def run(tmp_path: Path, act: str, memory: Memory, **settings: Any) -> Any:
    """What a trainer returns of one of its methods, on a random model and a few rows."""
    random_model("qwen2").save_pretrained(tmp_path / "model")
    file = write_token_rows(tmp_path / "rows.jsonl")
    module = SFTModule(LanguageModelConfig(str(tmp_path / "model")), TS2Loss())
    data = SFTData(
        train=file, validation={"a": file, "b": file}, test=file, format="tokens", batch_size=4, max_length=10
    )
    trainer = make_trainer(tmp_path, logger=memory, **{"max_epochs": None, **settings})
    return getattr(trainer, act)(module, data, **({} if act == "fit" else {"verbose": False}))


@pytest.mark.parametrize(("act", "stage", "sets"), [("validate", "val", 2), ("test", "test", 1)])
def test_what_was_measured_is_returned(act: str, stage: str, sets: int, tmp_path: Path) -> None:
    """To the last digit what the loggers have, with what a callback has measured, for each loader."""
    memory = Memory()
    results = run(tmp_path, act, memory, callbacks=[DistributionMonitor(split_by=["position"])])
    assert len(results) == sets
    for result in results:
        assert result.pop("step") == 0
        assert result == memory.steps[0]
        assert {f"{stage}/objective", f"{stage}/perplexity", f"{stage}/support_size_p50"} <= result.keys()
        assert any(name.startswith(f"{stage}_by_position/") for name in result)
    if sets == 2:
        assert results[0]["val/a/entropy"] == results[0]["val/b/entropy"] == results[0]["val/entropy"]


def test_a_step_is_one_row_at_the_number_of_steps_done(tmp_path: Path) -> None:
    memory = Rows()
    run(tmp_path, "fit", memory, callbacks=[DistributionMonitor()], max_steps=3, val_check_interval=1)
    assert [(step, stages) for step, stages in memory.rows] == [
        (step, stages) for step in (1, 2, 3) for stages in ({"train"}, {"val"})
    ]


class Rows(Memory):
    """Keeps each row's step, and what the names in it begin with."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, set[str]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        assert step is not None
        self.rows.append((step, {name.partition("/")[0] for name in metrics}))
