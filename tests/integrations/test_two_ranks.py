"""On two ranks a step has the loss, the gradient norm and the statistics of a plain loop over its rows."""

from pathlib import Path

import pytest
import torch

from tests.contract.plain_steps import plain_steps
from tests.contract.steps import Case
from tests.integrations.test_transformers import adapted
from tests.integrations.trainings import train
from tests.integrations.two_ranks import CASES, ROWS
from tests.support.ranks import launch
from ts2_lightning.losses import CrossEntropyLoss


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param("ddp", marks=pytest.mark.slow),
        pytest.param("zero2", marks=pytest.mark.long),
        pytest.param("zero3", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_train_as_one(strategy: str, world: Path, tmp_path: Path) -> None:
    launch("tests.integrations.two_ranks", strategy, world, tmp_path)
    ranks = [torch.load(tmp_path / f"rank{number}.pt", weights_only=False) for number in (0, 1)]
    for loss, model in CASES:
        wanted = plain_steps(Case(loss, model, "none"), world, [ROWS[:16], ROWS[16:]])["logged"]
        for found in (rank[f"{loss}-{model}"] for rank in ranks):
            for step in (1, 2):
                names = found["logged"][step].keys() & wanted[step].keys()
                assert {f"train/{name}" for name in ("objective", "gradient_norm", "entropy", "support_size")} <= names
                for name in names:
                    assert found["logged"][step][name] == pytest.approx(wanted[step][name], rel=5e-6), (step, name)
            names = {"loss": "objective", "entropy": "entropy", "support_size": "support_size"}
            for theirs, ours in names.items():  # seven rows: a rank gets one of the others' once more
                assert found["evaluated"][f"eval_{theirs}"] == pytest.approx(wanted[2][f"val/{ours}"], rel=5e-6)
    if strategy == "ddp":
        wanted = train(world, tmp_path, CrossEntropyLoss(), adapted(world, True), ROWS)
        for step in (0, 1):
            for name, weight in wanted["weights"][step].items():
                torch.testing.assert_close(ranks[1]["adapter"]["weights"][step][name], weight)
