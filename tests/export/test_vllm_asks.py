"""What vLLM asks of a model directory, checked on its files. vLLM itself was never run on one.

`config.json` names an architecture that it has; the tokenizer may be loaded by transformers 4, which does not know
`TokenizersBackend`; weights come from the safetensors files that the index names, under the names of the hub's
checkpoints; generation stops at `eos_token_id` of `generation_config.json`.
"""

import json
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.callbacks.tiny_llama import END, EOS, edit, write_base
from tests.export.stand_ins import load, save_checkpoint, settings, shake
from tests.export.test_hub_names import CONFIGS, random_model
from ts2_lightning.export import export_checkpoint
from ts2_lightning.export.companions import TOKENIZER_FILES
from ts2_lightning.modules import AdapterConfig, LanguageModelConfig
from ts2_lightning.modules.language_model import load_language_model


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def names_by_file(directory: Path) -> dict[str, set[str]]:
    found = {}
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            found[file.name] = set(opened.keys())
    return found


def faults(directory: Path, base: Path) -> list[str]:
    """What vLLM would stumble over, or do otherwise than with the base model."""
    found = []
    config, original = read(directory / "config.json"), read(base / "config.json")
    for key in ("architectures", "model_type", "vocab_size", "tie_word_embeddings"):
        if config.get(key) != original.get(key):
            found.append(f"config.json: {key}")
    if {"auto_map", "quantization_config"} & config.keys():
        found.append("config.json: custom code, or quantisation")
    if config["dtype"] not in ("bfloat16", "float16", "float32"):
        found.append("config.json: dtype")

    for file in base.iterdir():
        own = file.name in ("tokenizer_config.json", "chat_template.jinja")  # the template is in them
        if any(fnmatch(file.name, pattern) for pattern in TOKENIZER_FILES) and not own:
            copy = directory / file.name
            if not copy.is_file() or copy.read_bytes() != file.read_bytes():
                found.append(f"tokenizer: {file.name}")
    if read(directory / "tokenizer_config.json").get("tokenizer_class") == "TokenizersBackend":
        found.append("tokenizer: a class that only transformers 5 knows")
    if not (directory / "chat_template.jinja").is_file():
        found.append("chat template")
    eos = read(directory / "generation_config.json").get("eos_token_id")
    if not {EOS, END} <= set(eos if isinstance(eos, list) else [eos]):
        found.append("generation_config.json: eos_token_id")

    files = names_by_file(directory)
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        claimed = read(index)["weight_map"]
        if claimed != {name: file for file, names in files.items() for name in names}:
            found.append("index")
    elif list(files) != ["model.safetensors"]:
        found.append("several files without an index")
    if set().union(*files.values()) != set().union(*names_by_file(base).values()):
        found.append("weight names")
    return found


@pytest.fixture(params=["llama", "llama, tied", "one to many"])
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """An export in several files, and its base model."""
    base = write_base(tmp_path / "base")
    edit(base / "tokenizer_config.json", tokenizer_class="TokenizersBackend")
    (base / "model.safetensors").unlink()
    random_model(CONFIGS[request.param]).save_pretrained(base, max_shard_size=9000)
    edit(base / "generation_config.json", eos_token_id=EOS)
    trained = load(base)
    shake(trained)
    checkpoint = save_checkpoint(trained, tmp_path / "last.ckpt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ts2_lightning.export.export.SHARD_BYTES", 7000)
        out = export_checkpoint(checkpoint, LanguageModelConfig(str(base)), tmp_path / "out", settings(base))
    return out, base


def test_nothing_to_stumble_over(exported: tuple[Path, Path]) -> None:
    assert faults(*exported) == []


def test_nor_in_a_merged_adapter(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tied=True)
    lm = LanguageModelConfig(str(base), adapter=AdapterConfig())
    model = load_language_model(lm)
    shake(model)
    out = export_checkpoint(save_checkpoint(model, tmp_path / "last.ckpt"), lm, tmp_path / "out", settings(base))
    assert faults(out, base) == []


@pytest.mark.parametrize(
    ("fault", "damage"),
    [
        ("config.json: architectures", lambda out: edit(out / "config.json", architectures=["LlamaModel"])),
        ("tokenizer: tokenizer.json", lambda out: edit(out / "tokenizer.json", version="2.0")),
        ("tokenizer: a class", lambda out: edit(out / "tokenizer_config.json", tokenizer_class="TokenizersBackend")),
        ("chat template", lambda out: (out / "chat_template.jinja").unlink()),
        ("generation_config.json", lambda out: edit(out / "generation_config.json", eos_token_id=EOS)),
        ("weight names", lambda out: shutil.copy(out.parent / "other" / "model.safetensors", out)),
        ("several files", lambda out: shutil.copy(out / "model.safetensors", out / "model-2.safetensors")),
    ],
)
def test_the_check_finds_faults(tmp_path: Path, fault: str, damage: Callable[[Path], None]) -> None:
    base, _ = write_base(tmp_path / "base"), write_base(tmp_path / "other", tied=True)
    checkpoint = save_checkpoint(load(base), tmp_path / "last.ckpt")
    out = export_checkpoint(checkpoint, LanguageModelConfig(str(base)), tmp_path / "out", settings(base))
    assert faults(out, base) == []
    damage(out)
    assert [found.startswith(fault) for found in faults(out, base)] == [True]
