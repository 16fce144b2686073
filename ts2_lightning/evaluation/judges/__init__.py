"""Judges: models and rules that say what a response is worth, where no right answer can be compared with it.

A judge is a model that is asked, so what it says are responses, kept and made as all others are: any number of
processes share them, and nothing that was asked once is asked again.
"""

from ts2_lightning.evaluation.judges.base import AskedJudge, Case, Judge, JudgeCost, Verdict
from ts2_lightning.evaluation.judges.chat import ChatJudge, ChatSettings
from ts2_lightning.evaluation.judges.questions import JudgePrompt, Label, Parser, Rating, label, rating
from ts2_lightning.evaluation.judges.spending import spending_limit

__all__ = [
    "AskedJudge",
    "Case",
    "ChatJudge",
    "ChatSettings",
    "Judge",
    "JudgeCost",
    "JudgePrompt",
    "Label",
    "Parser",
    "Rating",
    "Verdict",
    "label",
    "rating",
    "spending_limit",
]
