"""Models compared on the questions of protocols, from what is measured on disk; nothing is asked or scored here.

`ways` says what was measured alike, `pairs` how much two models differ and how sure that is, `contrasts` at which
questions they differ most, `tables`, `picture` and `sections` show it.
"""

from ts2_lightning.evaluation.comparison.contrasts import Contrast, Texts, asks_questions, contrasts_of, protocol_of
from ts2_lightning.evaluation.comparison.pairs import LEVEL, Pair, compare_all
from ts2_lightning.evaluation.comparison.picture import draw_forest
from ts2_lightning.evaluation.comparison.sections import sections_of
from ts2_lightning.evaluation.comparison.tables import as_csv, as_markdown, as_text, remarks
from ts2_lightning.evaluation.comparison.ways import Entrant, Way, ways_of

__all__ = [
    "LEVEL",
    "Contrast",
    "Entrant",
    "Pair",
    "Texts",
    "Way",
    "as_csv",
    "as_markdown",
    "as_text",
    "asks_questions",
    "compare_all",
    "contrasts_of",
    "draw_forest",
    "protocol_of",
    "remarks",
    "sections_of",
    "ways_of",
]
