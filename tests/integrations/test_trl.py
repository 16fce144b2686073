"""An objective in TRL's `SFTTrainer` is trained as in ours."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.contract.steps import LOSSES, VALIDATED, Case
from tests.integrations.test_transformers import assert_same, in_order, ours
from tests.integrations.trainings import LOGGED_TOO, SETTINGS, InOrder, Weights, dataset, load, outcome_of
from tests.support.errors import refused
from ts2_lightning.integrations.transformers import TokenLossMixin
from ts2_lightning.losses import TS2Loss

trl = pytest.importorskip("trl", reason="needs the extra `trl`")
pytestmark = pytest.mark.slow


class TokenLossSFTTrainer(InOrder, TokenLossMixin, trl.SFTTrainer):
    """What a user writes."""


@pytest.fixture(autouse=True)
def nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)


def make(world: Path, out: Path, model: str, rows: Any, loss: Any, **changed: Any) -> Any:
    from datasets import Dataset

    settings = SETTINGS | {"bf16": False, "max_length": None} | changed
    return TokenLossSFTTrainer(
        load(world / model), trl.SFTConfig(str(out), **settings), train_dataset=Dataset.from_list(dataset(world, rows)),
        eval_dataset=Dataset.from_list(dataset(world, range(VALIDATED), "validation")), callbacks=[Weights()],
        processing_class=AutoTokenizer.from_pretrained(world / "tied"), token_loss=loss, **LOGGED_TOO,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "model", "changed"),
    [("ts2", "tied", {}), ("gem", "untied", {"padding_free": True, "gradient_checkpointing": False})],
)
def test_trains_as_ours(world: Path, tmp_path: Path, loss: str, model: str, changed: dict[str, Any]) -> None:
    wanted = ours(world, Case(loss, model, "none"))
    trainer = make(world, tmp_path, model, in_order(wanted), LOSSES[loss](), **changed)
    found = outcome_of(trainer)
    assert_same(found, wanted)
    for name in ("cross_entropy", "support_size", "tail_mass"):
        assert found["evaluated"][f"eval_{name}"] == pytest.approx(wanted["logged"][2][f"val/{name}"], rel=1e-6)
    assert found["evaluated"]["eval_loss"] == pytest.approx(wanted["logged"][2]["val/objective"], rel=1e-6)


def test_its_own_objective_is_no_other(world: Path, tmp_path: Path) -> None:
    with refused("loss_type: the loss is token_loss, got dft"):
        make(world, tmp_path, "tied", [0], TS2Loss(), loss_type="dft")


def test_its_own_forward_stays(world: Path, tmp_path: Path) -> None:
    model = make(world, tmp_path, "tied", [0], TS2Loss()).model
    ids = torch.arange(6)[None]
    own = model(input_ids=ids, labels=ids, fused_lm_head=True)
    torch.testing.assert_close(own.loss, model(input_ids=ids, labels=ids).loss)
