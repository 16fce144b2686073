"""The LightningModule, and the model, optimizer and schedule it is made of."""

from ts2_lightning.modules.config import AdamWConfig, AdapterConfig, LanguageModelConfig, ScheduleConfig
from ts2_lightning.modules.sft import SFTModule

__all__ = ["AdamWConfig", "AdapterConfig", "LanguageModelConfig", "SFTModule", "ScheduleConfig"]
