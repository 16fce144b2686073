"""Metrics: what is measured, independent of losses and of training."""

from ts2_lightning.metrics.token_means import TokenMeans

__all__ = ["TokenMeans"]
