"""Fine-tune large language models without losing their diversity, and see why."""

__version__ = "0.1.0.dev0"
