"""What trained models answer, and what their token distributions look like.

In come models and rows; out go measured values, which are files beside the model. Nothing here trains a model, and
nothing here knows of grids or of the command line.
"""

from ts2_lightning.evaluation.descriptions import describe, described, described_by
from ts2_lightning.evaluation.measure import Measure, Measured
from ts2_lightning.evaluation.model import Model
from ts2_lightning.evaluation.prompts import Prompt, Question
from ts2_lightning.evaluation.registry import Spec, check_spec, registered_measures
from ts2_lightning.evaluation.results import files_of, make_measures, place_of

__all__ = [
    "Measure",
    "Measured",
    "Model",
    "Prompt",
    "Question",
    "Spec",
    "check_spec",
    "describe",
    "described",
    "described_by",
    "files_of",
    "make_measures",
    "place_of",
    "registered_measures",
]
