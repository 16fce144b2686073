"""Protocols: a file each, and what they share.

`base`, `items`, `data`, `asking`, `scores` and `stored` are of all, `right_answers` of those that know the answer,
`judged` and `rewarded` of those whose responses a judge rates. `tables`, `pictures`, `differences` and `sections` show
them. What reads an answer is in `evaluation/answers`, what rates a response in `evaluation/judges`.
"""

from ts2_lightning.evaluation.protocols.base import Protocol
from ts2_lightning.evaluation.protocols.data import DataSet, Row
from ts2_lightning.evaluation.protocols.items import Answered, Estimate, Item, Part, Sampling, Scored
from ts2_lightning.evaluation.protocols.judged import JudgedProtocol
from ts2_lightning.evaluation.protocols.right_answers import estimate_right_answers, right_answer_values

__all__ = [
    "Answered",
    "DataSet",
    "Estimate",
    "Item",
    "JudgedProtocol",
    "Part",
    "Protocol",
    "Row",
    "Sampling",
    "Scored",
    "estimate_right_answers",
    "right_answer_values",
]
