"""Objectives in trainers that other libraries bring: transformers' `Trainer`, and TRL's `SFTTrainer`.

In: their trainers, models and batches; out: losses for them to differentiate. The table of rooms in
docs/architecture.md says what it may import. Not here: formulas, engines, and our own training. Users import
`ts2_lightning.integrations.transformers`.
"""

from ts2_lightning.integrations.transformers import TokenLossMixin, compute_loss_func

__all__ = ["TokenLossMixin", "compute_loss_func"]
