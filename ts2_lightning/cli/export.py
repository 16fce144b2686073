"""`export`: a checkpoint of any strategy becomes a transformers directory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ts2_lightning.cli.errors.guard import one_line
from ts2_lightning.cli.errors.parser import Parser, ParserMessage
from ts2_lightning.cli.going_on import choose_whole
from ts2_lightning.cli.terminal import OptionParser, choice, put, quieten
from ts2_lightning.data.datamodule import load_tokenizer
from ts2_lightning.export import WEIGHT_DTYPES, ExportSettings, export_checkpoint, tokenizer_files
from ts2_lightning.export.adapter_files import is_hub_name
from ts2_lightning.export.hub import Repository, find_repository, push
from ts2_lightning.json_files import read_json
from ts2_lightning.modules import LanguageModelConfig
from ts2_lightning.modules.language_model import settle_embeddings
from ts2_lightning.modules.places import resolve_model
from ts2_lightning.ranges import COUNT, SHARE, check_number
from ts2_lightning.runs.checkpoints import find_checkpoints, newest_first, run_of
from ts2_lightning.runs.contents import read_config
from ts2_lightning.runs.directory import latest_config, run_name
from ts2_lightning.types import UserError

_ABOUT = """Makes a directory that transformers and vLLM load (vLLM itself was never run on one) from a checkpoint of
any strategy, in bounded memory. Model, tokenizer and chat template are those of the run that the checkpoint lies in."""

_OF_CONFIG = ("model", "data")
_OF_DATA = ("chat_template", "end_of_turn_ids")


def run(argv: Sequence[str]) -> int:
    """Exports a checkpoint.

    Args:
        argv: the options after the command.

    Returns:
        The exit status, 0.

    Raises:
        UserError: if there is no such checkpoint, its run's records are not there, or anything of `export_checkpoint`.
    """
    options = _parser().parse_args(argv)
    quieten("export")
    named = Path(options.runs_dir) / run_name(options.name, [])
    # Of `last` the newest one that is whole.
    check_number("--toward-base", options.toward_base, SHARE)
    check_number("--average", options.average, COUNT)
    candidates = [str(path) for path in find_checkpoints(options.ckpt, named, "--ckpt")]
    checkpoint = Path(choose_whole(candidates, option="--ckpt"))
    run = run_of(checkpoint)
    if run is None:
        raise UserError(
            f"--ckpt {checkpoint}: it lies in no run, whose config.yaml and data.json say which model, tokenizer and "
            "chat template it is of; put it into the directory checkpoints/ beside them"
        )
    others = _before(checkpoint, run, options.average - 1)
    config, data = _records(run)
    lm = _model(config, run)
    repository = _repository(options, lm)
    tokenizer = load_tokenizer(config["data"].get("tokenizer") or lm.path)
    lm = settle_embeddings(lm, len(tokenizer))
    with tokenizer_files(tokenizer) as source:
        settings = ExportSettings(
            source or lm.path,
            data["chat_template"],
            data["end_of_turn_ids"],
            options.dtype,
            options.adapter,
            toward_base=options.toward_base,
            ema=options.ema,
            base=options.base_name,
            run=run,
            repository=None if repository is None else repository.name,
        )
        out = export_checkpoint(checkpoint, lm, options.out, settings, others)
    put(f"Exported {_what(checkpoint, others, lm, options)} to {out}")
    if repository is not None:
        put(f"Pushed to {push(out, repository)} ({'private' if repository.private else 'public'})")
    return 0


def _repository(options: Any, lm: LanguageModelConfig) -> Repository | None:
    """Where the export is pushed to, if so asked; what speaks against it is told before anything is made.

    Raises:
        UserError: see `find_repository`; or others could not load what is pushed.
    """
    if options.base_name is not None and not is_hub_name(options.base_name):
        raise UserError(f"--base-name {options.base_name}: expected OWNER/NAME, as on the hub")
    if options.push is None:
        for option, value in (("--public", options.public), ("--push-update", options.push_update)):
            if value:
                raise UserError(f"{option}: is for --push NAME; leave it out, or add that")
        return None
    base = options.base_name or lm.written_path or lm.path
    if options.adapter == "separate" and not is_hub_name(base):
        raise UserError(
            f"--push {options.push}: adapter_config.json would name the base model {base!r}, which others do not have; "
            "give its name on the hub with --base-name OWNER/NAME"
        )
    return find_repository(options.push, options.public, options.push_update)


def _what(checkpoint: Path, others: Sequence[Path], lm: LanguageModelConfig, options: Any) -> str:
    """What was exported, in a few words."""
    of_each = f"the moving average{'s' if others else ''} of " if options.ema else ""
    named = f"{'the mean of ' if others else ''}{of_each}{', '.join(map(str, (checkpoint, *others)))}"
    if options.toward_base == 1:
        return named
    return f"{named}, {options.toward_base:g} of the way from the base model {lm.written_path or lm.path} to it,"


def _before(checkpoint: Path, run: Path, count: int) -> list[Path]:
    """So many checkpoints of a run that were written before one of them, the newest first.

    Raises:
        UserError: if there are fewer, or one is damaged.
    """
    kept = newest_first(run)
    place = next(number for number, path in enumerate(kept) if path.resolve() == checkpoint.resolve())
    before = kept[place + 1 :][:count]
    if len(before) < count:
        raise UserError(
            f"--average {count + 1}: {run} has kept {1 + len(before)} of them up to {checkpoint.name}; average "
            "fewer, or keep more in the next run (keep_last of the callback Checkpoints)"
        )
    return [Path(choose_whole([str(path)], option="--average")) for path in before]


def _parser() -> OptionParser:
    parser = OptionParser("export", _ABOUT)
    parser.add_argument("--ckpt", required=True, metavar="PATH|last|best", help="a checkpoint, or which one of --name")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to make; an export there is replaced")
    parser.add_argument("--name", help="of the run, for last and best")
    parser.add_argument("--runs_dir", default="runs", help="the directory of all runs (default: runs)")
    parser.add_argument(
        "--dtype",
        **choice(WEIGHT_DTYPES),
        help="default: bfloat16 if the base model is, else the weights' own",
    )
    parser.add_argument(
        "--adapter",
        **choice(["merged", "separate"]),
        default="merged",
        help="of a run with model.lm.adapter: merged into whole weights (default), or by itself, in PEFT's format",
    )
    parser.add_argument(
        "--toward-base",
        type=float,
        default=1.0,
        metavar="W",
        help="weights between the base model and the tuned one, base + W (tuned - base): 1 is the tuned model "
        "(default), 0 the base",
    )
    parser.add_argument(
        "--ema", action="store_true", help="the moving average of the weights that the callback EMA has kept"
    )
    parser.add_argument(
        "--average",
        type=int,
        default=1,
        metavar="N",
        help="the mean of the weights of N checkpoints: that of --ckpt and those that the run has kept from before it",
    )
    parser.add_argument(
        "--push", metavar="NAME", help="put the export on the hub as NAME or OWNER/NAME, private (default: nowhere)"
    )
    parser.add_argument("--public", action="store_true", help="with --push: for everybody to see")
    parser.add_argument(
        "--push-update", action="store_true", help="with --push: on top of what is in the repository, as a commit"
    )
    parser.add_argument(
        "--base-name",
        metavar="OWNER/NAME",
        help="name of the base model on the hub, for the model card and an adapter's config, where the run has a "
        "directory",
    )
    return parser


def _records(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration of a run, and what it recorded of its data."""
    if not (run / "data.json").is_file():
        raise UserError(f"{run}: no data.json, which says which tokenizer and which chat template were used")
    config, data = read_config(run), read_json(run / "data.json")
    for file, content, names in (("config.yaml", config, _OF_CONFIG), ("data.json", data, _OF_DATA)):
        absent = [name for name in names if name not in content]
        if absent:
            raise UserError(f"{run}/{file} is not as fit writes it: it has no {absent[0]}")
    return config, data


def _model(config: dict[str, Any], run: Path) -> LanguageModelConfig:
    parser = Parser()
    parser.add_class_arguments(LanguageModelConfig, "lm")
    try:
        parsed = parser.parse_object({"lm": config["model"].get("lm")})
    except ParserMessage as said:
        raise UserError(f"{latest_config(run)}: model.lm: {one_line(said.message)}") from said
    lm: LanguageModelConfig = parser.instantiate(parsed).lm
    lm.written_path, lm.path = lm.path, resolve_model(lm.path)
    return lm
