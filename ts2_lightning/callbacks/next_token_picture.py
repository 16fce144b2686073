"""A picture of the next-token distributions at fixed prompts, at every validation."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor

from ts2_lightning.callbacks.forward_logits import read_logits
from ts2_lightning.callbacks.sample_generations import read_prompts
from ts2_lightning.ranges import COUNT, check_numbers
from ts2_lightning.runs.writing import write_whole
from ts2_lightning.types import Batch, UserError

MOST_PROMPTS = 16
"""Each is a picture at every validation."""


class NextTokenPicture(Callback):
    """Draws what the model thinks of at the first token of its answer, beside what it thought before training.

    A picture has two panels with the same tokens, the start of the training and now; probabilities on a logarithmic
    axis, a dot at each token in the support of sparsemax. One of each prompt is drawn after every validation within a
    training, and at the end of the training:

    - to every logger that takes images (TensorBoard, W&B, MLflow), as `next_token/0`, `next_token/1`, ...;
    - the newest of each to `next_token/0.png`, ... in the run's directory.

    It costs one forward pass of the prompts on all ranks, and on rank 0 about half a second of drawing for each
    picture; a training step costs what it did. The start's distributions are kept in `next_token/start.npz`, 4 bytes
    for each prompt and word of the vocabulary, for a run that goes on.

    Prompts are turns of a user, rendered as in training; without a chat template they are texts to go on with.

    Args:
        prompts: list of prompts, or a file with one in each line; 16 at most.
        opening: text with which the answer begins already: what follows it is shown.
        every_n_validations: validations from one picture to the next.
        top: number of tokens with a bar of their own.

    Raises:
        UserError: if an argument is out of its range; in training, if there is no tokenizer.

    Example:
        >>> picture = NextTokenPicture(["name a fruit", "name a city"], opening="the answer is")
    """

    def __init__(
        self, prompts: list[str] | str, opening: str = "", every_n_validations: int = 1, top: int = 15
    ) -> None:
        super().__init__()
        self.prompts = read_prompts(prompts, "NextTokenPicture")
        self.opening = opening
        self.every_n_validations = every_n_validations
        self.top = top
        check_numbers("NextTokenPicture: ", self, every_n_validations=COUNT, top=COUNT)
        if len(self.prompts) > MOST_PROMPTS:
            raise UserError(
                f"NextTokenPicture: prompts must be {MOST_PROMPTS} at most, as each is drawn at every validation, got "
                f"{len(self.prompts)}"
            )
        self.start: Tensor | None = None
        """On rank 0 the probabilities [P, K] at the P prompts before training; None where nobody has kept them."""
        self.latest: Tensor | None = None
        """Those of the latest picture."""
        self._validations = 0
        self._drawn_at: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the distributions of the start, or find those of the run that goes on."""
        from ts2_lightning.callbacks.logged_images import LoggedImages  # it imports what draws

        self._images = LoggedImages()
        self._validations, self._drawn_at = 0, None
        self._batch = _prompt_batch(trainer, self.prompts, self.opening)
        file = self._directory(trainer) / "start.npz"
        if trainer.global_step == 0:
            self.start = self._read(trainer, pl_module)
            if trainer.is_global_zero:
                write_whole(file, self._write_start)
        elif trainer.is_global_zero:
            self.start = self._stored_start(file)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, if it is due."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._validations += 1
        # Between two micro-batches of a step the model is that of the validation before.
        if self._validations % self.every_n_validations == 0 and self._drawn_at != trainer.global_step:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what the training came to."""
        if self._drawn_at != trainer.global_step:
            self._draw(trainer, pl_module)

    @staticmethod
    def _directory(trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / "next_token"

    def _read(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        """Probabilities [P, K] of the token that follows each prompt; on rank 0, the other ranks have none."""
        parts: list[Tensor] = [torch.empty(0)]
        read_logits(trainer, pl_module, [self._batch], lambda z, _: parts.append(z.float().softmax(-1).cpu()))
        return torch.cat(parts[1:] or parts)

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._drawn_at = trainer.global_step
        self.latest = now = self._read(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        from PIL import Image

        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        for number, prompt in enumerate(self.prompts):
            distributions = {} if self.start is None else {"start of the training": self.start[number].double()}
            distributions[f"step {trainer.global_step}"] = now[number].double()
            pixels = _pixels(distributions, data.tokenizer, self._title(prompt), self.top)
            for logger in trainer.loggers:
                self._images.add(logger, f"next_token/{number}", pixels, trainer.global_step)
            picture = Image.fromarray(pixels)
            place = self._directory(trainer) / f"{number}.png"
            write_whole(place, lambda beside, picture=picture: picture.save(beside, format="PNG"))  # type: ignore[misc]

    def _title(self, prompt: str) -> str:
        from ts2_lightning.evaluation.probes.figures import last_line

        where = f'next token after "{self.opening}"' if self.opening else "first token of the answer"
        return f'"{last_line(prompt)}"\n{where}'

    # -- the start, for a run that goes on

    @property
    def _digest(self) -> str:
        return hashlib.sha256(self._batch["input_ids"].numpy().tobytes()).hexdigest()

    def _write_start(self, beside: Path) -> None:
        assert self.start is not None
        with beside.open("wb") as file:
            np.savez(file, probabilities=self.start.numpy(), prompts=np.array(self._digest))

    def _stored_start(self, file: Path) -> Tensor | None:
        """Distributions of the start; None where it was not pictured, or at other prompts, which is told."""
        if file.is_file():
            with np.load(file, allow_pickle=False) as stored:
                if str(stored["prompts"]) == self._digest:
                    return torch.from_numpy(stored["probabilities"])
        rank_zero_warn(
            f"NextTokenPicture: {file} is not of these prompts, as the run began without them: its pictures have no "
            "panel of the start"
        )
        return None


def _prompt_batch(trainer: Trainer, prompts: list[str], opening: str) -> Batch:
    """One batch of all prompts, in which the token behind each of them is predicted."""
    from ts2_lightning.data.collate import collate
    from ts2_lightning.data.encoded_rows import EncodedRow

    data: Any = getattr(trainer, "datamodule", None)
    tokenizer, template = getattr(data, "tokenizer", None), getattr(data, "template", None)
    if tokenizer is None:
        raise UserError("NextTokenPicture needs a tokenizer; set data.tokenizer")
    rows = []
    for prompt in prompts:
        if template is None:
            ids = tokenizer(" ".join(filter(None, [prompt, opening])))["input_ids"]
        else:
            ids = template.render_prompt([{"role": "user", "content": prompt}], opening)
        span = np.array([[len(ids), len(ids) + 1]], dtype=np.int32)
        rows.append(EncodedRow(np.array([*ids, 0], dtype=np.int32), span))  # whatever follows, it is not looked at
    return collate(rows, list(range(len(rows))), divisor=len(rows), pad_id=data.pad_id)


def _pixels(distributions: dict[str, Tensor], tokenizer: Any, title: str, top: int) -> NDArray[np.uint8]:
    """The picture as pixels [height, width, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from ts2_lightning.evaluation.picture import distributions_figure
    from ts2_lightning.evaluation.probes.micro import token_text

    figure = distributions_figure(distributions, lambda token: token_text(tokenizer, token), title, top=top)
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
