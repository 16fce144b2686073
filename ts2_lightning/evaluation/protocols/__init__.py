"""Protocols: a file each, and what they share (`base`, `items`, `data`, `scores`)."""

from ts2_lightning.evaluation.protocols.base import Protocol
from ts2_lightning.evaluation.protocols.data import DataSet, Row
from ts2_lightning.evaluation.protocols.items import Answered, Estimate, Item, Part, Sampling, Scored
from ts2_lightning.evaluation.protocols.right_answers import estimate_right_answers, right_answer_values

__all__ = [
    "Answered",
    "DataSet",
    "Estimate",
    "Item",
    "Part",
    "Protocol",
    "Row",
    "Sampling",
    "Scored",
    "estimate_right_answers",
    "right_answer_values",
]
