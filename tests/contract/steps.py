"""Two optimizer steps of sixteen and of three rows, under any strategy; run as a script, on two gloo ranks.

    steps.py STRATEGY WORLD OUT

One launch runs all cases, as imports cost most of the time. The ranks are forked, and each writes what it found.
"""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, GraniteConfig, LlamaConfig, PretrainedConfig

from tests.modules.normaliser import Memory, conversation
from tests.support.ranks import fork_ranks
from tests.support.training import make_trainer
from ts2_lightning.callbacks import Checkpoints, DistributionMonitor, NEFTune
from ts2_lightning.data import SFTData
from ts2_lightning.engines import ChunkedEngine
from ts2_lightning.losses import CrossEntropyLoss, GEMLoss, ReferenceAnchored, TokenLoss, TS2Loss
from ts2_lightning.modules import AdamWConfig, AdapterConfig, LanguageModelConfig, ScheduleConfig, SFTModule
from ts2_lightning.strategies import FSDP2, DeepSpeed
from ts2_lightning.toyworld import write_blank_model
from ts2_lightning.types import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
STRATEGIES = ("ddp", "fsdp2", "fsdp2_tp2", "zero1", "zero2", "zero3")
BATCH_SIZE, PARTIAL, VALIDATED = 16, 3, 7
MAX_LENGTH = 100  # somewhat above the longest row
CLIP = 0.5
LR, EPS = 10.0, 10.0  # so large an epsilon makes AdamW nearly plain descent: a wrong scale of the gradient shows
ANCHOR = 2.0
LOSSES: dict[str, Callable[[], TokenLoss]] = {
    "ce": CrossEntropyLoss,
    "gem": GEMLoss,
    "ts2": TS2Loss,
    "anchored": lambda: ReferenceAnchored(TS2Loss(), ANCHOR),
}
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip


class Case(NamedTuple):
    """What is trained, apart from the split and the strategy.

    Attributes:
        loss: of `LOSSES`.
        model: `tied`, `untied`, or `module`, whose head is called as a module, because it scales its logits.
        packing: of `SFTData`.
        precision: of the trainer.
    """

    loss: str
    model: str
    packing: str
    precision: str = "32-true"

    def __str__(self) -> str:
        return "-".join(self)


CASES = [
    *(
        Case(loss, model, packing)
        for loss in ("ce", "gem", "ts2")
        for model, packing in (("tied", "packed"), ("untied", "none"))
    ),
    Case("ts2", "tied", "none"),
    Case("ts2", "untied", "packed"),
    Case("ts2", "module", "none"),
    Case("gem", "module", "packed"),
    Case("anchored", "tied", "packed"),
    Case("anchored", "untied", "none"),
    Case("anchored", "module", "packed"),
    Case("ce", "untied", "packed", "bf16-mixed"),
    Case("gem", "tied", "none", "bf16-mixed"),
    Case("ts2", "tied", "packed", "bf16-mixed"),
    Case("ts2", "untied", "none", "bf16-mixed"),
    Case("anchored", "untied", "none", "bf16-mixed"),
]
EACH_KIND = [
    Case("ce", "tied", "packed"),
    Case("gem", "module", "packed"),
    Case("ts2", "untied", "none"),
    Case("ts2", "module", "none"),
    Case("anchored", "tied", "packed"),
    Case("anchored", "untied", "none"),
    Case("ts2", "tied", "packed", "bf16-mixed"),
    Case("anchored", "untied", "none", "bf16-mixed"),
]
"""Every loss, model, layout of rows and precision."""


def cases_of(strategy: str) -> list[Case]:
    """What two ranks train: all with whole weights and with sharded ones; with other strategies one of each kind."""
    return CASES if strategy in ("ddp", "fsdp2") else EACH_KIND


def write_world(directory: Path) -> None:
    """Rows, and a model of each kind whose predictions are neither flat nor certain."""
    trained = BATCH_SIZE + PARTIAL
    for split, numbers in {"train": range(trained), "validation": range(trained, trained + VALIDATED)}.items():
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(conversation(n)) + "\n" for n in numbers))
    write_blank_model(directory / "blank")
    blank = LlamaConfig.from_pretrained(directory / "blank")
    for name in ("tied", "untied", "module"):
        tokens = {key: getattr(blank, key) for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
        kind, extra = (GraniteConfig, {"logits_scaling": 0.5}) if name == "module" else (LlamaConfig, {})
        config: PretrainedConfig = kind(**SIZES, **tokens, **extra, tie_word_embeddings=name == "tied")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(8)
        write_blank_model(directory / name)  # the tokenizer
        model.save_pretrained(directory / name)


class Poison(Callback):
    """Makes the loss of one row not a number."""

    def __init__(self, row: int) -> None:
        self.row = row

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        places = (batch["row_index"] == self.row).nonzero().flatten()
        batch["weights"][torch.isin(batch["token_rows"], places)] = torch.nan


class Watch(Callback):
    """Keeps the rows of every step, and the weights at the start and after each."""

    def __init__(self) -> None:
        self.first = 0
        self.before: dict[str, Tensor] = {}
        self.rows: list[list[int]] = [[]]
        self.weights: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.first = trainer.global_step
        self.before = whole_weights(trainer, module)

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.rows[-1] += [row for row in batch["row_index"].tolist() if row >= 0]

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step > self.first + len(self.weights):
            self.weights.append(whole_weights(trainer, module))
            self.rows.append([])


class Identity(torch.autograd.Function):
    """The same value, by a node of its own in the graph."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class WrappedInputs(Callback):
    """Hands every module its inputs through a node of the graph, as ZeRO-3 does.

    A tensor that is used several times gets its gradients summed in the order of the graph's nodes: (a + b) + c becomes
    a + (b + c). The last digit of float32 that this changes may tip a rounding to bfloat16 further down.
    """

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        for part in cast(Any, module).language_model.modules():
            part.register_forward_pre_hook(self.wrap)

    @staticmethod
    def wrap(part: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(Identity.apply(value) if getattr(value, "requires_grad", False) else value for value in inputs)


def whole_weights(trainer: Trainer, module: Any) -> dict[str, Tensor]:
    """Copies of the model's parameters, by name."""
    return {name: whole(p, trainer.strategy) for name, p in module.language_model.named_parameters()}


def whole(parameter: nn.Parameter, strategy: Strategy) -> Tensor:
    """A copy of a parameter that may be sharded."""
    if isinstance(parameter, DTensor):
        return parameter.full_tensor().detach().clone()
    gathered: Any = nullcontext()
    if isinstance(strategy, DeepSpeedStrategy) and strategy.zero_stage_3:
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters([parameter])
    with gathered:
        return parameter.detach().clone()


def rehearsal(name: str) -> Strategy:
    """The strategy of a rehearsal's fragment."""
    fragment = yaml.safe_load((CONFIGS / "strategy" / "rehearsal" / f"{name}.yaml").read_text(encoding="utf-8"))
    parser = ArgumentParser()
    parser.add_subclass_arguments(Strategy, "strategy")
    return parser.instantiate(parser.parse_object({"strategy": fragment["trainer"]["strategy"]})).strategy


def run(
    case: Case,
    world: Path,
    micro_batch_size: int,
    strategy: Any = "auto",
    ranks: int = 1,
    nonfinite: Any = "stop",
    poisoned: int = -1,
    adapter: AdapterConfig | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: Path | None = None,
    act: Literal["fit", "validate"] = "fit",
    reference: str | None = None,
) -> dict[str, Any]:
    """Trains one epoch, or validates, and returns what can be compared.

    Args:
        case: what to train.
        world: that `write_world` wrote.
        micro_batch_size: rows per rank at a time.
        strategy: for the trainer.
        ranks: number of them.
        nonfinite: of the module.
        adapter: of the model.
        callbacks: more of them.
        checkpoint: to go on from, or to validate.
        act: what to do.
        reference: another model of the world, which an anchored objective is anchored to.
        poisoned: a row whose loss is not a number; the message is returned if it ends the training.
    """
    seed_everything(0, verbose=False)
    watch, memory = Watch(), Memory()
    model = str(world / case.model)
    lm, optimizer = LanguageModelConfig(model, adapter=adapter), AdamWConfig(lr=LR, eps=EPS)
    schedule = ScheduleConfig("constant", warmup_ratio=0.0)
    anchor = None if reference is None else str(world / reference)
    module = SFTModule(lm, LOSSES[case.loss](), ChunkedEngine(chunk_size=13), optimizer, schedule, nonfinite, anchor)
    data = SFTData(
        train=str(world / "train.jsonl"), validation=str(world / "validation.jsonl"), tokenizer=model,
        batch_size=BATCH_SIZE, micro_batch_size=micro_batch_size, eval_batch_size=3, packing=case.packing,
        max_length=MAX_LENGTH,
    )  # fmt: skip
    trainer = make_trainer(
        devices=ranks, strategy=strategy, precision=case.precision, gradient_clip_val=CLIP, logger=memory,
        callbacks=[DistributionMonitor(), Poison(poisoned), watch, *callbacks],
    )  # fmt: skip
    error = ""
    try:
        getattr(trainer, act)(module, data, ckpt_path=checkpoint)
    except UserError as stopped:
        if poisoned < 0:
            raise
        error = str(stopped)
    return {
        "accumulation": trainer.accumulate_grad_batches,
        "rows": [rows for rows in watch.rows if rows],
        "logged": memory.steps,
        "validated": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "before": watch.before,
        "weights": watch.weights,
        "error": error,
    }


def adapted(world: Path, out: Path, strategy: Callable[[], Any], ranks: int) -> dict[str, Any]:
    """An adapter trained for two steps, and again for the second alone; what it is validated as; and a smaller one's
    answer to its checkpoint.

    Args:
        world: that `write_world` wrote.
        out: directory of the checkpoints' own.
        strategy: makes one.
        ranks: number of them.
    """
    directory = out / CHECKPOINTS
    first, second = (directory / f"step-00000{number}.ckpt" for number in (1, 2))
    act = partial(run, ADAPTED_CASE, world, BATCH_SIZE // 4, ranks=ranks)
    found: dict[str, Any] = {
        "adapter": act(
            strategy(), adapter=ADAPTER, callbacks=[Checkpoints(str(directory), every_n_steps=1, keep_last=2)]
        ),
        "adapter resumed": act(strategy(), adapter=ADAPTER, checkpoint=first),
        "adapter validated": act(strategy(), adapter=ADAPTER, checkpoint=second, act="validate"),
    }
    try:
        act(strategy(), adapter=replace(ADAPTER, head=False), checkpoint=second, act="validate")
    except UserError as error:
        found["adapter refused"] = str(error)
    return found


def anchored(world: Path, out: Path, strategy: Callable[[], Any], ranks: int) -> dict[str, Any]:
    """Training anchored to the start: the whole model, and again its second step alone; then an adapter likewise; and
    an adapter anchored to another model, of another architecture.

    Args:
        world: that `write_world` wrote.
        out: directory of the checkpoints' own.
        strategy: makes one.
        ranks: number of them.
    """
    outcomes: dict[str, Any] = {}
    for name, case, adapter, reference in (
        ("whole", ANCHORED_CASE, None, None),
        ("adapter", ANCHORED_ADAPTER_CASE, ADAPTER, None),
        ("other", ANCHORED_ADAPTER_CASE, ADAPTER, OTHER_MODEL),
    ):
        directory = out / ANCHORED / name
        act = partial(run, case, world, BATCH_SIZE // 4, ranks=ranks, adapter=adapter, reference=reference)
        outcomes[name] = act(strategy(), callbacks=[Checkpoints(str(directory), every_n_steps=1, keep_last=2)])
        outcomes[f"{name} resumed"] = act(strategy(), checkpoint=directory / "step-000001.ckpt")
    return outcomes


class Sums(LightningModule):
    """Descends by the vectors that it is given: the gradient of a micro-batch is its vector."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(self.place.weight)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.place(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


class LightningsOwn(DeepSpeed):
    """DeepSpeed as Lightning steps it, but on a CPU."""

    precision_plugin = DeepSpeedStrategy.precision_plugin
    handles_gradient_accumulation = DeepSpeedStrategy.handles_gradient_accumulation


VECTORS = [[1.0, 2.0], [3.0, 1.0], [0.0, 4.0], [5.0, 0.0], [2.0, 2.0], [7.0, 1.0]]


def six_by_four(strategy: Strategy) -> dict[str, Any]:
    """Six micro-batches, accumulated by four: where they lead, and in how many steps."""
    trainer = make_trainer(devices=2, strategy=strategy, accumulate_grad_batches=4)
    module = Sums()
    trainer.fit(module, torch.tensor(VECTORS)[:, None])
    return {"place": module.place.weight.flatten().tolist(), "steps": trainer.global_step}


POISONED_CASE, POISONED_ROW = Case("ts2", "untied", "none"), 2
ADAPTED_CASE, ADAPTER = Case("ts2", "tied", "none"), AdapterConfig(r=2, head=True)
ANCHORED_CASE, ANCHORED_ADAPTER_CASE = Case("anchored", "untied", "packed"), Case("anchored", "tied", "none")
CHECKPOINTS, ANCHORED, OTHER_MODEL = "checkpoints", "anchored", "module"
WRAPPED = "wrapped inputs"
NOISY_CASE, NOISE = Case("ce", "tied", "packed"), 20.0


def rank(number: int, name: str, world: Path, out: Path) -> None:
    found: dict[str, Any] = {str(case): run(case, world, 4, rehearsal(name), ranks=2) for case in cases_of(name)}
    if name == "ddp":
        mixed = [case for case in CASES if case.precision == "bf16-mixed"]
        found[WRAPPED] = {
            str(case): run(case, world, 4, rehearsal(name), ranks=2, callbacks=[WrappedInputs()]) for case in mixed
        }
    for nonfinite in ("stop", "skip"):
        found[nonfinite] = run(POISONED_CASE, world, 4, rehearsal(name), 2, nonfinite, POISONED_ROW)
    found["neftune"] = run(NOISY_CASE, world, 4, rehearsal(name), 2, callbacks=[NEFTune(NOISE)])
    if name != "fsdp2_tp2":
        found |= adapted(world, out, lambda: rehearsal(name), 2)
        found[ANCHORED] = anchored(world, out, lambda: rehearsal(name), 2)
    if name == "fsdp2":
        found["to a file"] = adapted(world, out / "to a file", lambda: FSDP2(save_distributed_checkpoint=False), 2)
    if name == "zero2":
        found["six by four"] = {kind.__name__: six_by_four(kind(stage=2)) for kind in (DeepSpeed, LightningsOwn)}
    torch.save(found, out / f"rank{number}.pt")


if __name__ == "__main__":
    fork_ranks(rank, sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
