"""What making responses will take: `--plan` of `generate` and `evaluate`; `ablate --dry-run` says it of protocols.

No weights are loaded, and nothing is written: prompts are put into tokens, and responses that are there are counted.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ts2_lightning.cli.terminal import OptionParser, rounded
from ts2_lightning.evaluation import Model
from ts2_lightning.evaluation.protocols import Protocol
from ts2_lightning.generation.backends.vllm import PREFIX as VLLM_PREFIX
from ts2_lightning.generation.rates import Rate, read_rates
from ts2_lightning.generation.requests import GenerationSettings, Request
from ts2_lightning.generation.response_files import Reader
from ts2_lightning.generation.store import missing, place_of
from ts2_lightning.modules.model_files import read_architecture
from ts2_lightning.planning import (
    GPU,
    GPUS,
    TRANSFORMERS,
    VLLM,
    Decoding,
    GenerationCost,
    Sampler,
    Wanted,
    find_gpu,
    generation_cost,
    gpu_of_device,
)
from ts2_lightning.ranges import COUNT, check_number
from ts2_lightning.types import UserError

_GIB = 2**30
_WIDTH = 1000  # nothing is cut off: a row is one line, for eyes and for grep
_GPU = "h200"
CHARACTERS = 4
"""Characters that a token of a served model is taken to have, whose tokenizer is not here."""


@dataclass(frozen=True)
class PlannedPart:
    """Responses that are wanted under one name.

    Attributes:
        name: name of what is asked.
        settings: what the responses are made with.
        wanted: requests of each item by its id.
        batch_size: responses at a time, with transformers.
        judging: what judging the responses takes, see `Protocol.judging`.
        models_used: other models that are used for that; `none`.
    """

    name: str
    settings: GenerationSettings
    wanted: Mapping[str, Sequence[Request]]
    batch_size: int
    judging: Mapping[str, float] = field(default_factory=dict)
    models_used: str = "none"


@dataclass(frozen=True)
class PlannedCost:
    """What a part takes.

    Attributes:
        name: name of what is asked.
        there: number of responses that are there.
        cost: what the others take.
        rates: what was measured of those that are there.
    """

    name: str
    there: int
    cost: GenerationCost
    rates: Sequence[Rate] = ()


def add_plan_options(parser: OptionParser) -> None:
    """Adds the options of a plan."""
    parser.add_argument(
        "--plan", action="store_true", help="say what it will take: responses, tokens, memory, GPU hours; make nothing"
    )
    parser.add_argument("--gpu", metavar="NAME", help=gpu_help())
    parser.add_argument(
        "--processes", type=int, metavar="N", help="with --plan: processes that share the work (default: 1)"
    )


def check_plan(options: Any) -> None:
    """Raises UserError for options of a plan that is not asked for, or numbers and GPUs that there are not."""
    for name in ("gpu", "processes"):
        if getattr(options, name) is not None and not (options.plan or getattr(options, "slurm", None) is not None):
            raise UserError(f"--{name}: is for --plan; leave it out, or add --plan")
    if options.processes is not None:
        check_number("--processes", options.processes, COUNT)
    if options.gpu is not None:
        find_gpu(options.gpu)


def gpu_help() -> str:
    """What `--gpu` takes, for the help."""
    return f"kind of GPU of the plan: {', '.join(GPUS)} (default: this machine's, else {_GPU})"


def parts_of(model: Model, protocols: Iterable[Protocol]) -> list[PlannedPart]:
    """The responses that protocols want of a model; its tokenizer is loaded, and no weights."""
    asked = [(protocol, protocol.asked(model, part)) for protocol in protocols for part in protocol.parts()]
    return [
        PlannedPart(
            one.name, one.settings, one.wanted, protocol.batch_size, protocol.judging(len(one.items) * one.n),
            protocol.models_used,
        )
        for protocol, one in asked
    ]  # fmt: skip


def plan_text(model: Model, parts: Sequence[PlannedPart], gpu: str | None, processes: int, gpus: int = 1) -> str:
    """The plan of a model.

    Args:
        model: the model.
        parts: what is asked.
        gpu: kind of GPU; None for this machine's.
        processes: number of processes that share the work.
        gpus: number of GPUs that each has.

    Raises:
        UserError: no such GPU, a config whose sizes cannot be counted, or files that cannot be read.
    """
    check_number("--processes", processes, COUNT)
    device = None if model.endpoint is not None else the_gpu(gpu)
    decoding = None if device is None else decoding_of(model)
    sampler = None if device is None else sampler_of(model)
    costs = [_planned(model, part, decoding, device, sampler) for part in parts]
    lines = [f"== {model.name}"]
    if decoding is not None and device is not None and sampler is not None:
        lines.append(_headline(decoding, device, model, costs))
    lines += [_table(costs), *_remarks(costs, processes, gpus), *_judging(parts)]
    return "\n".join(lines)


def the_gpu(name: str | None) -> GPU:
    """The GPU of a plan: the one that is named, or this machine's, or an H200.

    Raises:
        UserError: there are no figures of it.
    """
    if name is not None:
        return find_gpu(name)
    own = gpu_of_device(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return own or find_gpu(_GPU)


def decoding_of(model: Model) -> Decoding:
    """What a model takes while it generates, in the dtype that its backend gives it: that of its files, or vLLM's."""
    stated = getattr(torch, str(model.vllm_args.get("dtype")), None)
    dtype = stated if isinstance(stated, torch.dtype) else read_architecture(model.place, pretrained=False).dtype
    dtype = dtype if isinstance(dtype, torch.dtype) else torch.float32
    if model.backend.startswith(VLLM_PREFIX) and stated is None and dtype == torch.float32:
        dtype = torch.bfloat16  # as vLLM chooses
    return Decoding.of(model.place, dtype)


def sampler_of(model: Model) -> Sampler:
    """What makes the responses of a model, as its options set it."""
    if not model.backend.startswith(VLLM_PREFIX):
        return TRANSFORMERS
    arguments = model.vllm_args
    sizes = [arguments.get(name, 1) for name in ("tensor_parallel_size", "pipeline_parallel_size")]
    for name, size in zip(("tensor_parallel_size", "pipeline_parallel_size"), sizes, strict=True):
        check_number(f"vllm_args: {name}", size, COUNT)
    gpus = math.prod(sizes) if "tensor_parallel_size" in arguments or "pipeline_parallel_size" in arguments else None
    return replace(
        VLLM,
        at_once=arguments.get("max_num_seqs", VLLM.at_once),
        memory=arguments.get("gpu_memory_utilization", VLLM.memory),
        gpus=gpus,
    )


def _planned(
    model: Model, part: PlannedPart, decoding: Decoding | None, gpu: GPU | None, sampler: Sampler | None
) -> PlannedCost:
    """What is left of a part, and what it takes."""
    directory = place_of(model.out, part.name, part.settings)
    left = missing(Reader(directory), part.wanted)
    total = len({request.key for requests in part.wanted.values() for request in requests})
    wanted = _wanted(model, part, left)
    rates = [rate for rate in read_rates(directory) if rate.is_enough]
    if decoding is None or gpu is None or sampler is None:
        cost = GenerationCost(wanted)
    else:
        sampler = sampler if sampler.splits else replace(sampler, at_once=part.batch_size)
        cost = generation_cost(wanted, decoding, gpu, sampler)
        backend = "vllm" if sampler.splits else "transformers"
        same = [one for one in rates if one.backend == backend and gpu_of_device(one.device) is gpu and one.devices]
        if same:  # of a process, which may have several copies of the model
            each = same[0].tokens_per_second / max(1, same[0].devices // cost.gpus)
            cost = generation_cost(wanted, decoding, gpu, sampler, each)
            rates = [one for one in rates if one is not same[0]]
    return PlannedCost(part.name, total - wanted.responses, cost, rates)


def _wanted(model: Model, part: PlannedPart, left: Mapping[str, Sequence[Request]]) -> Wanted:
    context = None if model.endpoint is not None else model.limits.context
    asked = []
    for requests in left.values():
        length = _length(requests[0])
        limit = part.settings.max_new_tokens
        room = limit if context is None else max(0, context - length)
        asked.append((length, len(requests), min(limit, room)))
    return Wanted.of(asked)


def _length(request: Request) -> int:
    """Tokens of a prompt; of one in text or messages an estimate."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return math.ceil(len(prompt) / CHARACTERS)
    if prompt and isinstance(prompt[0], Mapping):
        turns: Any = prompt
        return math.ceil(sum(len(turn["content"]) for turn in turns) / CHARACTERS)
    return len(prompt)


# Text -----------------------------------------------------------------------------------------------------------


def _headline(decoding: Decoding, gpu: GPU, model: Model, costs: Sequence[PlannedCost]) -> str:
    longest = max((one.cost for one in costs), key=lambda cost: cost.wanted.longest)
    backend = "vLLM" if model.backend.startswith(VLLM_PREFIX) else "transformers"
    parameters = rounded(sum(w.elements for w in decoding.sizes.weights))
    return (
        f"{decoding.sizes.architecture}, {parameters} parameters, {str(decoding.dtype).split('.')[-1]}, "
        f"with {backend} on {gpu.name} ({gpu.memory / _GIB:.1f} GiB)\n"
        f"weights {decoding.weights / _GIB:,.2f} GiB, cache {longest.cache / 2**20:,.1f} MiB for a response of "
        f"{longest.wanted.longest:,} tokens with its prompt"
    )


def _table(costs: Sequence[PlannedCost]) -> str:
    table = Table(box=None, pad_edge=False, header_style="")
    is_served = all(one.cost.gpu is None for one in costs)
    titles = ["", "to make", "there", "prompt tokens" + (" (about)" if is_served else ""), "new tokens, at most"]
    titles += [] if is_served else ["at once", "GPUs", "tokens/s", "GPU hours"]
    for place, title in enumerate(titles):
        table.add_column(title, justify="right" if place else "left", no_wrap=True)
    for one in costs:
        wanted, cost = one.cost.wanted, one.cost
        row = [f"{number:,}" for number in (wanted.responses, one.there, wanted.prompt_tokens, wanted.new_tokens)]
        if not is_served:
            per_second = wanted.new_tokens / cost.seconds if cost.seconds else None
            row += [f"{cost.at_once:,}", str(cost.gpus), "-" if per_second is None else f"{per_second:,.0f}"]
            row.append(hours(cost.gpu_hours))
        table.add_row(one.name, *row)
    return rendered(table)


def _remarks(costs: Sequence[PlannedCost], processes: int, gpus: int) -> list[str]:
    """What stands below the table: whether it fits, hours in all, what is an estimate and what was measured."""
    lines = []
    on_gpus = [one for one in costs if one.cost.gpu is not None]
    if on_gpus:
        lines += _verdict(on_gpus)
        lasting = [one.cost.wall_hours(processes * max(gpus, one.cost.gpus)) for one in on_gpus]
        if None not in lasting:
            many = "1 process" if processes == 1 else f"{processes} processes"
            each = max([gpus, *(one.cost.gpus for one in on_gpus)])
            lines.append(
                f"{hours(sum(one.cost.gpu_hours or 0 for one in on_gpus))} GPU hours; "
                f"{hours(sum(filter(None, lasting)))} hours with {many} of {each} GPU{'s' if each > 1 else ''}"
            )
        lines.append(estimate_note(on_gpus[0].cost))
    lines += [_measured(one) for one in on_gpus if one.cost.rate is not None]
    for one in costs:
        for rate in one.rates:
            left = one.cost.wanted.new_tokens / rate.tokens_per_second / 3600
            where = f"on {rate.devices} x {rate.device}" if rate.devices else "by the server"
            lines.append(
                f"{one.name}: measured {where} with {rate.backend}: {rate.tokens_per_second:,.0f} tokens a second, "
                f"{rate.tokens / rate.responses:,.0f} tokens a response: {hours(left)} hours at most for one process"
            )
    return lines


def _judging(parts: Sequence[PlannedPart]) -> list[str]:
    """What is needed of other models, part by part."""
    lines = []
    for part in parts:
        if part.models_used != "none":
            numbers = "".join(f", {number:,.6g} {unit}" for unit, number in part.judging.items())
            lines.append(f"{part.name}: judging needs {part.models_used}{numbers}")
    return lines


def _verdict(costs: Sequence[PlannedCost]) -> list[str]:
    wrong = next((one.cost for one in costs if not one.cost.fits), None)
    if wrong is None:
        return ["It fits."]
    assert wrong.gpu is not None
    if not wrong.at_once:
        return [
            f"WARNING: it does not fit on {wrong.gpus} x {wrong.gpu.name}: take more with vLLM's tensor_parallel_size, "
            "or fewer max_new_tokens"
        ]
    return [
        f"WARNING: it does not fit on one {wrong.gpu.name}, where transformers has it: take --backend vllm:PYTHON "
        f"--vllm_args '{{tensor_parallel_size: {wrong.gpus}}}'"
    ]


def estimate_note(cost: GenerationCost) -> str:
    """What kind of number the hours are."""
    return (
        f"An estimate, of {cost.efficiency:.0%} of the GPU's peak flops and bandwidth, if every response takes all the "
        "tokens that it may have."
    )


def _measured(one: PlannedCost) -> str:
    assert one.cost.gpu is not None
    return (
        f"{one.name}: not estimated but at the rate of the responses that are there, {one.cost.rate:,.0f} tokens a "
        f"second for each copy of the model on {one.cost.gpu.name}"
    )


def hours(number: float | None) -> str:
    """Hours for people.

    >>> hours(None), hours(0.0), hours(0.00002), hours(0.0312), hours(2.5), hours(1234.5)
    ('-', '0', '< 0.001', '0.031', '2.5', '1,234')
    """
    if number is None:
        return "-"
    if 0 < number < 0.001:
        return "< 0.001"
    return f"{number:,.0f}" if number >= 100 or not number else f"{number:.2g}"


def rendered(table: Table) -> str:
    """A table as plain text, none of its lines cut off."""
    console = Console(width=_WIDTH, color_system=None, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())
