"""What `predict` leaves says which row it is of, also where a row became several texts."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ts2_lightning.cli.predictions import PredictionFile
from ts2_lightning.data import SFTData
from ts2_lightning.data.counts import Counts


@pytest.mark.parametrize("unrolled", [0, 2])
def test_places_of_texts(unrolled: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [0, 2, 2, 5, 5] if unrolled else [0, 1, 2, 5, 7]
    texts = SimpleNamespace(counts=Counts(unrolled=unrolled), places=np.array(places))
    data = SFTData()
    monkeypatch.setattr(data, "rows", lambda name: {"predict": texts}[name])
    trainer: Any = SimpleNamespace(
        distributed_sampler_kwargs=None, world_size=1, global_rank=0, is_global_zero=True, datamodule=data,
        strategy=SimpleNamespace(barrier=lambda name: None),
    )  # fmt: skip
    file = PredictionFile(tmp_path)
    file.on_predict_start(trainer, None)  # type: ignore[arg-type]
    for rows in ([3, 4], [0, 1, 2]):
        file.on_predict_batch_end(trainer, None, [{"row": row, "token": [row]} for row in rows], None, 0)  # type: ignore[arg-type]
    file.on_predict_end(trainer, None)  # type: ignore[arg-type]
    lines = [json.loads(line) for line in (tmp_path / PredictionFile.NAME).read_text().splitlines()]
    assert [line["row"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line.get("place") for line in lines] == (places if unrolled else [None] * 5)
