"""What is measured of trained models: each measure one file, its settings a data class, its values flat names.

`check_spec` reads what is wanted, `make_measures` makes what is missing, `place_of` and `files_of` say where it is
kept, and `describe` what a value is called, what it means and which way is better.
"""

from ts2_lightning.experiments.measures.base import Measure
from ts2_lightning.experiments.measures.descriptions import DESCRIBED, RENAMED, describe
from ts2_lightning.experiments.measures.making import make_measures
from ts2_lightning.experiments.measures.results import files_of, place_of
from ts2_lightning.experiments.measures.spec import MEASURES, Spec, check_spec
from ts2_lightning.experiments.measures.target import Target

__all__ = [
    "DESCRIBED",
    "MEASURES",
    "RENAMED",
    "Measure",
    "Spec",
    "Target",
    "check_spec",
    "describe",
    "files_of",
    "make_measures",
    "place_of",
]
