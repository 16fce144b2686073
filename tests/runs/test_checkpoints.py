"""Which checkpoint of a run is meant."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ts2_lightning.runs.checkpoints import exported_checkpoint


@pytest.mark.parametrize(
    ("callbacks", "name"),
    [
        (None, "last.ckpt"),
        ([{"class_path": "ts2_lightning.callbacks.ExportHuggingFace", "init_args": {"dtype": "float32"}}], "last.ckpt"),
        ([{"class_path": "Other", "init_args": {"which": "best"}}], "last.ckpt"),
        ([{"class_path": "ts2_lightning.callbacks.ExportHuggingFace", "init_args": {"which": "best"}}], "best.ckpt"),
    ],
)
def test_the_checkpoint_that_is_exported(tmp_path: Path, callbacks: Any, name: str) -> None:
    config = {"trainer": {"callbacks": callbacks}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert exported_checkpoint(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    for step, link in ((1, "best.ckpt"), (2, "last.ckpt")):
        file = tmp_path / "checkpoints" / f"step-00000{step}.ckpt"
        torch.save({}, file)
        file.with_name(link).symlink_to(file.name)
    found = exported_checkpoint(tmp_path)
    assert found is not None
    assert found.name == name
    (tmp_path / "checkpoints" / "best.ckpt").unlink()
    newest = exported_checkpoint(tmp_path)
    assert newest is not None
    assert newest.name == "last.ckpt"
