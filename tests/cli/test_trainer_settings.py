"""The numbers of `fit` that Lightning takes; and that any number that cannot be is told before anything is loaded."""

import inspect
import math
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace
from lightning.pytorch import Trainer

from tests.cli.conftest import Run
from tests.e2e.command_line import QUICKSTART
from tests.modules.architectures import OTHER_KINDS
from ts2_lightning.cli import lightning_cli
from ts2_lightning.cli.errors.guard import users_error
from ts2_lightning.cli.settings import SettingsReader
from ts2_lightning.cli.trainer_settings import check_numeric_settings
from ts2_lightning.data import SFTData
from ts2_lightning.modules import SFTModule
from ts2_lightning.strategies import FSDP2, DeepSpeed
from ts2_lightning.types import UserError

DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(Trainer).parameters.items()}


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, math.nan])
def test_the_seed_of_everything(seed: float) -> None:
    trainer = Namespace(DEFAULTS)
    for allowed in (True, False, 0, 2**32 - 1):
        check_numeric_settings(Namespace(seed_everything=allowed, trainer=trainer))
    with pytest.raises(
        UserError, match=r"^seed_everything must be a whole number of at least 0 and at most 4294967295,"
    ):
        check_numeric_settings(Namespace(seed_everything=seed, trainer=trainer))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"tensor_parallel_size": 0}, "tensor_parallel_size"),
        ({"data_parallel_size": -2}, "data_parallel_size"),
        ({"shard_size": 0}, "shard_size"),
        ({"timeout": timedelta(seconds=-1)}, "timeout in seconds"),
    ],
)
def test_the_strategys_numbers(arguments: dict[str, Any], name: str) -> None:
    def check(given: dict[str, Any]) -> None:
        strategy = Namespace(class_path="FSDP2", init_args=Namespace(given))
        check_numeric_settings(Namespace(seed_everything=0, trainer=Namespace({**DEFAULTS, "strategy": strategy})))

    check({"tensor_parallel_size": "auto", "data_parallel_size": 2, "timeout": timedelta(minutes=1)})
    check({"shard_size": "node"})
    check({"shard_size": None})
    with pytest.raises(UserError, match=rf"^trainer\.strategy\.{name} must be"):
        check(arguments)


def test_timeouts_of_strategies() -> None:
    for strategy in (FSDP2, DeepSpeed):
        with pytest.raises(
            UserError, match=rf"^{strategy.__name__}: timeout must be a finite number above 0, got -1\.0"
        ):
            strategy(timeout=timedelta(seconds=-1))


# Before anything is loaded -----------------------------------------------------------------------------------------

WRONG = [
    ("--model.optimizer.lr=.inf", "model.optimizer.lr must be"),
    ("--model.optimizer.betas=[0.9, .nan]", "model.optimizer.betas[1] must be"),
    ("--model.schedule.warmup_steps=-1", "model.schedule.warmup_steps must be"),
    ("--model.lm.adapter={r: 0}", "model.lm.adapter.r must be"),
    ("--model.lm.path=toyworld?seed=-1", "model.lm.path 'toyworld?seed=-1': seed must be"),
    ("--model.loss.alpha=.nan", "TS2Loss: alpha must be"),
    ("--model.engine.chunk_size=0", "ChunkedEngine: chunk_size must be"),
    ("--data.seed=4294967296", "data.seed must be"),
    ("--data.train=toyworld:train?seed=4294967296", "data source 'toyworld:train?seed=4294967296': seed must be"),
    ("--trainer.gradient_clip_val=.nan", "trainer.gradient_clip_val must be"),
    ("--trainer.max_steps=-2", "trainer.max_steps must be"),
    ("--trainer.callbacks+={class_path: Watchdog, init_args: {timeout: .inf}}", "Watchdog: timeout must be"),
    (
        "--trainer.callbacks+={class_path: DistributionMonitor, init_args: {tspd: [{m: 1, eps_head: 1, eps_tail: 0}]}}",
        "TSPD: m must be",
    ),
    (
        "--trainer.callbacks+={class_path: SampleGenerations, init_args: {prompts: [a], decoder: {top_p: .nan}}}",
        "Decoder: top_p must be",
    ),
    (
        "--trainer.strategy={class_path: FSDP2, init_args: {tensor_parallel_size: 0}}",
        "trainer.strategy.tensor_parallel_size must be",
    ),
    ("--seed_everything=4294967296", "seed_everything must be"),
]


def untouched(what: str) -> Callable[..., None]:
    def fail(*args: object, **kwargs: object) -> None:
        pytest.fail(f"{what} before the settings were looked at")

    return fail


@pytest.fixture
def nothing_is_made(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setattr(lightning_cli, "resolve_model", untouched("the base model was made"))
    monkeypatch.setattr(SFTData, "prepare_data", untouched("data were made"))
    monkeypatch.setattr(SFTModule, "configure_model", untouched("a model was loaded"))


@pytest.mark.usefixtures("nothing_is_made")
@pytest.mark.parametrize(("option", "said"), WRONG)
def test_fit_refuses_it_first(option: str, said: str, real: Run) -> None:
    assert real("fit", "-c", str(QUICKSTART), option).refusal.startswith(said)
    assert not Path("runs").exists()


@pytest.mark.usefixtures("nothing_is_made")
@pytest.mark.parametrize("command", ["validate", "test", "plan", "data"])
@pytest.mark.parametrize(("option", "said"), [case for case in WRONG if case[0].startswith(("--trainer.m", "--data"))])
def test_so_do_the_commands_that_read_the_settings_of_fit(command: str, option: str, said: str, real: Run) -> None:
    assert real(command, "-c", str(QUICKSTART), option).refusal.startswith(said)


@pytest.mark.usefixtures("nothing_is_made")
def test_so_does_a_grid() -> None:
    reader = SettingsReader()
    reader.read(["-c", str(QUICKSTART)])
    for option, said in WRONG:
        with pytest.raises(Exception) as error:  # noqa: PT011 - what it is stands in the next line
            reader.read(["-c", str(QUICKSTART), option])
        assert str(users_error(error.value)).startswith(said)


def test_fit_looks_at_the_model_before_it_reads_a_row(monkeypatch: pytest.MonkeyPatch, real: Run) -> None:
    monkeypatch.setattr(SFTData, "setup", untouched("rows were read"))
    OTHER_KINDS["WhisperForConditionalGeneration"]().save_pretrained("whisper")
    assert real("fit", "-c", str(QUICKSTART), "--model.lm.path=whisper").complaint == (
        "model.lm.path: cannot load 'whisper': it is a WhisperForConditionalGeneration of type whisper, an "
        "encoder-decoder; a decoder-only causal language model is needed"
    )
    assert not list(Path("runs").rglob("1"))
