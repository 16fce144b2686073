"""Every number that a user can set: one that cannot be is refused, in one wording, by name, and before anything else.

The settings are found by reading constructors, so that one that is added later is held to the same.
"""

import inspect
import math
import re
import typing
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import pytest
import torchmetrics
from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import Strategy
from transformers import LogitsProcessor

import ts2_lightning.callbacks
import ts2_lightning.generation
import ts2_lightning.metrics
import ts2_lightning.strategies  # noqa: F401 - all these make their classes known
from ts2_lightning.callbacks import TSPDSetting
from ts2_lightning.cli.trainer_settings import check_numeric_settings
from ts2_lightning.data import SFTData, Source
from ts2_lightning.engines import ChunkedEngine
from ts2_lightning.evaluation.measure import Measure
from ts2_lightning.evaluation.registry import registered_measures
from ts2_lightning.hardware import GPUS
from ts2_lightning.losses import TS2Loss
from ts2_lightning.modules import LanguageModelConfig, SFTModule
from ts2_lightning.planning import Job
from ts2_lightning.ranges import COUNT, NOT_NEGATIVE, NULL, POSITIVE, Only, Range, check_number, trouble
from ts2_lightning.types import UserError

NAN, INF = math.nan, math.inf
WORDING = re.compile(r"[^\n]+ must be (a (finite|whole) number( of at least| above)? |0 |-1 |null )[^\n]*, got [^\n]+")

# What else a constructor needs, so that one of its numbers can be wrong by itself.
LM = LanguageModelConfig("somewhere")
NEEDED: dict[str, dict[str, Any]] = {
    "ChatSettings": {"temperature": 0.5, "prompt_price": 1.0, "completion_price": 1.0},
    "Decoder": {"projection": "entmax"},
    "Job": {
        "lm": LM, "loss": TS2Loss(), "engine": ChunkedEngine(), "strategy": "auto", "precision": "32-true", "rows": 8,
        "micro_batch": 2, "max_length": 64, "packing": "none", "device": GPUS["h200"],
    },
    "LMEval": {"tasks": ("arc_easy",)},
    "LanguageModelConfig": {"path": "somewhere"},
    "SFTData": {"train": "rows.jsonl"},
    "SFTModule": {"lm": LM},
    "NextTokenPicture": {"prompts": ["a"]},
    "SampleGenerations": {"prompts": ["a"]},
    "Source": {"path": "rows.jsonl"},
    "TSPD": {"m": 2, "eps_head": 0.1, "eps_tail": 0.0},
    "TSPDSetting": {"m": 2, "eps_head": 0.1, "eps_tail": 0.0},
}  # fmt: skip

NO_SETTINGS: dict[str, str] = {
    "GPU": "a row of the table of known GPUs, which a user names",
    "Machine": "the memory of the machine at hand, which it is asked for",
    "TokenMean": "what the metrics of tokens have in common, made by them",
}
"""Classes with numbers that no user sets, and why. Of all others every number is checked; there is no exception."""


class Setting(NamedTuple):
    """A number of a constructor.

    Attributes:
        owner: the class.
        name: of the argument.
        kinds: what its annotation names: float, int, bool and so on, also within lists.
        default: what it is where nobody sets it.
    """

    owner: type
    name: str
    kinds: set[Any]
    default: Any

    def __str__(self) -> str:
        return f"{self.owner.__name__}.{self.name}"

    def set_to(self, value: object) -> None:
        """Makes an object of the owner as a user does; of several numbers the last one gets the value."""
        if isinstance(self.default, tuple) and not isinstance(value, tuple):
            value = (*self.default[:-1], value)
        if self.owner is Trainer:
            trainer = {name: p.default for name, p in inspect.signature(Trainer).parameters.items()}
            check_numeric_settings(Namespace(seed_everything=0, trainer=Namespace({**trainer, self.name: value})))
            return
        made = self.owner(**{**NEEDED.get(self.owner.__name__, {}), self.name: value})
        if isinstance(made, Measure):
            made.check()
        if self.owner.__name__ == "Source":
            made.check()


def leaves(annotation: Any) -> set[Any]:
    """The types that an annotation is made of."""
    if typing.get_origin(annotation) not in (None, typing.Literal, Callable):
        return {leaf for argument in typing.get_args(annotation) for leaf in leaves(argument)}
    return {annotation}


def concrete(base: type) -> Iterator[type]:
    """A class and its subclasses, as far as they are ours and can be made."""
    for child in [base, *base.__subclasses__()]:
        is_ours = child.__module__.startswith("ts2_lightning.") and not child.__name__.startswith("_")
        if is_ours and not inspect.isabstract(child):
            yield child
        if child is not base:
            yield from concrete(child)


def arguments(owner: type) -> dict[str, set[Any]]:
    hints = typing.get_type_hints(owner.__init__)  # type: ignore[misc]
    return {name: leaves(hints[name]) for name in inspect.signature(owner).parameters if name in hints}


def tree() -> list[type]:
    """All classes that settings describe: the roots, and what their arguments may be."""
    found: dict[type, None] = {}
    bases = [Callback, Strategy, LogitsProcessor, torchmetrics.Metric]
    waiting = [
        SFTModule,
        SFTData,
        Job,
        *registered_measures().values(),
        *(kind for base in bases for kind in concrete(base)),
    ]
    while waiting:
        owner = waiting.pop()
        if owner in found:
            continue
        found[owner] = None
        for kinds in arguments(owner).values():
            ours = [kind for kind in kinds if inspect.isclass(kind) and kind.__module__.startswith("ts2_lightning.")]
            waiting += [
                child for kind in ours if is_dataclass(kind) or inspect.isabstract(kind) for child in concrete(kind)
            ]
    return [*found, Trainer]


def settings() -> list[Setting]:
    found = []
    for owner in tree():
        if owner.__name__ in NO_SETTINGS:
            continue
        parameters = inspect.signature(owner).parameters
        found += [
            Setting(owner, name, kinds, parameters[name].default)
            for name, kinds in arguments(owner).items()
            if kinds & {float, int}
        ]
    return sorted(found, key=str)


SETTINGS = settings()


def test_the_settings_are_found() -> None:
    names = {str(setting) for setting in SETTINGS}
    assert len(names) > 100
    assert {
        "AdamWConfig.lr", "AdamWConfig.betas", "AdapterConfig.r", "ScheduleConfig.warmup_steps", "SFTData.seed",
        "SFTData.validation", "Source.times", "TS2Loss.tail_mass_cap", "ChunkedEngine.chunk_size", "Watchdog.timeout",
        "Decoder.top_p", "TSPDSetting.eps_head", "FSDP2.tensor_parallel_size", "Trainer.gradient_clip_val",
        "Trainer.devices", "Diversity.temperature", "Probes.queries", "SupportSizes.quantiles",
        "EntmaxLogitsProcessor.alpha",
    } <= names  # fmt: skip


def refused(setting: Setting, value: object) -> str:
    with pytest.raises(UserError) as error:
        setting.set_to(value)
    message = str(error.value)
    assert WORDING.fullmatch(message), message
    assert re.search(rf"\b{setting.name}\b", message), message
    if not issubclass(setting.owner, Measure | torchmetrics.Metric | Source | TSPDSetting):  # named by those who ask
        assert re.match(rf"({setting.owner.__name__}: |[a-z_.]+\.){setting.name}\b", message), message
    return message


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_no_number_that_cannot_be(setting: Setting) -> None:
    """Neither where a float is taken, nor in place of a whole number."""
    for value in (NAN, INF, -INF):
        assert f", got {value!r}" in refused(setting, value)
    if bool not in setting.kinds:
        assert ", got True" in refused(setting, True)
    if float not in setting.kinds and setting.name != "max_time":  # which counts seconds
        assert ", got 2.5" in refused(setting, 2.5)


# What is just allowed, what is just refused, and the settings that this holds for.
BOUNDS: list[tuple[list[Any], list[Any], str]] = [
    (
        [1, 2**63 - 1],
        [0, -1, 2**63],
        "ChunkedEngine.chunk_size Checkpoints.every_n_steps Checkpoints.keep_last DistributionMonitor.every_n_steps "
        "DistributionMonitor.histogram_every_n_steps Diversity.batch_size Diversity.limit Diversity.max_new_tokens "
        "EMA.every_n_steps "
        "FenchelYoungPlusLoss.top_k Job.gpus_per_node Job.max_length Job.micro_batch Job.nodes Job.rows "
        "Probes.batch_size Probes.limit Probes.max_length Probes.max_new_tokens Probes.queries Probes.samples "
        "ReferenceDrift.every_n_steps SFTData.batch_size SFTData.eval_batch_size SFTData.limit_predict "
        "SFTData.limit_test SFTData.limit_train SFTData.limit_validation SFTData.max_length SFTData.micro_batch_size "
        "SFTData.shuffle_buffer SampleGenerations.batch_size SampleGenerations.every_n_steps "
        "NextTokenPicture.every_n_validations NextTokenPicture.top "
        "SampleGenerations.max_new_tokens SampleGenerations.n ReferenceSuppression.top_k "
        "Source.sample SuppressionOnlyLoss.top_k TS2Loss.top_k Validation.batch_size Validation.limit "
        "Validation.max_length Trainer.accumulate_grad_batches Trainer.check_val_every_n_epoch AdapterConfig.alpha",
    ),
    (
        [1, 2**63 - 1],
        [0, -1, 2**63],
        "ARC.batch_size ARC.limit ARC.max_new_tokens GSM8K.batch_size GSM8K.limit GSM8K.max_new_tokens GSM8K.n "
        "MMLU.batch_size MMLU.limit MMLU.max_new_tokens Maths.batch_size Maths.limit Maths.max_new_tokens Maths.n "
        "OpenLLM.batch_size OpenLLM.limit OpenLLM.max_new_tokens OpenLLM.n",
    ),
    ([1], [0, -1, 2**63], "ARC.n MMLU.n"),
    ([1], [0, -1, 2], "ARC.ks MMLU.ks"),
    ([1, 16], [0, -1, 17], "GSM8K.ks Maths.ks"),
    ([1, 32], [0, -1, 33], "OpenLLM.ks"),
    ([1, 5], [0, -1, 2**63], "TopProbabilities.k SupportSizes.largest Distinct.n FSDP2.tensor_parallel_size"),
    ([1, 8, "node", None], [0, -1, 2**63], "FSDP2.shard_size"),
    ([2, 3], [1, 0], "Diversity.samples"),
    ([2, 2**20], [1, 0, 2**20 + 1], "FlatteningRule.window"),
    ([0, 1], [-0.1, 1.1], "FlatteningRule.least_rise"),
    ([0, 1e30], [-1e-9, 1e31], "FlatteningRule.standard_errors"),
    ([2, 3], [1, 0], "TSPD.m TSPDSetting.m"),
    ([1, 2**24, True, False, None], [0, -1, 2**24 + 1], "LanguageModelConfig.resize_embeddings"),
    ([258, 2**20], [0, -1, 65, 2**63], "DistributionMonitor.positions"),
    ([1, 2**16], [0, 2**16 + 1], "AdapterConfig.r Trainer.num_nodes"),
    ([0, 1024], [-1, 1025], "SFTData.num_workers"),
    (
        [0, 2**32 - 1],
        [-1, 2**32],
        "SFTData.seed NEFTune.seed SampleGenerations.seed Probes.seed Diversity.seed ARC.seed GSM8K.seed MMLU.seed "
        "Maths.seed OpenLLM.seed",
    ),
    (
        [0, 1],
        [-1, 2**63],
        "ARC.top_k GSM8K.top_k MMLU.top_k Maths.top_k OpenLLM.top_k "
        "Decoder.top_k Probes.top_k Diversity.top_k ToyWorldDecoded.top_k "
        "ReferenceDrift.tokens ScheduleConfig.warmup_steps EMA.start_step "
        "Trainer.min_epochs Trainer.min_steps Trainer.log_every_n_steps Trainer.reload_dataloaders_every_n_epochs",
    ),
    ([0, 1, True, False], [-1], "Trainer.fast_dev_run"),
    ([0, 1, -1], [-2, 2**63], "Trainer.max_epochs Trainer.max_steps Trainer.num_sanity_val_steps"),
    (
        [0, 7, 0.5, 1.0],
        [-1, -0.5, 1.5, 2.0],
        "Trainer.limit_train_batches Trainer.limit_val_batches Trainer.limit_test_batches "
        "Trainer.limit_predict_batches Trainer.overfit_batches",
    ),
    (
        [1, 7, 0.5, 1.0, "00:00:10:00", {"minutes": 5}, timedelta(seconds=1)],
        [0, 0.0, -1, 1.5, "00:00:00:00", "ten minutes", "1:2", {"minutes": -5}, {"minute": 5}, timedelta(0)],
        "Trainer.val_check_interval",
    ),
    ([None, "00:00:10:00", {"hours": 2}], ["00:00:00:00", "²:00:00:00", {"hours": NAN}, "-1"], "Trainer.max_time"),
    (
        [1, 1024, -1, "2", "-1", "auto", "0,1", "2,", [0, 2]],
        [0, 1025, -2, "0", "1.5", "²", "many", "0,0", "0,x", [], [0, 0], [-1], [True]],
        "Trainer.devices",
    ),
    ([0, 0.5, 1e30], [-1e-9, 1e31], "Trainer.gradient_clip_val StepProgress.refresh_seconds"),
    (
        [0, 1e30],
        [-1e-9, 1e31],
        "TS2Loss.alpha FenchelYoungPlusLoss.alpha SuppressionOnlyLoss.alpha FocalLoss.gamma TOFULoss.gamma "
        "EntropyBonusLoss.gamma ReferenceAnchored.weight ReferenceSuppression.alpha",
    ),
    (
        [1e-30, 1e30],
        [0, -1.0, 1e-31, 1e31],
        "TS2Loss.logit_scale FenchelYoungPlusLoss.logit_scale SuppressionOnlyLoss.logit_scale LambdaPRLoss.lambda_ "
        "PowerInflationLoss.alpha ExponentialInflationLoss.gamma LogarithmicInflationLoss.delta Validation.logit_scale "
        "SupportSize.logit_scale SupportSizes.logit_scale TailMass.logit_scale TokenStatistics.logit_scale "
        "GoldInSupport.logit_scale ZeroGradient.logit_scale Decoder.logit_scale SparsemaxLogitsProcessor.logit_scale "
        "EntmaxLogitsProcessor.logit_scale NEFTune.alpha Throughput.peak_flops AdamWConfig.eps Diversity.temperature "
        "ToyWorldDecoded.temperature "
        "Job.write_speed",
    ),
    (
        [1e-30, 1e30],
        [-1.0, 1e-31, 1e31],
        "ARC.temperature GSM8K.temperature MMLU.temperature Maths.temperature Maths.temperatures OpenLLM.temperature",
    ),
    ([0, 1e30], [-1e-9, 1e31], "Maths.tolerance"),
    ([0, 1e30, None], [-1e-9, 1e31], "LanguageModelConfig.router_aux_loss_coef"),
    ([1e-30, 1e9], [0, -1.0, 1.1e9], "Watchdog.timeout"),
    ([0, 1e-30, 1e30], [-1.0, 1e-31, 1e31], "Decoder.temperature Probes.temperature"),
    (
        [1e-30, 1],
        [0, -0.1, 1.1],
        "ARC.top_p GSM8K.top_p MMLU.top_p Maths.top_p OpenLLM.top_p "
        "ToyWorldDecoded.top_p "
        "GEMLoss.beta TOFULoss.beta LambdaPRLoss.alpha Decoder.top_p Probes.top_p Diversity.top_p Job.efficiency",
    ),
    ([0, 1], [-0.1, 1.1], "LabelSmoothingLoss.epsilon SFTData.max_rejects ScheduleConfig.min_lr_ratio"),
    ([0, 0.5, 1], [-0.1, 1.1, 50], "SupportSizes.quantiles"),
    ([0, 0.999], [-0.1, 1.0], "AdapterConfig.dropout EMA.decay ScheduleConfig.warmup_ratio AdamWConfig.betas"),
    ([0.01, 0.99, None], [0, 1, -0.5], "TS2Loss.tail_mass_cap FenchelYoungPlusLoss.tail_mass_cap"),
    ([0.01, 0.99, None], [0, 1, -0.5], "SuppressionOnlyLoss.tail_mass_cap ReferenceSuppression.top_p"),
    ([0.01, 0.99, {"held": 0.1}], [0, 1, 0.0, 1.0, -0.5], "SFTData.validation SFTData.test"),
    ([1.001, 2], [1, 1.0001, 2.1, 0.5], "EntmaxLoss.alpha Decoder.alpha EntmaxLogitsProcessor.alpha"),
    ([1e-30, 10], [0, -1e-3, 1e-31, 10.1, 1e30], "AdamWConfig.lr"),
    ([0, 50_000], [-0.1, 50_001], "AdamWConfig.weight_decay"),
    ([1e-30, 1e6], [0, -1, 1e6 + 1], "Source.times"),
    ([1e-9, 0.5], [0, 0.51], "TSPD.eps_head TSPDSetting.eps_head"),
    ([0, 0.8], [-0.1, 0.81], "TSPD.eps_tail TSPDSetting.eps_tail"),
    ([1, 2**63 - 1], [0, -1, 2**63], "LMEval.batch_size Creative.batch_size HumanEval.batch_size"),
    (
        [1, 2**63 - 1, None],
        [0, -1, 2**63],
        "LMEval.limit Creative.limit HumanEval.limit Creative.max_new_tokens HumanEval.max_new_tokens HumanEval.n "
        "HumanEval.workers",
    ),
    ([0, 1, None], [-1, 2**63], "LMEval.num_fewshot Creative.top_k HumanEval.top_k"),
    ([2, 3, None], [1, 0, 2**63], "Creative.n"),
    ([None], [0, 1], "Creative.ks"),
    ([None, (1, 200)], [0, 201], "HumanEval.ks"),
    ([0, 2**32 - 1], [-1, 2**32], "Creative.seed HumanEval.seed"),
    ([1e-30, 1e30, None], [0, -1.0, 1e-31, 1e31], "Creative.temperature HumanEval.temperature"),
    ([1e-30, 1, None], [0, -0.1, 1.1], "Creative.top_p HumanEval.top_p"),
    ([1e-30, 3600], [0, -1, 3601], "HumanEval.seconds"),
    (
        [1, 2**63 - 1],
        [0, -1, 2**63],
        "AlpacaEval.batch_size NoveltyBench.batch_size RewardSettings.batch_size EquivalenceSettings.batch_size "
        "HarmBench.batch_size MTBench101.batch_size MaliciousInstruct.batch_size Stories.batch_size "
        "ChatSettings.batch_size ChatSettings.concurrency ChatSettings.max_new_tokens ChatSettings.votes",
    ),
    (
        [1, 2**63 - 1, None],
        [0, -1, 2**63],
        "AlpacaEval.limit AlpacaEval.max_new_tokens AlpacaEval.n NoveltyBench.limit NoveltyBench.max_new_tokens "
        "NoveltyBench.n RewardSettings.max_tokens",
    ),
    ([None, (1, 32)], [0, 33], "AlpacaEval.ks"),
    ([None], [0, 1], "NoveltyBench.ks"),
    ([0, 2**32 - 1], [-1, 2**32], "AlpacaEval.seed NoveltyBench.seed"),
    ([0, 1, None], [-1, 2**63], "AlpacaEval.top_k NoveltyBench.top_k"),
    ([1e-30, 1, None], [0, -0.1, 1.1], "AlpacaEval.top_p NoveltyBench.top_p"),
    ([1e-30, 1e30, None], [-1.0, 1e-31, 1e31], "AlpacaEval.temperature NoveltyBench.temperature"),
    ([0, 1, None], [-0.1, 1.1], "EquivalenceSettings.threshold"),
    ([1e-30, 1], [0, -0.1, 1.1], "NoveltyBench.patience"),
    (
        [1, 2**63 - 1, None],
        [0, -1, 2**63],
        "HarmBench.limit MTBench101.limit MaliciousInstruct.limit Stories.limit HarmBench.max_new_tokens "
        "MTBench101.max_new_tokens MaliciousInstruct.max_new_tokens Stories.max_new_tokens HarmBench.n "
        "MaliciousInstruct.n HarmBench.chosen",
    ),
    ([1, None], [0, -1, 2**63], "MTBench101.n"),
    ([2, 3, None], [1, 0, 2**63], "Stories.n"),
    ([None], [0, 1], "HarmBench.ks MTBench101.ks MaliciousInstruct.ks Stories.ks"),
    ([0, 1, None], [-1, 2**63], "HarmBench.top_k MTBench101.top_k MaliciousInstruct.top_k Stories.top_k"),
    (
        [0, 2**32 - 1],
        [-1, 2**32],
        "HarmBench.seed MTBench101.seed MaliciousInstruct.seed Stories.seed HarmBench.choice_seed ChatSettings.seed",
    ),
    (
        [1e-30, 1e30, None],
        [-1.0, 1e-31, 1e31],
        "HarmBench.temperature MTBench101.temperature MaliciousInstruct.temperature Stories.temperature",
    ),
    ([1e-30, 1, None], [0, -0.1, 1.1], "HarmBench.top_p MTBench101.top_p MaliciousInstruct.top_p Stories.top_p"),
    ([1e-9, 1e30], [-1.0, 1e31], "ChatSettings.temperature"),
    (
        [0, 1e30],
        [-1e-9, 1e31],
        "ChatSettings.prompt_price ChatSettings.completion_price",
    ),
    ([1e-30, 1e30], [0, -1.0, 1e31], "ChatSettings.timeout"),
]
CASES = {name: (allowed, wrong) for allowed, wrong, names in BOUNDS for name in names.split()}


def test_every_number_has_its_bounds_in_the_table() -> None:
    assert {str(setting) for setting in SETTINGS} == CASES.keys()


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_bounds(setting: Setting) -> None:
    allowed, wrong = CASES[str(setting)]
    for value in allowed:
        setting.set_to(value)
    for value in wrong:
        with pytest.raises(UserError) as error:
            setting.set_to(value)
        assert "\n" not in str(error.value)
        assert setting.name in str(error.value)


# The wording -------------------------------------------------------------------------------------------------------

TO, HUGE = "to calculate with", f"1{'0' * 17}...{'0' * 19}"


@pytest.mark.parametrize(
    ("value", "allowed", "said"),
    [
        (NAN, (POSITIVE,), "must be a finite number above 0, got nan"),
        (3, (Range(least=0, below=1),), "must be a finite number of at least 0 and below 1, got 3"),
        (0, (COUNT, NULL), "must be a whole number of at least 1 or null, got 0"),
        (-2, (COUNT, Only(-1, "all"), NULL), "must be a whole number of at least 1, -1 for all, or null, got -2"),
        (2, (Range(least=0.5, most=1e6),), ""),
        (0.1, (Range(least=0.5, hint="or not"),), "must be a finite number of at least 0.5, got 0.1; or not"),
        (2e6, (Range(most=1e6),), "must be a finite number at most 1000000, got 2000000.0"),
        (None, (COUNT,), "must be a whole number of at least 1, got None"),
        ("1", (COUNT,), "must be a whole number of at least 1, got '1'"),
        (1e31, (NOT_NEGATIVE,), f"must be a finite number of at least 0, got 1e+31, which is too large {TO}"),
        (10**400, (COUNT,), f"must be a whole number of at least 1, got {HUGE}, which is too large {TO}"),
        (np.float32("nan"), (POSITIVE,), "must be a finite number above 0, got np.float32(nan)"),
        (np.array([1, 2]), (COUNT, NULL), "must be a whole number of at least 1 or null, got array([1, 2])"),
    ],
)  # fmt: skip
def test_the_wording(value: object, allowed: tuple[Any, ...], said: str) -> None:
    assert trouble(value, *allowed) == said


@pytest.mark.parametrize("value", [1, 2, np.int64(3), 2**63 - 1])
def test_whole_numbers_of_other_makes(value: int) -> None:
    check_number("n", value, COUNT)
    check_number("x", np.float32(0.5), POSITIVE)
