"""The files beside the weights: config.json, generation settings, tokenizer, chat template."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from ts2_lightning.export.base_files import base_json, write_json
from ts2_lightning.json_files import read_json
from ts2_lightning.types import UserError

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges*.txt",
    "*.model",
    "*.tiktoken",
    "chat_template.jinja",
)
"""Patterns of the files that make up a tokenizer, in all the layouts transformers has had."""

ORIGIN = "export.json"
"""What the weights of an export are, where they are not simply those of a checkpoint."""

# Entries of the model's config that training may switch, and that are no property of the model itself.
_RUNTIME_KEYS = {"use_cache", "dtype", "torch_dtype", "transformers_version", "architectures", "quantization_config"}


def write_config(
    model: PreTrainedModel, directory: Path, base: str | None, revision: str | None, dtype: str, untied: bool
) -> None:
    """`config.json`: the base model's file, with the dtype and what training changed about the architecture."""
    now = model.config.to_dict()
    original = base_json(base, "config.json", revision)
    if original.get("model_type") != model.config.model_type:
        original = {}
    result = original or {key: value for key, value in model.config.to_diff_dict().items() if key not in _RUNTIME_KEYS}
    if original:
        kept = AutoConfig.for_model(**original).to_dict()
        changed = {key for key in now if key not in _RUNTIME_KEYS and not key.startswith("_")}
        result |= {key: now[key] for key in sorted(changed) if kept.get(key) != now[key]}
    result.pop("torch_dtype", None)
    result |= {"dtype": dtype, "architectures": [type(model).__name__]}
    if untied:
        result["tie_word_embeddings"] = False
    write_json(directory / "config.json", result)


def write_generation_config(
    model: PreTrainedModel,
    directory: Path,
    base: str | None,
    revision: str | None,
    end_of_turn_ids: Sequence[int],
) -> None:
    """`generation_config.json`: the base model's, which stops at the tokens that close a turn, too."""
    settings = base_json(base, "generation_config.json", revision)
    if not settings and model.generation_config is not None:
        settings = model.generation_config.to_diff_dict()
    # With this mark transformers would make the settings anew from config.json, and forget the closing
    # tokens.
    settings.pop("_from_model_config", None)
    eos = settings.get("eos_token_id")
    if eos is None:
        eos = model.config.eos_token_id
    present = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    ids = list(dict.fromkeys([*present, *(int(token) for token in end_of_turn_ids)]))
    if ids:
        settings["eos_token_id"] = ids[0] if len(ids) == 1 else ids
    write_json(directory / "generation_config.json", settings)


def write_origin(directory: Path, origin: Mapping[str, Any]) -> None:
    """`export.json`, if there is something that it has to say."""
    if origin:
        write_json(directory / ORIGIN, dict(origin))


@contextmanager
def tokenizer_files(tokenizer: PreTrainedTokenizerBase | None) -> Iterator[str | None]:
    """The source of a tokenizer: the directory or hub name it was loaded from, or a temporary directory."""
    if tokenizer is None or tokenizer.name_or_path:
        yield tokenizer.name_or_path if tokenizer is not None else None
        return
    with TemporaryDirectory() as directory:  # it was built, not loaded: there are no files but those it writes
        tokenizer.save_pretrained(directory)
        yield directory


def copy_tokenizer(source: str | Path, revision: str | None, directory: Path) -> None:
    """The tokenizer's own files, byte for byte.

    Args:
        source: directory or hub name of the tokenizer.
        revision: revision on the hub; None is the newest.
        directory: directory to copy them to.

    Raises:
        UserError: if there are none.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = _download_tokenizer(str(source), revision)
    files = [
        file
        for file in sorted(folder.iterdir())
        if file.is_file() and any(fnmatch(file.name, pattern) for pattern in TOKENIZER_FILES)
    ]
    if not any(file.name != "chat_template.jinja" for file in files):
        raise UserError(f"no tokenizer files in {source}: name the directory or hub model they come from")
    for file in files:
        shutil.copyfile(file, directory / file.name)  # follows the hub cache's links


def _download_tokenizer(name: str, revision: str | None) -> Path:
    """The tokenizer's files in the hub's cache, fetched where they are not there yet."""
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(TOKENIZER_FILES)))
    except (OSError, ValueError) as error:  # the hub's errors are of these kinds
        reason = " ".join(str(error).split())
        raise UserError(f"cannot find the tokenizer files of {name!r}, here or on the hub ({reason[:200]})") from error


def has_chat_template(directory: Path) -> bool:
    """Whether an export has a chat template, in a file of its own or in the tokenizer's."""
    config = directory / "tokenizer_config.json"
    return (directory / "chat_template.jinja").is_file() or (config.is_file() and "chat_template" in read_json(config))


def write_chat_template(directory: Path, template: str | None) -> None:
    """Put the trained template where every reader finds it, and leave no other one beside it."""
    if template is not None:
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    path = directory / "tokenizer_config.json"
    if not path.exists():
        return
    config = read_json(path)
    before = dict(config)
    if template is not None and "chat_template" in config:
        config["chat_template"] = template
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"  # its name everywhere else; transformers 5 knows both
    if config != before:
        write_json(path, config)
