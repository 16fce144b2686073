"""Grid files: one base configuration, axes, seeds and measures become trainings and the rows of a report."""

from ts2_lightning.experiments.grid.objects import GRID, BaseModel, Grid, Point, Training
from ts2_lightning.experiments.grid.reading import read_grid

__all__ = ["GRID", "BaseModel", "Grid", "Point", "Training", "read_grid"]
