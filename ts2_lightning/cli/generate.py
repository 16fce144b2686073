"""`generate`: responses of a model to prompts, on disk, made by any number of processes together."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from ts2_lightning.cli.backend_options import add_backend_options, vllm_arguments
from ts2_lightning.cli.model_places import add_device, begin, find_model, model_help
from ts2_lightning.cli.terminal import OptionParser, put
from ts2_lightning.evaluation import Model
from ts2_lightning.evaluation.distributions import DECODINGS
from ts2_lightning.generation import DECODING, Request, Response
from ts2_lightning.generation.store import DIRECTORY, ResponseStore
from ts2_lightning.ranges import COUNT, NULL, SEED, check_number, check_numbers
from ts2_lightning.runs.stamps import file_stamps
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError
from ts2_lightning.yaml_files import load_yaml

_ABOUT = """Samples responses of a model to prompts, into DIR/responses/NAME-DIGEST: a line of JSON for each. Those that
are there are not made again, whatever has stopped the command; the same command in other processes, on this or other
machines, shares the work. A response follows from model, prompt, seed and decoding alone, so --n and --limit can be
raised later."""

_SLURM = {"jobs": 2, "gpus_per_node": 1, "time": "8:00:00"}


def run(argv: Sequence[str]) -> int:
    """Generates responses.

    Args:
        argv: the options after the command.

    Returns:
        The exit status, 0.

    Raises:
        UserError: no such model or file, a setting out of its range, or a prompt that the model does not take.
    """
    options = _parser().parse_args(argv)
    begin("generate", options.device, options.out)
    _check(options)
    place = find_model(options.model, options.model)
    out = options.out or place.run
    if out is None:
        raise UserError(f"{options.model}: it is not a run; say with --out where its responses go")
    if options.slurm is not None:
        return _submit(options, list(argv), Path(out))
    with tempfile.TemporaryDirectory(prefix="ts2-generate-") as scratch:
        model = Model(
            name=options.model,
            identity=file_stamps(place.path) or place.path,
            locate=cache(partial(place.loadable, Path(scratch) / "export")),
            out=Path(out),
            text_template=place.text_template,
            decoding=options.decoding,
            template=options.template,
            device=options.device,
            backend=options.backend,
            vllm_args=vllm_arguments(options),
        )
        _generate(model, options)
    return 0


def _generate(model: Model, options: Any) -> None:
    data = model.validation_data("--prompts", options.prompts, format=options.format)
    prompts = model.prompts("--prompts", data, options.limit)
    settings = model.generation_settings(
        options.max_new_tokens, options.seed, options.temperature, options.top_k, options.top_p
    )
    store = ResponseStore(model.out, options.name or Path(options.prompts).stem, settings, model.name)
    store.add_items({
        str(number): {"text": prompt.text, "gold": prompt.reference} for number, prompt in enumerate(prompts)
    })  # fmt: skip
    wanted = {
        str(number): [Request(tuple(prompt.ids), index, settings) for index in range(options.n)]
        for number, prompt in enumerate(prompts)
    }
    made = store.fill(wanted, lambda: model.make_backend(options.batch_size), "Generating", put, options.ids)
    put(_summary([response for of_item in made.values() for response in of_item], store.directory))


def _summary(responses: Sequence[Response], directory: Path) -> str:
    tokens = sum(response.tokens for response in responses)
    cut = sum(response.finish == "length" for response in responses)
    return (
        f"{len(responses):,} responses, {tokens / len(responses):,.1f} tokens each, {100 * cut / len(responses):.1f} % "
        f"cut off -> {directory}"
    )


def _check(options: Any) -> None:
    counts = dict.fromkeys(("n", "max_new_tokens", "batch_size"), COUNT)
    check_numbers("--", options, limit=(COUNT, NULL), seed=SEED, **counts, **DECODING)
    if options.decoding not in DECODINGS:
        hint = did_you_mean(options.decoding, DECODINGS) or f"; there are {', '.join(DECODINGS)}"
        raise UserError(f"--decoding: no decoding {options.decoding!r}{hint}")
    if options.name is not None and (not options.name or Path(options.name).name != options.name):
        raise UserError(f"--name {options.name}: it begins the name of a directory; write a word without slashes")
    vllm_arguments(options)


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
    at = argv.index("--slurm") if "--slurm" in argv else None
    own = [*argv[:at], *argv[at + 2 :]] if at is not None else [one for one in argv if not one.startswith("--slurm=")]
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
    parser.add_argument("model", metavar="MODEL", help=model_help())
    parser.add_argument(
        "--prompts", required=True, metavar="FILE", help="prompts, in any format of `data`; answers in it are left out"
    )
    parser.add_argument("--format", default="auto", help="of the prompts (default: found row by row)")
    parser.add_argument("--n", type=int, default=1, help="responses to each prompt (default: 1)")
    parser.add_argument("--limit", type=int, help="use the first so many prompts")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (default: 0)")
    parser.add_argument("--temperature", type=float, default=0.6, help="0 takes the most probable token (default: 0.6)")
    parser.add_argument("--top_k", type=int, default=50, help="0 keeps all (default: 50)")
    parser.add_argument("--top_p", type=float, default=0.9, help="1 keeps all (default: 0.9)")
    parser.add_argument("--max_new_tokens", type=int, default=512, help="tokens of a response, at most (default: 512)")
    parser.add_argument("--decoding", default="softmax", help=f"{', '.join(DECODINGS)} (default: softmax)")
    parser.add_argument("--template", default="auto", help="chat template (default: that of the model, else plain)")
    add_backend_options(parser)
    parser.add_argument("--out", metavar="DIR", help=f"responses go to DIR/{DIRECTORY} (default: the run)")
    parser.add_argument("--name", help="begins the name of their directory (default: the file's name)")
    parser.add_argument("--ids", action="store_true", help="write token ids too")
    parser.add_argument("--batch_size", type=int, default=64, help="responses at a time; halved where memory runs out")
    parser.add_argument(
        "--slurm",
        metavar="FILE|TEXT",
        help="submit an array of jobs that share the work, with submitit's parameters, such as '{jobs: 8, "
        'gpus_per_node: 1, time: "8:00:00"}\'',
    )
    add_device(parser)
    return parser
