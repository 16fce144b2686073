"""Reports on collections of runs: tables, pictures and data; rows are compared seed by seed.

`collect` finds runs and puts those that differ in their seeds alone into rows; `write_report` writes what they come to.

| file | what it does |
| --- | --- |
| `runs` | reads a run's directory |
| `collect`, `rows` | which runs are one row, and what it is called: by the grid, or by the settings that differ |
| `results` | rows, and one long table of their values |
| `statistics` | means and paired differences |
| `baselines` | what each row is compared with |
| `fronts`, `frontiers` | fronts, and diversity at a quality: of points, and of the rows along dials |
| `best` | the best choice of an axis, chosen on some seeds and reported on others |
| `settings` | which values, planes and curves are shown where nobody has said, and what is asked for and not there |
| `tables`, `frontier_tables`, `markdown` | the text |
| `figures`, `learning_curves`, `frontier_pictures`, `distributions` | the pictures |
| `page`, `frontier_page` | the page |
| `data` | the data |
| `write` | the files |
"""

from ts2_lightning.studies.report.collect import collect
from ts2_lightning.studies.report.results import Missing, Results, Row, Run, Settings
from ts2_lightning.studies.report.settings import complete_settings, override_settings
from ts2_lightning.studies.report.write import write_report

__all__ = [
    "Missing",
    "Results",
    "Row",
    "Run",
    "Settings",
    "collect",
    "complete_settings",
    "override_settings",
    "write_report",
]
