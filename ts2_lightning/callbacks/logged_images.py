"""Images to every logger that takes them."""

from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from numpy.typing import NDArray
from PIL import Image


class LoggedImages:
    """Hands images to TensorBoard, MLflow, and loggers with a `log_image` as W&B's has; others take none.

    A logger that refuses one is not asked again: it is told once, and training goes on.
    """

    def __init__(self) -> None:
        self._refusing: set[int] = set()

    def add(self, logger: Logger, name: str, image: NDArray[np.uint8], step: int) -> None:
        """Logs an image.

        Args:
            logger: Any of Lightning's loggers.
            name: Name under which images of several steps are one series.
            image: Pixels [height, width, 3].
            step: Optimizer steps done.
        """
        if id(logger) in self._refusing:
            return
        try:
            _log(logger, name, image, step)
        except Exception as error:  # whatever a server or its client may raise
            self._refusing.add(id(logger))
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            rank_zero_warn(f"{type(logger).__name__} takes no image {name} ({reason}), and is given no more of them")


def _log(logger: Any, name: str, image: NDArray[np.uint8], step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, image, step, dataformats="HWC")
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, Image.fromarray(image), key=name, step=step)
    elif callable(getattr(logger, "log_image", None)):
        logger.log_image(name, [Image.fromarray(image)], step=step)
