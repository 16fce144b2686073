"""The toy world's rows and base model, as plug-ins offer them."""

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ts2_lightning.plugins import ModelScheme, SourceScheme
from ts2_lightning.toyworld.cache import base_directory, parse_source, resolve_source, seed_of, world_hash
from ts2_lightning.toyworld.tokenizer import build_tokenizer, model_config, write_blank_model
from ts2_lightning.toyworld.world import load_world


class ToyWorldSources(SourceScheme):
    """Rows of the world: `toyworld:train?seed=0`, `toyworld:validation`, `toyworld:test`, `toyworld:pretrain`."""

    title = "the toy world"

    def check(self, path: str) -> None:
        """Raises UserError for an unknown split, or a seed that cannot be one."""
        parse_source(path)

    def resolve(self, path: str) -> Path:
        """The file of the rows, which is written on first use."""
        return Path(resolve_source(path))

    def identity(self, path: str) -> list[Any]:
        """Split, seed and version of the world."""
        return [*parse_source(path), world_hash()]


class ToyWorldModels(ModelScheme):
    """The base model of the world: `toyworld`, or `toyworld?seed=1`."""

    def seed(self, path: str) -> int:
        """The seed that a path asks for; 0 where it names none."""
        _, mark, query = path.partition("?")
        return seed_of(query, f"model.lm.path {path!r}") if mark else 0

    def check(self, path: str) -> None:
        """Raises UserError for anything behind the name but a seed."""
        self.seed(path)

    def locate(self, path: str) -> Path:
        """The directory of the base model, which is trained on first use; that takes minutes."""
        from ts2_lightning.toyworld.base import ensure_base

        return ensure_base(self.seed(path))

    def config(self) -> PretrainedConfig:
        """The config of the base model."""
        return model_config()

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The world's tokenizer."""
        return build_tokenizer()

    def write_blank(self, directory: Path) -> Path:
        """Writes config and tokenizer, without weights."""
        return Path(write_blank_model(directory))

    def identity(self, path: str) -> list[Any]:
        """The path, the version of the world, and how the base model is trained."""
        return [path, world_hash(), base_directory(0, load_world().settings["pretraining"]).name]

    def text_template(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Sentences of the pretraining text, since the base model has never seen a chat."""
        from ts2_lightning.toyworld.domain import text_template

        return text_template(tokenizer)
