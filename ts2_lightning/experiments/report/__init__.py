"""Reports on collections of runs: tables, pictures and data; rows are compared seed by seed.

`collect` finds runs and puts those that differ in their seeds alone into rows; `write_report` writes what they come to.

| file | what it knows |
| --- | --- |
| `runs` | what a run's directory says |
| `grids`, `rows`, `grouping`, `collect` | which runs are one row, and what it is called: by the grid, or by the settings that differ |
| `statistics` | means and paired differences |
| `choices` | which values, planes and curves are shown where nobody has said, and what is asked for and not there |
| `meanings` | what values are, in words |
| `tables`, `markdown`, `records` | the text and the data |
| `looks`, `figures`, `curves`, `distributions` | the pictures |
| `write` | the files |
"""  # noqa: E501

from ts2_lightning.experiments.report.choices import asked, settled
from ts2_lightning.experiments.report.collect import collect
from ts2_lightning.experiments.report.results import Missing, Results, Row, Run, Settings
from ts2_lightning.experiments.report.write import write_report

__all__ = ["Missing", "Results", "Row", "Run", "Settings", "asked", "collect", "settled", "write_report"]
