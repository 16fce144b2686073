"""`generate`: responses of a model to prompts, on disk, made by any number of processes together."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ts2_lightning.cli.asked_models import EVALUATION, AskedModels, add_place_options, asked_help
from ts2_lightning.cli.backend_options import add_backend_options, add_endpoint_options, check_used, vllm_arguments
from ts2_lightning.cli.generation_plan import PlannedPart, add_plan_options, check_plan, parts_of, plan_text
from ts2_lightning.cli.model_places import NotExportedError, add_device, begin
from ts2_lightning.cli.protocol_options import (
    add_protocol_options,
    add_sampling_options,
    number,
    protocol_help,
    spec_of,
)
from ts2_lightning.cli.terminal import OptionParser, put
from ts2_lightning.evaluation import Model
from ts2_lightning.evaluation.distributions import DECODINGS
from ts2_lightning.evaluation.protocols import Protocol
from ts2_lightning.evaluation.protocols.asking import respond
from ts2_lightning.generation import GenerationSettings, Request, Response
from ts2_lightning.generation.requests import Asked
from ts2_lightning.generation.response_files import DIRECTORY
from ts2_lightning.generation.store import ResponseStore
from ts2_lightning.ranges import COUNT, check_number
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError
from ts2_lightning.yaml_files import load_yaml

_ABOUT = """Samples responses of a model to prompts, or to the questions of the papers' protocols, into
DIR/responses/NAME-DIGEST: a line of JSON for each. Those that are there are not made again, whatever has stopped the
command; the same command in other processes, on this or other machines, shares the work. A response follows from model,
prompt, seed and decoding alone, so --n and --limit can be raised later, and `evaluate` finds those of a protocol."""

_SLURM = {"jobs": 2, "gpus_per_node": 1, "time": "8:00:00"}
_OF_PROMPTS: dict[str, Any] = {
    "n": 1,
    "limit": None,
    "seed": 0,
    "temperature": 0.6,
    "top_k": 50,
    "top_p": 0.9,
    "max_new_tokens": 512,
    "batch_size": 64,
}
"""What stands for options of the sampling that are left out, where prompts are sampled: as in the papers' chats."""
_FOR_PROMPTS, _FOR_PROTOCOLS = ("format", "name"), ("data", "variant", "set")
"""Options that only `--prompts`, or only `--protocol`, has use for."""


def run(argv: Sequence[str]) -> int:
    """Generates responses.

    Args:
        argv: the options after the command.

    Returns:
        The exit status, 0.

    Raises:
        UserError: no such model, protocol or file, a setting out of its range, or a prompt that the model does not
            take.
    """
    options = _parser().parse_args(argv)
    begin("generate", options.device, options.out)
    _check(options)
    spec = None if options.protocol is None else spec_of(options)
    with tempfile.TemporaryDirectory(prefix="ts2-generate-") as scratch:
        model = _model(options, Path(scratch))
        asked = [] if spec is None else [one for one in spec.measures if isinstance(one, Protocol)]
        if options.plan or options.slurm is not None:
            put(_plan(model, asked, options))
        if options.plan:
            return 0
        if options.slurm is not None:
            return _submit(options, list(argv), model.out)
        if spec is None:
            _generate(model, options)
        else:
            _respond(model, asked, options.ids)
    return 0


def _model(options: Any, scratch: Path) -> Model:
    """The model; its responses to a protocol go where `evaluate` looks for them."""
    if options.protocol is not None:
        model = AskedModels(options, scratch, Path(options.out or EVALUATION)).model(options.model)
        if model.responses is not None:
            raise UserError(f"{options.model}: these are responses, without a model; `evaluate` scores them")
        return model
    asked = AskedModels(options, scratch, Path()).model(options.model)
    if asked.responses is not None:
        raise UserError(f"{options.model}: these are responses, without a model; name the model")
    return replace(asked, out=_place_of(options, asked.run))


def _place_of(options: Any, run: Path | None) -> Path:
    out = options.out or run
    if out is None:
        raise UserError(f"{options.model}: it is not a run; say with --out where its responses go")
    return Path(out)


def _plan(model: Model, asked: Sequence[Protocol], options: Any) -> str:
    """What it will take. Jobs are submitted also where that cannot be said of their model."""
    jobs, gpus = _shares(options)
    try:
        if asked:
            return plan_text(model, parts_of(model, asked), options.gpu, jobs, gpus)
        prompts = _asked_prompts(model, options)
        part = PlannedPart(prompts.name, prompts.settings, prompts.wanted, prompts.batch_size)
        return plan_text(model, [part], options.gpu, jobs, gpus)
    except NotExportedError as error:
        if options.plan:
            raise
        return f"No plan: {error}"


def _shares(options: Any) -> tuple[int, int]:
    """Number of processes that share the work, and of the GPUs of each."""
    if options.slurm is None:
        return options.processes or 1, 1
    settings = _slurm_settings(options.slurm)
    gpus = settings.get("gpus_per_node")
    return options.processes or settings["jobs"], gpus if isinstance(gpus, int) and gpus > 0 else 1


@dataclass(frozen=True)
class _AskedPrompts:
    """The prompts of a file, and the responses that are wanted to them.

    Attributes:
        name: begins the name of the directory.
        settings: what the responses are made with.
        items: plain values of each prompt by its id.
        wanted: requests of each prompt by its id.
        batch_size: responses at a time.
    """

    name: str
    settings: GenerationSettings
    items: Mapping[str, Mapping[str, Any]]
    wanted: Mapping[str, Sequence[Request]]
    batch_size: int


def _asked_prompts(model: Model, options: Any) -> _AskedPrompts:
    numbers = {name: usual if (own := number(options, name)) is None else own for name, usual in _OF_PROMPTS.items()}
    data = model.validation_data("--prompts", options.prompts, format=options.format or "auto")
    prompts = _prompts(model, data, numbers["limit"])
    settings = model.generation_settings(
        numbers["max_new_tokens"], numbers["seed"], numbers["temperature"], numbers["top_k"], numbers["top_p"]
    )
    items = {str(place): {"text": text, "gold": reference} for place, (text, reference, _) in enumerate(prompts)}
    wanted = {
        str(place): [Request(asked, index, settings) for index in range(numbers["n"])]
        for place, (_, _, asked) in enumerate(prompts)
    }
    return _AskedPrompts(options.name or Path(options.prompts).stem, settings, items, wanted, numbers["batch_size"])


def _generate(model: Model, options: Any) -> None:
    """Responses to the prompts of a file."""
    asked = _asked_prompts(model, options)
    store = ResponseStore(model.out, asked.name, asked.settings, model.name)
    store.add_items(asked.items)
    made = store.fill(asked.wanted, lambda: model.make_backend(asked.batch_size), "Generating", put, options.ids)
    model.forget()
    put(_summary([response for of_item in made.values() for response in of_item], str(store.directory)))


def _prompts(model: Model, data: Any, limit: int | None) -> list[tuple[str, str | None, Asked]]:
    """Text, answer of the row, and what the model is asked: in its own tokens, or in messages where it is served."""
    if model.endpoint is None:
        return [(one.text, one.reference, tuple(one.ids)) for one in model.prompts("--prompts", data, limit)]
    prompts: list[tuple[str, str | None, Asked]] = []
    for place, question in enumerate(model.questions("--prompts", data, limit), 1):
        chat = question.conversation
        more = {name for turn in chat.messages for name in turn} - {"role", "content", "trained"}
        more |= {name for name in ("tools", "documents", "arguments") if getattr(chat, name)}
        if more:
            raise UserError(
                f"--prompts: prompt {place} has {', '.join(sorted(more))}, and an endpoint is asked in messages of "
                "role and content alone; take that out, or take a model that is loaded"
            )
        asked = tuple({"role": turn["role"], "content": turn["content"]} for turn in chat.messages)
        prompts.append((chat.messages[-1]["content"], question.reference, asked))
    return prompts


def _respond(model: Model, protocols: Sequence[Protocol], keep_ids: bool) -> None:
    """Responses to the questions of protocols, where `evaluate` looks for them. Nothing is scored."""
    parts = [(protocol, protocol.asked(model, part)) for protocol in protocols for part in protocol.parts()]
    for protocol, asked in parts:  # all rows have been read by now: none is wrong after hours of sampling
        answered = respond(model, asked, model.out, protocol.batch_size, put, keep_ids)
        put(_summary([one for _, of_item in answered for one in of_item], asked.name))
    model.forget()
    put(f"{model.out / DIRECTORY}: `evaluate` with the same options scores them")


def _summary(responses: Sequence[Response], place: str) -> str:
    tokens = sum(response.tokens for response in responses)
    cut = sum(response.finish == "length" for response in responses)
    return (
        f"{len(responses):,} responses, {tokens / len(responses):,.1f} tokens each, {100 * cut / len(responses):.1f} % "
        f"cut off -> {place}"
    )


def _check(options: Any) -> None:
    for name in _OF_PROMPTS:
        number(options, name)
    if options.decoding not in DECODINGS:
        hint = did_you_mean(options.decoding, DECODINGS) or f"; there are {', '.join(DECODINGS)}"
        raise UserError(f"--decoding: no decoding {options.decoding!r}{hint}")
    own, others = ("prompts", _FOR_PROTOCOLS) if options.protocol is None else ("protocol", _FOR_PROMPTS)
    if wrong := next((name for name in others if getattr(options, name) is not None), None):
        raise UserError(f"--{wrong}: is of no use with --{own}; leave it out")
    if number(options, "temperature") == 0 and (number(options, "n") or 1) > 1:
        raise UserError(f"--n {options.n}: at temperature 0 all samples are the same; leave it out, or --temperature")
    if options.name is not None and (Path(options.name).name != options.name or options.name[:1] in ("", ".")):
        raise UserError(f"--name {options.name}: it begins the name of a directory; write a word without slashes")
    check_plan(options)
    vllm_arguments(options)
    check_used(options, [options.model])


# Jobs of SLURM --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One process of an array: the command itself. What SLURM stops it puts back into the queue, and it goes on.

    Attributes:
        argv: options of the command.
    """

    argv: tuple[str, ...]

    def __call__(self) -> int:
        """Generates what nobody else does."""
        return run(self.argv)

    def checkpoint(self) -> Any:
        """What submitit starts in the place of a job that is about to be stopped."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _submit(options: Any, argv: list[str], out: Path) -> int:
    """Submits an array of jobs that share the work. They end by themselves when nothing is left."""
    try:
        import submitit
    except ImportError as error:
        raise UserError("--slurm needs submitit: pip install 'ts2-lightning[slurm]'") from error
    settings = _slurm_settings(options.slurm)
    jobs = settings.pop("jobs")
    own = _without(argv, ("--slurm", "--gpu", "--processes"))
    folder = out / DIRECTORY / "slurm"
    try:
        executor = submitit.SlurmExecutor(folder)
        executor.update_parameters(**settings)
        with executor.batch():
            submitted = [executor.submit(Job(tuple(own))) for _ in range(jobs)]
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"--slurm: submitit cannot use these parameters: {error}") from error
    except (RuntimeError, OSError) as error:
        said = "; ".join(str(error).splitlines()) or type(error).__name__
        raise UserError(f"--slurm: sbatch has not taken the jobs: {said}") from error
    put(f"{jobs} jobs, {submitted[0].job_id} to {submitted[-1].job_id}, share the responses; their logs: {folder}")
    return 0


def _without(argv: Sequence[str], options: Sequence[str]) -> list[str]:
    """A command line without some of its options, which have a value each.

    >>> _without(["m", "--slurm", "x", "--gpu=a", "--n", "2"], ["--slurm", "--gpu"])
    ['m', '--n', '2']
    """
    words = iter(argv)
    left = []
    for word in words:
        if word in options:
            next(words, None)
        elif not word.startswith(tuple(f"{option}=" for option in options)):
            left.append(word)
    return left


def _slurm_settings(text: str) -> dict[str, Any]:
    """The parameters of jobs: a YAML file, or the text itself."""
    shown = f"write --slurm {_SLURM!r}, or name such a YAML file"
    try:
        settings = load_yaml(text if text.lstrip().startswith("{") else Path(text).read_text("utf-8"), "--slurm")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--slurm {text}: cannot be read; {shown}") from error
    if not isinstance(settings, Mapping) or "jobs" not in settings:
        raise UserError(f"--slurm: how many jobs share the work? {shown}")
    check_number("--slurm: jobs", settings["jobs"], COUNT)
    more = {"requeue": True, **(settings.get("additional_parameters") or {})}
    plain = {name: value for name, value in settings.items() if name != "additional_parameters"}
    if isinstance(plain.get("time"), str):
        more["time"] = plain.pop("time")  # submitit calculates with its own, which is in minutes
    return {"job_name": "generate", "time": None, **plain, "additional_parameters": more}


def _parser() -> OptionParser:
    parser = OptionParser("generate", _ABOUT)
    parser.add_argument("model", metavar="MODEL", help=asked_help())
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompts", metavar="FILE", help="prompts, in any format of `data`; answers in it are left out")
    what.add_argument("--protocol", metavar="NAME,...", help=protocol_help())
    usual = {name: f"{value}; of a protocol, the paper's" for name, value in _OF_PROMPTS.items()}
    add_sampling_options(parser, {**usual, "limit": "all", "seed": "0", "batch_size": "64"})
    parser.add_argument("--decoding", default="softmax", help=f"{', '.join(DECODINGS)} (default: softmax)")
    parser.add_argument("--template", default="auto", help="chat template (default: that of the model, else plain)")
    add_backend_options(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        help=f"responses go to DIR/{DIRECTORY} (default: the run); with --protocol as of `evaluate`: those of a run to "
        f"the run, of another model to a directory below DIR (default: {EVALUATION})",
    )
    parser.add_argument("--ids", action="store_true", help="write token ids too")
    parser.add_argument(
        "--slurm",
        metavar="FILE|TEXT",
        help="submit an array of jobs that share the work, with submitit's parameters, such as '{jobs: 8, "
        'gpus_per_node: 1, time: "8:00:00"}\'',
    )
    add_plan_options(parser)
    parser.add_argument("--format", help="with --prompts: their format (default: found row by row)")
    parser.add_argument("--name", help="with --prompts: begins the name of the directory (default: the file's name)")
    add_protocol_options(parser)
    add_place_options(parser)
    add_endpoint_options(parser)
    add_device(parser)
    return parser
