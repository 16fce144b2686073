"""The toy world: an embedded language model world whose plausible answers are known.

Data sources (`resolve_source`), tokenizer and blank model (`build_tokenizer`, `write_blank_model`), and the facts
themselves (`load_world`). The exact measures are in `ts2_lightning.toyworld.exact`.
"""

from ts2_lightning.data.toyworld.cache import (
    base_directory,
    building_directory,
    cache_directory,
    is_complete,
    parse_source,
    publish,
    resolve_source,
    seed_of,
    world_hash,
)
from ts2_lightning.data.toyworld.rows import held_out_items
from ts2_lightning.data.toyworld.tokenizer import build_tokenizer, model_config, write_blank_model
from ts2_lightning.data.toyworld.world import CLOSED_TASKS, Family, Item, World, load_world

__all__ = [
    "CLOSED_TASKS",
    "Family",
    "Item",
    "World",
    "base_directory",
    "build_tokenizer",
    "building_directory",
    "cache_directory",
    "held_out_items",
    "is_complete",
    "load_world",
    "model_config",
    "parse_source",
    "publish",
    "resolve_source",
    "seed_of",
    "world_hash",
    "write_blank_model",
]
