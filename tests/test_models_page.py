"""What docs/models.md says of each type of model is true of a small model of that type."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tests.modules.architectures import ARCHITECTURES, MIXTURES, OTHER_KINDS, SEEING, random_model
from tests.modules.test_expert_adapters import PARTLY_DENSE
from tests.support.errors import refused
from ts2_lightning.engines import ChunkedEngine
from ts2_lightning.losses import CrossEntropyLoss
from ts2_lightning.modules import AdapterConfig, LanguageModelConfig
from ts2_lightning.modules.adapters import adapted_weights, add_adapter
from ts2_lightning.modules.isolation import keeps_rows_apart
from ts2_lightning.modules.language_model import load_language_model
from ts2_lightning.modules.network import SFTNetwork
from ts2_lightning.modules.router import check_router_loss
from ts2_lightning.modules.text_part import is_below
from ts2_lightning.planning.counting import MicroBatch
from ts2_lightning.planning.layout import read_layout
from ts2_lightning.planning.model import measure
from ts2_lightning.types import UserError

PAGE = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
GPT2 = transformers.GPT2Config(
    vocab_size=97, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, attn_pdrop=0, embd_pdrop=0,
    resid_pdrop=0,
)  # fmt: skip
PALIGEMMA = transformers.PaliGemmaConfig(
    text_config={**ARCHITECTURES["qwen3"].to_diff_dict(), "model_type": "gemma"},
    vision_config={**SEEING["gemma3"].vision_config.to_diff_dict(), "model_type": "siglip_vision_model"},
)
CONFIGS: dict[str, PreTrainedConfig] = {
    config.model_type: config
    for config in (*ARCHITECTURES.values(), *MIXTURES.values(), *PARTLY_DENSE.values(), *SEEING.values(), GPT2)
} | MIXTURES


class Row(NamedTuple):
    """A row of the table for one type of model."""

    model_type: str
    not_trained: set[str]
    linear: set[str]
    experts: set[str]
    router: str
    packing: str
    plan: str


def names(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def rows() -> Iterator[Row]:
    section = PAGE.partition("## What is trained")[2].partition("\n## ")[0]
    for line in re.findall(r"^\| `.*", section, re.MULTILINE):
        types, *cells = (cell.strip() for cell in line.strip("| ").replace("| |", "|  |").split(" | "))
        for model_type in re.findall(r"`([^`]+)`", types):
            not_trained, linear, experts, *words = cells
            yield Row(model_type, names(not_trained), names(linear), names(experts), *words)


ROWS = {row.model_type: row for row in rows()}


def adapted_names(model: PreTrainedModel) -> set[str]:
    return {name.removesuffix(".weight") for name in adapted_weights(model)}


def test_the_table_has_the_types_that_are_tested_elsewhere() -> None:
    assert ROWS.keys() == CONFIGS.keys()
    assert len(ROWS) > 25
    for row in ROWS.values():
        assert {row.router, row.packing, row.plan} <= {"yes", "refused"}, row


@pytest.mark.parametrize("model_type", ROWS)
def test_what_is_trained_and_adapted(model_type: str, tmp_path: Path) -> None:
    row = ROWS[model_type]
    random_model(CONFIGS[model_type]).save_pretrained(tmp_path)
    model = load_language_model(LanguageModelConfig(str(tmp_path), dtype="float64", attn_implementation="eager"))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if is_below(name, sorted(row.not_trained))}
    assert all(any(is_below(name, [place]) for name in frozen) for place in row.not_trained)
    linear = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not model.get_output_embeddings()
    }
    inside = {name for name in linear if not is_below(name, sorted(row.not_trained))}
    experts = {name for name, p in model.named_parameters() if p.dim() == 3 and name not in frozen}
    assert {name.rpartition(".")[2] for name in inside} == row.linear
    assert {".".join(name.split(".")[-2:]) for name in experts} == row.experts
    other = copy.deepcopy(model)
    add_adapter(model, AdapterConfig(r=2))
    assert adapted_names(model) == inside
    if row.experts:
        add_adapter(other, AdapterConfig(r=2, target_parameters="all-experts"))
        assert adapted_names(other) == inside | {name.removesuffix(".weight") for name in experts}


@pytest.mark.parametrize("model_type", ROWS)
def test_routers_packing_and_plan(model_type: str, tmp_path: Path) -> None:
    row, config = ROWS[model_type], CONFIGS[model_type]
    model = random_model(config).eval()
    if row.router == "yes":
        check_router_loss(model, 0.5)
    else:
        with pytest.raises(UserError, match="no loss of the routers"):
            check_router_loss(model, 0.5)
    apart = keeps_rows_apart(SFTNetwork(model, CrossEntropyLoss(), ChunkedEngine()))
    assert apart == (row.packing == "yes")
    config.save_pretrained(tmp_path)
    lm, batch = LanguageModelConfig(str(tmp_path)), MicroBatch(2, 8)
    if row.plan == "yes":
        assert measure(lm, read_layout("auto", None, 1), batch).layers == 2
    else:
        with pytest.raises(UserError, match="cannot be counted"):
            measure(lm, read_layout("auto", None, 1), batch)


def test_what_is_refused(tmp_path: Path) -> None:
    """Each type that the page names, by a model of it in a directory."""
    said = names(PAGE.partition("\nRefused, in one line")[2].partition("\n## ")[0])
    made = {}
    for kind in OTHER_KINDS.values():
        model = kind()
        model.save_pretrained(tmp_path / model.config.model_type)
        made[model.config.model_type] = tmp_path / model.config.model_type
    for config in (PALIGEMMA, transformers.AyaVisionConfig()):
        config.architectures = ["SomeForConditionalGeneration"]
        config.save_pretrained(tmp_path / config.model_type)
        made[config.model_type] = tmp_path / config.model_type
    assert said <= made.keys()
    assert len(said) == 9
    for model_type in said:
        with refused("decoder-only causal language model is needed"):
            load_language_model(LanguageModelConfig(str(made[model_type])))
