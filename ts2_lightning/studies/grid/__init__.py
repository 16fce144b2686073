"""Grid files: one base configuration, axes, seeds and measures become trainings and the rows of a report.

`schema`, `reported` and `frontiers` describe a file, `rows` makes its rows, `resolve` their trainings; `identity` says
which are the same.
"""

from ts2_lightning.studies.grid.resolve import GRID, BaseModel, Grid, Point, Training, read_grid

__all__ = ["GRID", "BaseModel", "Grid", "Point", "Training", "read_grid"]
