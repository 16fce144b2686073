"""`plan`: memory per GPU, time per step and checkpoints of a configuration, from its settings alone.

No weights are read. A run on CPUs is planned for this machine, whose memory is measured and whose speed is not.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table

from ts2_lightning.cli import program
from ts2_lightning.cli.base_models import with_config, with_reference_config, with_rows_for_tokens
from ts2_lightning.cli.errors.parser import Parser, require_nothing
from ts2_lightning.cli.lightning_cli import TS2CLI, run_command
from ts2_lightning.cli.terminal import put, rounded
from ts2_lightning.data.lengths import check_length, row_length
from ts2_lightning.modules import LanguageModelConfig, SFTModule
from ts2_lightning.modules.adapter_start import check_adapter_files
from ts2_lightning.modules.language_model import read_limits
from ts2_lightning.planning import (
    EFFICIENCY,
    GPU,
    GPUS,
    WARNING_SECONDS,
    WRITE_SPEED,
    Job,
    Machine,
    Memory,
    Plan,
    find_gpu,
    make_plan,
    this_machine,
)
from ts2_lightning.planning.public_models import public_config
from ts2_lightning.ranges import COUNT, NULL, POSITIVE, Range, check_numbers
from ts2_lightning.types import UserError

_GIB = 2**30
_GB = 1e9
_WIDTH = 100
_GPU = "h200"  # where neither the user nor the trainer's accelerator says something else


def run(argv: Sequence[str]) -> int:
    """Prints the plan of a configuration.

    Args:
        argv: the options after the command: those of `fit`, and those of `PlanCLI`.

    Returns:
        The exit status: 0, also for a job that does not fit. Whether it does is told, and is `fits` in the JSON: a plan
        that could be made is no error.

    Raises:
        UserError: no model, or a GPU, an accelerator or a strategy without figures.
    """
    return run_command("fit", argv, PlanCLI)


class PlanCLI(TS2CLI):
    """Reads the settings of `fit`, and builds nothing but the loss and its engine, and the datamodule to check it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.description = "Memory per GPU, time per step and checkpoints, from the settings alone."

    def add_arguments_to_parser(self, parser: Any) -> None:
        """The options of `fit`, of which only the model's is required."""
        super().add_arguments_to_parser(parser)
        require_nothing(parser)
        parser.add_argument("--gpu", type=str | None, default=None, help=_GPU_HELP)
        parser.add_argument(
            "--gpus", type=int | None, default=None, help="GPUs, or CPU processes, of a node. Default: trainer.devices."
        )
        parser.add_argument("--nodes", type=int | None, default=None, help="Nodes. Default: trainer.num_nodes.")
        parser.add_argument(
            "--hfu", type=float, default=EFFICIENCY, help="Share of a GPU's peak operations that is reached, a guess."
        )
        parser.add_argument(
            "--write_speed",
            type=float,
            default=WRITE_SPEED / _GB,
            help="GB/s at which all processes together write a checkpoint, a guess.",
        )
        parser.add_argument("--json", type=bool, default=False, help="Print JSON, in bytes and seconds.")

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parses the command line under the name that the user gave the command."""
        self._subcommand_parsers[self.command].prog = f"{program()} plan"
        super().parse_arguments(parser, args)

    def before_instantiate_classes(self) -> None:
        """Nothing is made for what is left open, and no run directory."""
        _check(self.settings)

    def instantiate_classes(self) -> None:
        """Only the module, which has no weights before a trainer asks for them; the datamodule for its checks."""
        self.settings.model.pop("class_path", None)
        parser = Parser()
        parser.add_class_arguments(self.model_class, "model")
        parser.add_class_arguments(self.datamodule_class, "data")
        self.model = parser.instantiate(Namespace(model=self.settings.model, data=self.settings.data)).model
        check_module(self.model, "plan")

    def _run_subcommand(self, subcommand: str) -> None:
        check_adapter_files(self.model.lm.adapter, self.model.lm.written_path or self.model.lm.path)
        reference = getattr(self.model, "reference", None)
        with (
            _with_public_config(self.model.lm.path, self.model.lm.revision) as path,
            _with_public_config(reference) as other,
            with_config(replace(self.model.lm, path=path)) as lm,
            with_reference_config(other) as reference,
        ):
            plan = make_plan(replace(job_of(self.settings, self.model, lm), reference=reference))
        put(json.dumps(as_json(plan), indent=2) if self.settings.json else report(plan))


def check_module(module: Any, what: str) -> None:
    """Raises UserError unless a module has what a plan follows from.

    Args:
        module: module of the settings.
        what: what needs it, for the message.
    """
    if not all(hasattr(module, name) for name in ("lm", "loss", "engine")):
        raise UserError(
            f"model.class_path: {what} needs a module that has lm, loss and engine, as SFTModule has, not "
            f"{type(module).__name__}"
        )


@contextmanager
def _with_public_config(path: str | None, revision: str | None = None) -> Iterator[Any]:
    """A directory with the config of a public model, which needs no network and no access; any other path as it is."""
    config = None if path is None or revision or Path(path).exists() else public_config(path)
    if config is None:
        yield path
        return
    print(f"{path}: planned with the sizes that this package has of it; nothing was fetched", file=sys.stderr)
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield directory


def _check(settings: Any) -> None:
    if settings.get("model.lm.path") is None:
        raise UserError("model.lm.path: plan needs a model; give the configuration of an experiment with -c FILE")
    counts = dict.fromkeys(("gpus", "nodes"), (COUNT, NULL))
    check_numbers("--", settings, **counts, hfu=Range(above=0, most=1), write_speed=POSITIVE)


def device_of(gpu: str | None, accelerator: Any) -> GPU | Machine:
    """The device of a plan: the GPU that is named, or the device that the trainer would take.

    Args:
        gpu: Kind of GPU, or None.
        accelerator: Accelerator of the trainer.

    Raises:
        UserError: there are no figures of the GPU, or the accelerator is neither a GPU nor a CPU.
    """
    if gpu is not None:
        return find_gpu(gpu)
    if accelerator == "cpu":
        return this_machine()
    if accelerator not in ("auto", "gpu", "cuda"):
        raise UserError(
            f"trainer.accelerator: plan has figures of GPUs and the memory of CPUs, not of {accelerator!r}; name a GPU "
            "with --gpu, or set the accelerator to cpu"
        )
    return find_gpu(_GPU)


def job_of(settings: Any, model: SFTModule, lm: LanguageModelConfig) -> Job:
    """The job of the settings of `plan`."""
    job = job_of_fit(settings, model, lm, device_of(settings.gpu, settings.trainer.accelerator))
    return replace(
        job,
        gpus_per_node=settings.gpus or job.gpus_per_node,
        nodes=settings.nodes or job.nodes,
        efficiency=settings.hfu,
        write_speed=settings.write_speed * _GB,
        asynchronous=_saves_asynchronously(settings.trainer.callbacks),
    )


def job_of_fit(settings: Any, model: SFTModule, lm: LanguageModelConfig, device: GPU | Machine) -> Job:
    """The job of the settings of `fit` on a kind of device."""
    trainer, data = settings.trainer, settings.data
    lm = with_rows_for_tokens(lm, data.tokenizer or model.lm.path)
    limits = read_limits(lm)
    check_length(data.max_length, limits)
    return Job(
        lm=lm,
        loss=model.loss,
        engine=model.engine,
        strategy=trainer.strategy if isinstance(trainer.strategy, str) else trainer.strategy.as_dict(),
        # What a run takes where nothing is set.
        precision=trainer.precision or ("bf16-mixed" if isinstance(device, GPU) else "32-true"),
        rows=data.batch_size,
        micro_batch=data.micro_batch_size,
        max_length=row_length(data.max_length, limits),
        packing=data.packing,
        device=device,
        gpus_per_node=devices(trainer.devices),
        nodes=trainer.num_nodes,
    )


def _saves_asynchronously(callbacks: Any) -> bool:
    """Whether one of the trainer's callbacks, as its settings have them, writes checkpoints while training goes on."""
    named = [callback for callback in callbacks or [] if callback.class_path.rpartition(".")[2] == "Checkpoints"]
    return any(bool(callback.get("init_args", {}).get("asynchronous")) for callback in named)


def devices(setting: Any) -> int:
    """Number of devices that `trainer.devices` stands for, which is a number, a list, or numbers with commas.

    It is 1 for `auto` and -1, which depend on the machine.

    >>> devices(4), devices("2"), devices("0,1"), devices([0, 2]), devices("auto"), devices(-1)
    (4, 2, 2, 2, 1, 1)
    """
    if isinstance(setting, list):
        return len(setting)
    words = str(setting).strip(",").split(",")
    if len(words) > 1:
        return len(words)
    return max(1, int(words[0])) if words[0].lstrip("-").isdigit() else 1


# The report ----------------------------------------------------------------------------------------------------


_TERMS = {
    "weights": "weights",
    "reference": "frozen reference model",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "communication": "communication and gathered, at most",
    "activations": "activations, kept",
    "backward": "+ in the backward pass",
    "loss": "+ in the loss engine",
    "update": "+ in the update",
    "margin": "margin (estimate)",
    "total": "total",
    "host": "in the host's memory, for each GPU",
}


def report(plan: Plan) -> str:
    """The whole output of the command, as text."""
    times = [_time_table(plan)] if plan.duration else []
    memory = f"{_memory_table(plan)}\n{_FOOTNOTE.format(_unit(plan))}"
    return "\n\n".join([_headline(plan), memory, *times, _saving(plan), _verdict(plan)])


_FOOTNOTE = (
    "  GiB = 2^30 bytes of tensors on the first {}, if every row has max_length tokens. The total\n"
    "  is of what is kept and the larger of backward pass and loss engine, or of the update."
)


def _headline(plan: Plan) -> str:
    job = plan.job
    trained = sum(w.elements for w in plan.sizes.weights if w.trained)
    parameters = f"{rounded(plan.sizes.parameters)} parameters"
    if trained < plan.sizes.parameters:
        parameters += f", {rounded(trained)} trained"
    nodes = f" in {job.nodes} nodes" if job.nodes > 1 else ""
    if isinstance(job.device, GPU):
        place = f"{job.gpus} x {job.device.name}{nodes} ({job.device.memory / _GIB:.1f} GiB each)"
    else:
        processes = f"{job.gpus} processes" if job.gpus > 1 else "1 process"
        place = f"{processes} on {job.device.name}{nodes} ({job.device.memory / _GIB:.1f} GiB for all of a node)"
    return "\n".join(
        [
            f"{plan.sizes.architecture}, {parameters}; {type(job.loss).__name__}, {type(job.engine).__name__}",
            f"{place}; {job.layout.name}, {job.precision}, {plan.sizes.attention} attention",
            f"{job.rows} rows a step: micro-batches of {job.micro_batch} x {job.max_length:,} tokens, "
            f"{job.accumulation} on each {_unit(plan)}",
        ]
    )


def _unit(plan: Plan) -> str:
    return "GPU" if isinstance(plan.job.device, GPU) else "process"


def _columns(plan: Plan) -> list[tuple[str, bool]]:
    """With and without checkpointing; the one that is set is marked."""
    names = {True: "gradient checkpointing", False: "no checkpointing"}
    return [(f"{names[mode]}{' *' if mode == plan.checkpointing else ''}", mode) for mode in plan.memory]


def _memory_table(plan: Plan) -> str:
    rows = []
    for term, name in _TERMS.items():
        values = [getattr(plan.memory[mode], term) for _, mode in _columns(plan)]
        if any(values):
            rows.append([f"  {name}", *(f"{value / _GIB:,.2f}" for value in values)])
    return _table([f"Memory per {_unit(plan)} in GiB (* as set)", *(title for title, _ in _columns(plan))], rows)


def _time_table(plan: Plan) -> str:
    head = [f"Seconds of a step (estimate, {plan.job.efficiency:.0%} of peak)", "step", "compute", "waiting", "update"]
    rows = []
    for title, mode in _columns(plan):
        d = plan.duration[mode]
        seconds = (f"{value:,.3g}" for value in (d.step, d.compute, d.communication, d.update))
        rows.append([f"  {title}", *seconds, f"{d.tokens_per_second:,.0f}", f"{d.mfu:.0%}"])
    return _table([*head, "tokens/s", "MFU"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    table = Table(box=None, pad_edge=False, header_style="")
    for number, title in enumerate(head):
        table.add_column(title, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(width=_WIDTH, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


def _saving(plan: Plan) -> str:
    """How large a checkpoint is, and whether a run that is warned of its time limit can write one."""
    saving = plan.saving
    speed = f"{saving.speed / _GB:g} GB/s (--write_speed, a guess)"
    size = f"{saving.size / _GB:,.1f} GB" if saving.size >= _GB else f"{saving.size / 1e6:,.1f} MB"
    lines = [f"Checkpoint: {size}, written in {saving.write:,.3g} s at {speed}."]
    if not saving.is_warned_in_time:
        what = "to finish its step and to save" if saving.step else "to save"
        lines += [
            f"WARNING: fit.slurm has a run warned {WARNING_SECONDS} s before its time limit, and it needs "
            f"{saving.seconds:,.0f} s",
            f"  {what}: sbatch --signal=USR1@{saving.warning}, or SBATCH_SIGNAL=USR1@{saving.warning}",
        ]
    return "\n".join(lines)


def _verdict(plan: Plan) -> str:
    needed, there = plan.needed / _GIB, plan.job.room / _GIB
    if plan.fits:
        return f"It fits: {needed:,.1f} of {there:,.1f} GiB."
    lines = [f"WARNING: it will not fit: {needed:,.1f} GiB are needed and {there:,.1f} GiB are there."]
    lines += [f"  fits with {remedy}" for remedy in plan.remedies]
    if not plan.remedies:
        more = "GPUs" if isinstance(plan.job.device, GPU) else "memory"
        lines.append(f"  neither checkpointing, another strategy nor smaller micro-batches help: take more {more}")
    return "\n".join(lines)


def as_json(plan: Plan) -> dict[str, Any]:
    """The whole output of the command for `--json`, in bytes and seconds; `gpu` or `machine` is null."""
    job, saving = plan.job, plan.saving
    device = {"name": job.device.name, "memory": job.device.memory}
    gpu = device | {"source": job.device.source} if isinstance(job.device, GPU) else None
    return {
        "model": {"architecture": plan.sizes.architecture, "parameters": plan.sizes.parameters},
        "gpu": gpu,
        "machine": None if gpu else device,
        "gpus": job.gpus,
        "nodes": job.nodes,
        "strategy": job.layout.name,
        "precision": str(job.precision),
        "micro_batches": job.accumulation,
        "gradient_checkpointing": plan.checkpointing,
        "memory": {_KEYS[mode]: _memory_json(memory) for mode, memory in plan.memory.items()},
        "step": {_KEYS[mode]: asdict(d) | {"seconds": d.step} for mode, d in plan.duration.items()},
        "hfu": job.efficiency,
        "checkpoint": {
            "bytes": saving.size,
            "write_speed": saving.speed,
            "seconds": saving.write,
            "warned_in_time": saving.is_warned_in_time,
            "warning_seconds": saving.warning,
        },
        "fits": plan.fits,
        "fits_with": plan.remedies,
    }


_GPU_HELP = f"One of {', '.join(GPUS)}. Default: {_GPU}; where trainer.accelerator is cpu, this machine's memory."
_KEYS = {True: "checkpointing", False: "no_checkpointing"}


def _memory_json(memory: Memory) -> dict[str, int]:
    return asdict(memory) | {"margin": memory.margin, "total": memory.total}
