"""Weights, gradients, optimizer state: the bytes that two real ranks hold of tied and untied models of odd sizes; and
the bytes that they write into a checkpoint.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.planning import ranks
from tests.support.ranks import launch
from ts2_lightning.modules import LanguageModelConfig
from ts2_lightning.modules.config import AdapterConfig
from ts2_lightning.planning.counting import MicroBatch
from ts2_lightning.planning.layout import read_layout
from ts2_lightning.planning.model import measure
from ts2_lightning.planning.state import state_of

ROOT = Path(__file__).resolve().parents[2]
CLASSES: dict[str, Any] = {
    "single": "auto",
    "ddp": {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"gradient_as_bucket_view": True}},
    "fsdp2": {"class_path": "ts2_lightning.strategies.FSDP2", "init_args": {}},
    "fsdp2_tp2": {"class_path": "ts2_lightning.strategies.FSDP2", "init_args": {"tensor_parallel_size": 2}},
    **{
        f"zero{stage}": {"class_path": "ts2_lightning.strategies.DeepSpeed", "init_args": {"stage": stage}}
        for stage in (1, 2, 3)
    },
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("world")
    ranks.write_world(directory)
    return directory


def planned(name: str, world: Path, model: str, precision: str, rank: int = 0) -> dict[str, int]:
    layout = read_layout(CLASSES[name], precision, 1 if name == "single" else ranks.RANKS)
    sizes = measure(LanguageModelConfig(str(world / model)), layout, MicroBatch(1, 4), modes=(False,))
    state = state_of(sizes.weights, layout, accumulation=2, rank=rank % layout.data_parallel)
    return {
        "weights": state.held_weights() + sizes.buffers,
        "gradients": state.held_gradients(),
        "optimizer": state.held_optimizer(),
    }


def test_one_process(world: Path) -> None:
    for model, precision in ranks.CASES:
        assert ranks.count("single", world, model, precision, 1) == planned("single", world, model, precision)


def planned_checkpoint(name: str, world: Path, adapter: AdapterConfig | None = None) -> int:
    layout = read_layout(CLASSES[name], "32-true", 1 if name == "single" else ranks.RANKS)
    config = LanguageModelConfig(str(world / "saved"), adapter=adapter)
    return state_of(measure(config, layout, MicroBatch(1, 4), modes=(False,)).weights, layout).checkpoint()


@pytest.mark.parametrize(("adapter", "error"), [(None, 0.01), (AdapterConfig(head=True), 0.02)])
def test_a_checkpoint_of_one_process(adapter: AdapterConfig | None, error: float, world: Path, tmp_path: Path) -> None:
    """Weights and both moments of what is trained; an adapter's names and shapes are more beside it."""
    planned = planned_checkpoint("single", world, adapter)
    assert ranks.save("single", world, tmp_path, 1, adapter) == pytest.approx(planned, rel=error)


def in_two_ranks(name: str) -> object:
    """In CI one of each way to divide a model."""
    return pytest.param(name, marks=pytest.mark.slow if name in ("fsdp2", "zero2", "zero3") else pytest.mark.long)


@pytest.mark.parametrize("name", [in_two_ranks(name) for name in CLASSES if name != "single"])
def test_two_ranks(name: str, world: Path, tmp_path: Path) -> None:
    launch("tests.planning.ranks", name, world, tmp_path)
    for rank in range(ranks.RANKS):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        for (model, precision), held in zip(ranks.CASES, found["held"], strict=True):
            assert held == planned(name, world, model, precision, rank), (model, precision, rank)
        assert found["saved"] == pytest.approx(planned_checkpoint(name, world), rel=0.01)
