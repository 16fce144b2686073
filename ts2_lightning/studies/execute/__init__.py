"""Does what is left of a grid: on this machine, or on a cluster of SLURM."""

from collections.abc import Sequence

from ts2_lightning.studies.execute.board import Board
from ts2_lightning.studies.execute.local import run_locally
from ts2_lightning.studies.execute.task import Failure, tasks_of
from ts2_lightning.studies.grid import Grid, Point

__all__ = ["Failure", "execute"]


def execute(
    grid: Grid, points: Sequence[Point], parallel: int = 1, slurm: bool = False, device: str | None = None
) -> list[Failure]:
    """Trains and measures whatever is not done yet of the base model and of some points, and shows how far it is.

    A run that fails leaves its log and `failed.json`, and the others go on; the next call tries it again.

    Args:
        grid: the grid to which the points belong; its `grid.json` has been written.
        points: those to be done.
        parallel: runs at a time on this machine.
        slurm: submit them to SLURM instead, and wait.
        device: where models are measured; None: where `measure` likes.

    Returns:
        What failed, in the order in which it did.

    Raises:
        Stopped: if it was told to end, by Ctrl-C or SIGTERM; nothing that it has started runs on.
        UserError: if a run cannot be locked, or not be submitted.
    """
    tasks = tasks_of(grid, points, device)
    if slurm:
        from ts2_lightning.studies.execute.slurm import run_on_slurm

        with Board(tasks, parallel=len(tasks)) as board:
            return run_on_slurm(tasks, grid, board)
    with Board(tasks, parallel) as board:
        return run_locally(tasks, parallel, board)
