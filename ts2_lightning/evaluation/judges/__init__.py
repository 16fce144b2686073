"""Judges: models and rules that say what a response is worth, where no right answer can be compared with it.

A judge is a model that is asked, so what it says are responses, kept and made as all others are: any number of
processes share them, and nothing that was asked once is asked again.
"""

from ts2_lightning.evaluation.judges.base import AskedJudge, Case, Judge, JudgeCost, Verdict
from ts2_lightning.evaluation.judges.chat import ChatJudge, ChatSettings
from ts2_lightning.evaluation.judges.equivalence import Equivalence, EquivalenceSettings, Unigram, make_equivalence
from ts2_lightning.evaluation.judges.questions import JudgePrompt, Label, Parser, Rating, TwofoldPrompt, label, rating
from ts2_lightning.evaluation.judges.refusal import Refusal
from ts2_lightning.evaluation.judges.reward import PAPERS_REWARD_MODEL, RewardModel, RewardSettings
from ts2_lightning.evaluation.judges.spending import spending_limit

__all__ = [
    "PAPERS_REWARD_MODEL",
    "AskedJudge",
    "Case",
    "ChatJudge",
    "ChatSettings",
    "Equivalence",
    "EquivalenceSettings",
    "Judge",
    "JudgeCost",
    "JudgePrompt",
    "Label",
    "Parser",
    "Rating",
    "Refusal",
    "RewardModel",
    "RewardSettings",
    "TwofoldPrompt",
    "Unigram",
    "Verdict",
    "label",
    "make_equivalence",
    "rating",
    "spending_limit",
]
