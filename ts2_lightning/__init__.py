"""Fine-tune large language models without losing their diversity, and see why."""

__version__ = "0.2.0"
