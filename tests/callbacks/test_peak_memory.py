"""Neither a checkpoint nor an export holds a second model in memory."""

import json
from pathlib import Path

import pytest

from tests.support.ranks import launch


@pytest.mark.slow
def test_a_checkpoint_and_an_export_take_little_memory(tmp_path: Path) -> None:
    """Weights of 130 MB, the largest of which has 2; a file of all of them in bfloat16 would have 65."""
    grown = json.loads(launch("tests.callbacks.peak_memory", tmp_path).splitlines()[-1])
    assert grown["weights"] > 100e6
    assert (tmp_path / "export" / "model.safetensors").stat().st_size > grown["weights"] / 2
    for way in ("at once", "in a thread"):
        assert (tmp_path / way / "checkpoints" / "last.ckpt").stat().st_size > 3 * grown["weights"]
    assert max(grown["at once"]) < grown["weights"] / 3
    first, second, *_ = grown["in a thread"]
    assert 2.9 * grown["weights"] < first < 3.3 * grown["weights"], "a copy of weights and moments"
    assert second < grown["weights"] / 3, "whose memory is used again"
    assert grown["export"] < grown["weights"] / 3
