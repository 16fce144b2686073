"""Grid files: one base configuration, axes, seeds and measures become trainings and the rows of a report.

`schema`, `settings`, `reported` and `frontiers` describe a file, `rows` makes its rows, `resolve` their trainings;
`identity` says which are the same. `sweep` makes a grid of one line, without a file.
"""

from ts2_lightning.studies.grid.resolve import GRID, BaseModel, Grid, Point, Training, read_grid
from ts2_lightning.studies.grid.sweep import read_sweep

__all__ = ["GRID", "BaseModel", "Grid", "Point", "Training", "read_grid", "read_sweep"]
