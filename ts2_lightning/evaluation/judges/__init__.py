"""Judges: models and rules that say what a response is worth, where no right answer can be compared with it.

A judge is a model that is asked, so what it says are responses, kept and made as all others are: any number of
processes share them, and nothing that was asked once is asked again.
"""

from ts2_lightning.evaluation.judges.base import AskedJudge, Case, Judge, JudgeCost, Verdict

__all__ = ["AskedJudge", "Case", "Judge", "JudgeCost", "Verdict"]
