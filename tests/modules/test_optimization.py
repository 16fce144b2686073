"""Optimizer groups and learning-rate schedules, against lists and formulas written out by hand."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from tests.modules.architectures import random_model
from tests.support.errors import refused
from ts2_lightning.engines import FullEngine
from ts2_lightning.losses import CrossEntropyLoss
from ts2_lightning.modules import AdamWConfig, ScheduleConfig
from ts2_lightning.modules.network import SFTNetwork
from ts2_lightning.modules.optimization import make_optimizer, make_schedule
from ts2_lightning.types import UserError

STEPS = 50


def network(architecture: str) -> nn.Module:
    return SFTNetwork(random_model(architecture), CrossEntropyLoss(), FullEngine())


def groups_by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[float, set[str]]:
    """Weight decay -> names, which are unique per parameter even where a head is tied or listed twice."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    return {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in optimizer.param_groups}


@pytest.mark.parametrize("architecture", ["llama", "llama, tied", "qwen2", "gpt_neox"])
def test_only_matrices_decay(architecture: str) -> None:
    model = network(architecture)
    groups = groups_by_name(model, make_optimizer(model, AdamWConfig(weight_decay=0.1)))
    everything = {name for name, _ in model.named_parameters()}
    spared = {name for name in everything if "norm" in name or name.endswith("bias")}
    assert spared
    assert groups == {0.1: everything - spared, 0.0: spared}


def test_the_papers_settings_are_the_default() -> None:
    optimizer = make_optimizer(network("llama"), AdamWConfig())
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (2e-5, (0.9, 0.95), 1e-8)
        assert group["weight_decay"] == 0
    given = make_optimizer(network("llama"), AdamWConfig(3e-4, (0.8, 0.7), 1e-5, fused=False))
    assert [(g["lr"], g["betas"], g["eps"]) for g in given.param_groups] == [(3e-4, (0.8, 0.7), 1e-5)] * 2


def test_frozen_parameters_are_absent() -> None:
    model = network("qwen2")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("self_attn" in name)
    groups = groups_by_name(model, make_optimizer(model, AdamWConfig(weight_decay=0.1)))
    assert groups[0.1] | groups[0.0] == {name for name, _ in model.named_parameters() if "self_attn" in name}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("q_proj.weight"))
    assert list(groups_by_name(model, make_optimizer(model, AdamWConfig(weight_decay=0.1)))) == [0.1]  # no empty group


def test_a_sharded_vector_is_told_by_its_whole_shape() -> None:
    """ZeRO-3 leaves every parameter flat; the whole shape is an attribute."""
    model = nn.Linear(3, 2)
    model.weight = nn.Parameter(torch.zeros(6))
    model.weight.ds_shape = torch.Size((2, 3))
    groups = groups_by_name(model, make_optimizer(model, AdamWConfig(weight_decay=0.1)))
    assert groups == {0.1: {"weight"}, 0.0: {"bias"}}


def learning_rates(config: ScheduleConfig, steps: int = STEPS, peak: float = 0.5) -> list[float]:
    """The rate with which each optimizer step is made."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    schedule = make_schedule(optimizer, config, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"] / peak)
        optimizer.step()
        schedule.step()
    return rates


def formula(name: str, warmup: int, floor: float = 0.0, steps: int = STEPS) -> list[float]:
    rates = []
    for t in range(steps):
        progress = (t - warmup) / (steps - warmup)
        decay = {
            "constant": 1.0,
            "linear": 1 - progress,
            "cosine": floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2,
        }[name]
        rates.append((t + 1) / warmup if t < warmup else decay)
    return rates


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("ratio", "warmup"), [(0.0, 0), (0.1, 5), (0.03, 2), (0.5, 25)])
def test_schedules(name: Any, ratio: float, warmup: int) -> None:
    """A ratio that is no whole number of steps is rounded up: 3% of 50 steps are 2."""
    found = learning_rates(ScheduleConfig(name, warmup_ratio=ratio))
    assert found == pytest.approx(formula(name, warmup), abs=1e-12)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_after_the_warm_up_it_is_transformers_schedule(name: Any, warmup: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name if name != "constant" else "constant_with_warmup", optimizer, warmup, STEPS)
    expected = [theirs.lr_lambdas[0](done) for done in range(warmup, STEPS)]
    assert learning_rates(ScheduleConfig(name, warmup_steps=warmup))[warmup:] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_no_step_is_made_without_a_learning_rate(name: Any, steps: int) -> None:
    """A run of one step, which is all warm-up, has the whole rate."""
    rates = learning_rates(ScheduleConfig(name), steps)
    assert min(rates) > 0
    assert rates[0] == 1.0


@pytest.mark.parametrize("warmup", [0, 7])
def test_cosine_to_a_floor(warmup: int) -> None:
    found = learning_rates(ScheduleConfig("cosine", warmup_steps=warmup, min_lr_ratio=0.1))
    assert found == pytest.approx(formula("cosine", warmup, floor=0.1), abs=1e-12)
    assert 0.1 < found[-1] < 0.103


def test_steps_of_warm_up_override_the_ratio() -> None:
    found = learning_rates(ScheduleConfig("linear", warmup_ratio=0.5, warmup_steps=0))
    assert found == pytest.approx(formula("linear", 0), abs=1e-12)


def test_a_run_that_only_time_ends() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    rates = []
    schedule = make_schedule(optimizer, ScheduleConfig("constant", warmup_steps=2), math.inf)
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == [0.5, 1, 1, 1]
    for config in (ScheduleConfig(), ScheduleConfig("linear", warmup_steps=0), ScheduleConfig("constant")):
        with pytest.raises(UserError, match="needs its number of steps; set"):
            make_schedule(optimizer, config, math.inf)


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (
            AdamWConfig,
            {"lr": 0.1, "weight_decay": 11.0},
            "at most 10, got 11.0; a step takes lr times as much off each",
        ),
        (ScheduleConfig, {"name": "linear", "min_lr_ratio": 0.1}, "min_lr_ratio needs name: cosine, got linear"),
    ],
)
def test_settings_that_make_no_sense(config: Any, settings: dict[str, Any], message: str) -> None:
    with refused(message):
        config(**settings)
