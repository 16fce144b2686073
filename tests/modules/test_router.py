"""The loss of a mixture's routers: the number of transformers for a row alone, the same for any split of a step."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from lightning.pytorch.plugins import DoublePrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from tests.modules import normaliser
from tests.modules.architectures import ARCHITECTURES, MIXTURES, VOCABULARY, random_model
from tests.modules.normaliser import conversation
from tests.support.ranks import launch
from ts2_lightning.data.collate import collate
from ts2_lightning.data.encoded_rows import EncodedRow
from ts2_lightning.engines import ChunkedEngine
from ts2_lightning.losses import CrossEntropyLoss
from ts2_lightning.modules import LanguageModelConfig
from ts2_lightning.modules.language_model import load_language_model
from ts2_lightning.modules.network import SFTNetwork
from ts2_lightning.modules.router import (
    balance_of_rows,
    check_router_loss,
    has_routers,
    router_coefficient,
    tell_router_loss,
)
from ts2_lightning.modules.sharding import make_network
from ts2_lightning.toyworld import write_blank_model
from ts2_lightning.types import UserError

LENGTHS = (7, 2, 9, 5, 4)
COEFFICIENT = 0.5


def rows() -> list[EncodedRow]:
    """Of 2 to 9 tokens and one to six supervised ones, of unequal weights."""
    generator = np.random.default_rng(0)
    made = []
    for length in LENGTHS:
        ids = generator.integers(3, VOCABULARY, length).astype(np.int32)
        spans = np.array([[max(1, length // 3), length]], dtype=np.int32)
        made.append(EncodedRow(ids, spans, weight=float(generator.uniform(0.5, 2))))
    return made


def textbook(logits: Sequence[Tensor], top_k: int) -> Tensor:
    """E sum_e f_e P_e in float64, counted token by token: equations 4 to 6 of the Switch Transformer."""
    experts = logits[0].shape[-1]
    tokens = [token.double() for layer in logits for token in layer.reshape(-1, experts)]
    counts = [0] * experts
    for token in tokens:
        for expert in token.topk(top_k).indices.tolist():
            counts[expert] += 1
    mean = torch.stack([token.softmax(0) for token in tokens]).mean(0)
    return experts * sum((counts[e] / len(tokens) * mean[e] for e in range(experts)), start=mean.new_zeros(()))


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    result = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return result


def assert_same(result: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    """To the rounding of the routers, which calculate in float32 in any case."""
    assert result.keys() == wanted.keys()
    for name, tensor in wanted.items():
        scale = max(tensor.abs().max().item(), 1e-6)
        torch.testing.assert_close(result[name], tensor, rtol=0, atol=tolerance * scale, msg=name)


def network_of(model: PreTrainedModel, coefficient: float = COEFFICIENT) -> SFTNetwork:
    return SFTNetwork(model.train(), CrossEntropyLoss(), ChunkedEngine(3), coefficient)


def step(model: PreTrainedModel, parts: Sequence[Sequence[int]], packing: float | None = None) -> dict[str, Tensor]:
    """The gradients of the sum over a step's micro-batches; its value is among them."""
    network, made = network_of(model), rows()
    total = torch.zeros((), dtype=torch.float64)
    for part in parts:
        batch = collate([made[i] for i in part], list(part), 1, 0, packing)
        value = network(batch, ()).total
        value.backward()
        total += value.detach()
    return {**gradients(model), "the value": total}


# -- the number


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_each_row_is_the_number_of_transformers_for_it_alone(layers: int, top_k: int) -> None:
    generator = torch.Generator().manual_seed(layers)
    logits = [3 * torch.randn(2 * 12, 5, generator=generator) for _ in range(layers)]
    spans = torch.tensor([[0, 1], [12, 19], [1, 8], [19, 24]])  # places 8 to 11 are padding
    result = balance_of_rows(logits, spans, top_k)
    for value, (start, end) in zip(result, spans.tolist(), strict=True):
        alone = tuple(layer[start:end] for layer in logits)
        torch.testing.assert_close(value, load_balancing_loss_func(alone, 5, top_k))
        torch.testing.assert_close(value.double(), textbook(alone, top_k), rtol=1e-6, atol=0)


def test_gradients_of_rows_against_autograd_on_the_textbook_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(11, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    spans, factors = torch.tensor([[0, 3], [3, 4], [5, 11]]), torch.tensor([0.0, 2.0, -3.0], dtype=torch.float64)
    result = torch.autograd.grad((balance_of_rows(logits, spans, 2) * factors).sum(), logits)
    parts = [[layer[start:end] for layer in logits] for start, end in spans.tolist()]
    wanted = torch.autograd.grad(sum(f * textbook(part, 2) for f, part in zip(factors, parts, strict=True)), logits)
    torch.testing.assert_close(result, wanted, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(lambda *layers: balance_of_rows(layers, spans, 2), logits)


def test_what_autocast_and_narrow_logits_leave_exact() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    spans = torch.tensor([[0, 6]])
    with torch.autocast("cpu", torch.bfloat16):
        result = balance_of_rows([logits], spans, 2)
    assert result.dtype is torch.float32
    torch.testing.assert_close(result[0].double(), textbook([logits], 2), rtol=1e-6, atol=0)
    assert balance_of_rows([logits], spans[:0], 2).shape == (0,)


# -- in the network


@pytest.mark.parametrize("architecture", MIXTURES)
def test_the_gradient_of_a_step_against_rows_alone_in_float64(architecture: str) -> None:
    """The token-weighted sum over rows, from plain transformers: each row by itself, its logits and its routers'."""
    model = random_model(MIXTURES[architecture])
    result = step(model, [range(len(LENGTHS))])
    model.train()
    total = torch.zeros((), dtype=torch.float64)
    for row in rows():
        ids = torch.tensor(row.ids).long()
        output = model(input_ids=ids[None], use_cache=False, output_router_logits=True)
        losses = F.cross_entropy(output.logits[0, :-1], ids[1:], reduction="none")
        ((start, end),) = row.spans.tolist()
        balance = textbook(output.router_logits, model.num_experts_per_tok)
        torch.testing.assert_close(output.aux_loss.double(), balance, rtol=1e-5, atol=0)
        total = total + row.weight * losses[start - 1 : end - 1].sum() + (end - start) * COEFFICIENT * balance
    total.backward()
    assert_same(result, {**gradients(model), "the value": total.detach()})


@pytest.mark.parametrize("packing", [None, 12, np.inf])
@pytest.mark.parametrize("parts", [[[0, 1, 2, 3, 4]], [[3, 1], [4, 0], [2]], [[2], [0], [], [1], [3], [4]]])
def test_any_split_of_a_step_is_the_same(parts: list[list[int]], packing: float | None) -> None:
    """Micro-batches, an empty one among them, padded, packed, and free of padding."""
    model = random_model(MIXTURES["mixtral"])
    assert_same(step(model, parts, packing), step(model, [range(len(LENGTHS))]))


def test_checkpointed_layers_count_once() -> None:
    model = random_model(MIXTURES["qwen3_moe"])
    wanted = step(model, [range(len(LENGTHS))])
    model.activation_checkpointing_enable({"use_reentrant": False})
    assert_same(step(model, [range(len(LENGTHS))]), wanted)
    assert any("gate" in name and gradient.any() for name, gradient in wanted.items())


def test_the_objective_stays_pure_and_evaluation_without_it() -> None:
    config = copy.deepcopy(MIXTURES["mixtral"])
    config.output_router_logits = True  # as the config of a model that asks for it
    network = network_of(random_model(config))
    batch = collate(rows(), range(len(LENGTHS)), 1, 0)
    trained, without = network(batch), network_of(network.language_model, 0.0)(batch)
    assert torch.equal(trained.tokens["objective"], without.tokens["objective"])
    assert trained.router.shape == batch["labels"].shape
    torch.testing.assert_close(trained.total, without.total + COEFFICIENT * trained.router.sum())
    evaluated = network.eval()(batch)
    assert (evaluated.router, without.router) == (None, None)
    torch.testing.assert_close(evaluated.total, without.total)


# -- whether it is added


def config_of(name: str, **settings: Any) -> PreTrainedConfig:
    config = copy.deepcopy({**ARCHITECTURES, **MIXTURES}[name])
    config.update(settings)
    return config


def test_the_config_asks_for_it_as_in_transformers() -> None:
    silent, asking = (
        random_model(config_of("mixtral", router_aux_loss_coef=0.25, output_router_logits=asks))
        for asks in (False, True)
    )
    assert [router_coefficient(silent, wanted) for wanted in (None, 0.0, 0.5)] == [0, 0, 0.5]
    assert [router_coefficient(asking, wanted) for wanted in (None, 0.0, 0.5)] == [0.25, 0, 0.5]
    jet = random_model(config_of("jetmoe", aux_loss_coef=0.125, output_router_logits=True))
    assert router_coefficient(jet, None) == 0.125
    assert not has_routers(random_model("llama"))
    assert router_coefficient(random_model("llama"), None) == 0


def test_one_line_says_whether_it_is_added(caplog: pytest.LogCaptureFixture) -> None:
    silent, asking = (
        random_model(config_of("mixtral", router_aux_loss_coef=0.25, output_router_logits=asks))
        for asks in (False, True)
    )
    caplog.set_level("INFO")
    for model, wanted in ((silent, None), (silent, 0.0), (silent, 0.5), (asking, None), (random_model("llama"), None)):
        tell_router_loss(model, wanted)
    assert [record.getMessage() for record in caplog.records] == [
        "The routers' auxiliary loss is not added: config.json has its factor 0.25, but output_router_logits is false "
        "there; to add it, set model.lm.router_aux_loss_coef",
        "The routers' auxiliary loss is added, times 0.5 (model.lm.router_aux_loss_coef): train/router_loss",
        "The routers' auxiliary loss is added, times 0.25 (its config.json): train/router_loss",
    ]


def test_what_has_no_such_loss_is_refused_in_one_line() -> None:
    with pytest.raises(UserError) as caught:
        router_coefficient(random_model("llama"), 0.5)
    assert str(caught.value) == (
        "model.lm.router_aux_loss_coef: transformers has no loss of the routers of LlamaForCausalLM, got 0.5; set it "
        "to null"
    )
    common = config_of("llama").to_diff_dict() | {"num_experts_per_tok": 2}
    common = {name: value for name, value in common.items() if name not in ("model_type", "head_dim")}
    llama4 = transformers.Llama4TextConfig(
        **common, head_dim=8, num_local_experts=4, intermediate_size_mlp=48, output_router_logits=True
    )
    with pytest.raises(UserError, match="asks for it with output_router_logits; set it to 0"):
        router_coefficient(random_model(llama4), None)
    doge = random_model(transformers.DogeConfig(**common, is_moe=True, num_experts=4)).eval()
    check_router_loss(doge, 0)
    with pytest.raises(UserError, match="DogeForCausalLM has a loss of its own for its routers"):
        check_router_loss(doge, 0.5)


def test_loading_looks_at_it_and_the_network_has_it(tmp_path: Path) -> None:
    random_model(config_of("qwen3_moe", router_aux_loss_coef=0.25, output_router_logits=True)).save_pretrained(tmp_path)
    for wanted, factor in ((None, 0.25), (0.0, 0.0), (2.0, 2.0)):
        lm = LanguageModelConfig(str(tmp_path), router_aux_loss_coef=wanted)
        assert make_network(lm, CrossEntropyLoss(), ChunkedEngine()).router_coefficient == factor
    random_model("llama").save_pretrained(tmp_path / "llama")
    with pytest.raises(UserError, match=r"^model\.lm\.router_aux_loss_coef: .* no loss of the routers of Llama"):
        load_language_model(LanguageModelConfig(str(tmp_path / "llama"), router_aux_loss_coef=0.5))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_experts_in_float64(dtype: Any, tmp_path: Path) -> None:
    """By the model's dtype, or by the trainer's precision: the grouped product of experts has no float64."""
    random_model(MIXTURES["olmoe"]).save_pretrained(tmp_path)
    strategy = SingleDeviceStrategy(torch.device("cpu"), precision_plugin=DoublePrecision())
    network = make_network(
        LanguageModelConfig(str(tmp_path), dtype=dtype), CrossEntropyLoss(), ChunkedEngine(), strategy
    )
    assert network.double()(collate(rows(), range(len(LENGTHS)), 1, 0)).total.dtype == torch.float64


# -- whole runs, on two ranks


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Rows, and models in directories named by their factor."""
    directory = tmp_path_factory.mktemp("mixture")
    for split, numbers in {"train": range(19), "many": range(19, 22), "few": range(22, 24)}.items():
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(conversation(n)) + "\n" for n in numbers))
    write_blank_model(directory / "blank")
    blank = json.loads((directory / "blank" / "config.json").read_text())
    names = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings")
    for factor in (0.5, 0.0):
        config = config_of("mixtral", **{name: blank.get(name) for name in names})
        config.update({"router_aux_loss_coef": factor, "output_router_logits": True})
        place = directory / str(factor)
        write_blank_model(place)
        random_model(config).float().save_pretrained(place)
    return directory, directory / "0.5"


def test_the_factor_reaches_the_weights(mixture: tuple[Path, Path]) -> None:
    """Weights were bitwise equal for factors 0.5 and 0."""
    runs = [normaliser.run(str(mixture[0]), str(mixture[0] / name), "ce", 4) for name in ("0.5", "0.0")]
    gates = [{n: w for n, w in run["weights"][0].items() if "gate.weight" in n} for run in runs]
    assert all(not torch.equal(gates[0][name], gates[1][name]) for name in gates[0])
    assert gates[0]
    assert [["train/router_loss" in run["logged"][number] for number in (1, 2)] for run in runs] == [
        [True, True],
        [False, False],
    ]
    first = [run["logged"][1] for run in runs]
    assert first[0]["train/objective"] == pytest.approx(first[1]["train/objective"], rel=1e-6)
    assert first[0]["train/objective"] == pytest.approx(first[0]["train/cross_entropy"], rel=1e-6)


def test_ranks_micro_batches_and_packing(mixture: tuple[Path, Path], tmp_path: Path) -> None:
    wanted = normaliser.run(str(mixture[0]), str(mixture[1]), "ce", 16)
    runs = [("ce", "4", "none"), ("ce", "3", "packed")]
    launch("tests.modules.normaliser", *mixture[:2], tmp_path, *(word for run in runs for word in run))
    for number in (0, 1):
        for result in torch.load(tmp_path / f"rank{number}.pt"):
            for place in (1, 2):
                for name in ("train/router_loss", "train/objective", "train/gradient_norm"):
                    assert result["logged"][place][name] == pytest.approx(wanted["logged"][place][name], rel=2e-5), name
            for kind, tolerance in (("gradients", 5e-5), ("weights", 1e-5)):
                for mine, theirs in zip(result[kind], wanted[kind], strict=True):
                    assert_same(mine, theirs, tolerance)
