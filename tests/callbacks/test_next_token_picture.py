"""Pictures of next tokens: where they go and when; what is in them is in `test_diagnostics.py`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.modules.normaliser import Memory
from tests.support.errors import refused
from tests.support.training import make_trainer
from ts2_lightning.callbacks import NextTokenPicture, next_token_picture
from ts2_lightning.data import SFTData
from ts2_lightning.modules import LanguageModelConfig, SFTModule
from ts2_lightning.types import UserError


class Album(Memory):
    """A logger that takes images, as W&B's does; the first `refusals` fail."""

    def __init__(self, refusals: int = 0) -> None:
        super().__init__()
        self.refusals, self.asked = refusals, 0
        self.pages: list[tuple[int, str, Any]] = []

    def log_image(self, key: str, images: list[Any], step: int) -> None:
        self.asked += 1
        if self.asked <= self.refusals:
            raise ConnectionError("no route to host\nand more")
        self.pages += [(step, key, image) for image in images]


def fit(world: Path, directory: Path, callback: NextTokenPicture, **settings: Any) -> None:
    """Two steps of two micro-batches, with a validation after each of these: in the middle of a step, too."""
    model = str(world / "untied")
    rows = str(world / "train.jsonl")
    data = SFTData(train=rows, validation=rows, tokenizer=model, batch_size=16, micro_batch_size=8, limit_validation=4)
    trainer = make_trainer(directory, devices=1, callbacks=[callback], val_check_interval=1, **settings)
    trainer.fit(SFTModule(LanguageModelConfig(model)), data)


@pytest.fixture
def plain_pixels(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Drawn in no time: the titles of the panels of each picture that was asked for."""
    panels: list[list[str]] = []

    def pixels(distributions: dict[str, Any], *_: Any) -> Any:
        panels.append(list(distributions))
        return np.full((2, 3, 3), len(panels), dtype=np.uint8)

    monkeypatch.setattr(next_token_picture, "_pixels", pixels)
    return panels


def test_every_validation_is_a_picture_for_every_logger_that_takes_images(world: Path, tmp_path: Path) -> None:
    album, board = Album(), TensorBoardLogger(str(tmp_path), name="board", version="")
    fit(world, tmp_path, NextTokenPicture(["name a fruit"], top=4), logger=[Memory(), album, board])
    assert [(step, key) for step, key, _ in album.pages] == [(step, "next_token/0") for step in (0, 1, 2)]
    images = EventAccumulator(board.log_dir).Reload().Images("next_token/0")
    assert [image.step for image in images] == [0, 1, 2]
    picture = np.asarray(album.pages[2][2])
    assert (images[2].height, images[2].width) == picture.shape[:2]
    newest = (imread(tmp_path / "next_token/0.png")[..., :3] * 255).round()
    assert np.array_equal(newest, picture)
    assert picture.std() > 10
    assert not np.array_equal(picture, np.asarray(album.pages[0][2]))


def test_fewer_pictures_and_one_at_the_end(world: Path, tmp_path: Path, plain_pixels: list[list[str]]) -> None:
    album = Album()
    fit(world, tmp_path / "a", NextTokenPicture(["a", "b"], every_n_validations=4), logger=[album])
    assert [(step, key) for step, key, _ in album.pages] == [(2, "next_token/0"), (2, "next_token/1")]
    album = Album()
    fit(world, tmp_path / "b", NextTokenPicture(["a"], every_n_validations=9), logger=[album], limit_val_batches=0)
    assert [step for step, *_ in album.pages] == [2]
    assert plain_pixels == [["start of the training", "step 2"]] * 3


def test_a_logger_that_refuses_an_image_is_told_once(
    world: Path, tmp_path: Path, plain_pixels: list[list[str]]
) -> None:
    album, other = Album(refusals=1), Album()
    said = r"Album takes no image next_token/0 \(no route to host\), and is given no more of them"
    with pytest.warns(UserWarning, match=said) as warned:
        fit(world, tmp_path, NextTokenPicture(["name a fruit"]), logger=[album, other])
    assert sum("takes no image" in str(one.message) for one in warned) == 1
    assert (album.asked, album.pages, len(other.pages)) == (1, [], 3)


def test_a_run_that_began_with_other_prompts(world: Path, tmp_path: Path, plain_pixels: list[list[str]]) -> None:
    from ts2_lightning.callbacks import Checkpoints

    model, rows = str(world / "untied"), str(world / "train.jsonl")

    def go(prompt: str, checkpoint: Path | None = None, steps: int = 2) -> None:
        data = SFTData(train=rows, tokenizer=model, batch_size=16)
        callbacks = [NextTokenPicture([prompt]), Checkpoints(str(tmp_path / "checkpoints"))]
        trainer = make_trainer(tmp_path, devices=1, callbacks=callbacks, max_steps=steps, max_epochs=9)
        trainer.fit(SFTModule(LanguageModelConfig(model)), data, ckpt_path=checkpoint, weights_only=False)

    go("name a fruit", steps=1)
    last = tmp_path / "checkpoints/last.ckpt"
    with pytest.warns(UserWarning, match=r"start\.npz is not of these prompts, as the run began without them"):
        go("name a city", last)
    go("name a fruit", last, steps=3)
    assert plain_pixels == [["start of the training", "step 1"], ["step 2"], ["start of the training", "step 3"]]


def test_prompts_that_are_too_many() -> None:
    with refused("NextTokenPicture: prompts must be 16 at most, as each is drawn at every validation, got 17"):
        NextTokenPicture(["a"] * 17)
    with refused("NextTokenPicture: prompts must not be empty"):
        NextTokenPicture([])


def test_without_a_tokenizer(world: Path, tmp_path: Path) -> None:
    model, rows = str(world / "untied"), tmp_path / "ids.jsonl"
    rows.write_text('{"input_ids": [3, 4, 5], "labels": [-100, 4, 5]}\n' * 4)
    trainer = make_trainer(tmp_path, devices=1, callbacks=[NextTokenPicture(["a"])])
    with pytest.raises(UserError, match=r"NextTokenPicture needs a tokenizer; set data\.tokenizer"):
        trainer.fit(SFTModule(LanguageModelConfig(model)), SFTData(train=str(rows), format="tokens", batch_size=4))
