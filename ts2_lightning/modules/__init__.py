"""The LightningModule, and the model, optimizer and schedule it is made of.

In: a model's directory or name, settings, batches; out: a training step, and what it measured. It may import `ops`,
`losses`, `engines`, `metrics` and `strategies` (and what every room may). Not here: rows, runs on disk, callbacks.
"""

from ts2_lightning.modules.config import AdamWConfig, AdapterConfig, LanguageModelConfig, ScheduleConfig
from ts2_lightning.modules.sft import SFTModule

__all__ = ["AdamWConfig", "AdapterConfig", "LanguageModelConfig", "SFTModule", "ScheduleConfig"]
