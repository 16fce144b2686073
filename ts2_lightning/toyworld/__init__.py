"""The toy world: a small world of requests whose plausible answers are all known, as a plug-in.

It comes in through the doors that any package has (`ts2_lightning.plugins`): sources of rows, a base model, exact
measures, and a domain of requests. No other room says its name.
"""

from typing import Any

from ts2_lightning.toyworld.cache import (
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
from ts2_lightning.toyworld.doors import ToyWorldModels, ToyWorldSources
from ts2_lightning.toyworld.rows import held_out_items
from ts2_lightning.toyworld.tokenizer import build_tokenizer, model_config, write_blank_model
from ts2_lightning.toyworld.world import CLOSED_TASKS, Family, Item, World, load_world

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


def sources() -> dict[str, Any]:
    """The world's rows, by sources such as `toyworld:train?seed=0`."""
    return {"toyworld": ToyWorldSources()}


def models() -> dict[str, Any]:
    """The world's base model, by names such as `toyworld?seed=1`."""
    return {"toyworld": ToyWorldModels()}


def measures() -> dict[str, Any]:
    """The exact measures of the world."""
    from ts2_lightning.toyworld.measure import ToyWorld, ToyWorldDecoded

    return {ToyWorld.name: ToyWorld, ToyWorldDecoded.name: ToyWorldDecoded}


def domains() -> dict[str, Any]:
    """The world's requests, whose plausible answers are all known."""
    from ts2_lightning.toyworld.domain import ToyWorldDomain

    return {"toyworld": ToyWorldDomain()}
