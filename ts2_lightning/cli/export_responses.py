"""`export-responses`: responses in the files that other tools read."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ts2_lightning.cli.terminal import OptionParser, choice, put
from ts2_lightning.config_files import no_such_file
from ts2_lightning.evaluation.answers import code
from ts2_lightning.evaluation.protocols.scores import DIRECTORY as SCORES
from ts2_lightning.evaluation.protocols.scores import scores_in
from ts2_lightning.generation.exports import (
    PREFERENCES,
    TOOLS,
    Answered,
    Solution,
    answered_prompts,
    export_rows,
    preference_rows,
    write_export,
)
from ts2_lightning.generation.response_files import DIRECTORY, read_store
from ts2_lightning.ranges import COUNT, COUNT_OR_ZERO, NULL, check_number, whole_number
from ts2_lightning.types import UserError

_ABOUT = """Writes the responses that generate has made into the file that another tool reads. Nothing is sampled and
nothing is run."""


def run(argv: Sequence[str]) -> int:
    """Exports responses.

    Args:
        argv: the options after the command.

    Returns:
        The exit status, 0.

    Raises:
        UserError: there are no responses, they lack samples, or they are not what the tool takes.
    """
    options = _parser().parse_args(argv)
    check_number("--n", options.n, COUNT, NULL)
    check_number("--sample", options.sample, COUNT_OR_ZERO)
    directory = _responses_of(Path(options.directory))
    stored = read_store(directory)
    generator = options.generator or str(stored.head.get("model") or "")
    if not generator and options.to != PREFERENCES:
        raise UserError(f"{directory}: it does not say which model has responded; name it with --generator")
    answered = answered_prompts(stored, str(directory), options.n)
    if options.to == PREFERENCES:
        rows = preference_rows(answered, scores_in(_scores_of(directory, options.scores)))
    elif options.scores is not None:
        raise UserError(f"--scores {options.scores}: is for --to {PREFERENCES}; leave it out")
    else:
        rows = export_rows(answered, options.to, generator, partial(_read_code, options.rule), options.sample)
    tool = TOOLS[options.to]
    out = directory / options.to / tool.file if options.out is None else Path(options.out)
    file = out / tool.file if out.is_dir() else out
    if file.resolve().parent == directory.resolve():
        raise UserError(f"--out {file}: beside the responses themselves; name a file elsewhere")
    write_export(rows, options.to, file)
    put(f"{len(answered):,} prompts, {len(rows):,} rows -> {file}")
    return 0


def _responses_of(place: Path) -> Path:
    """The directory of responses that a user means: itself, or the only one in its `responses`."""
    if any(place.glob("part-*.jsonl")):
        return place
    inside = place if place.name == DIRECTORY else place / DIRECTORY
    there = sorted(path for path in inside.glob("*") if any(path.glob("part-*.jsonl")))
    if len(there) > 1:
        names = ", ".join(str(path) for path in there)
        raise UserError(f"{place}: responses under several names; give one of {names}")
    return there[0] if there else place


def _scores_of(directory: Path, option: str | None) -> Path:
    """The file with the scores of some responses: the one that is named, or the only one of their name beside them.

    Raises:
        UserError: there is none, or it is not clear which one is meant.
    """
    if option is not None:
        if not Path(option).is_file():
            raise UserError(f"--scores {no_such_file(option)}")
        return Path(option)
    place = directory.resolve().parent.parent / SCORES
    there = sorted(place.glob(f"{directory.resolve().name.rpartition('-')[0]}-*.jsonl"))
    if len(there) == 1:
        return there[0]
    named = (
        f"name one with --scores: {', '.join(map(str, there))}" if there else "evaluate gives responses their scores"
    )
    raise UserError(f"{directory}: {'several files of' if there else 'no'} scores in {place}; {named}")


def _read_code(rule: code.Rule | None, answered: Answered, text: str) -> Solution:
    """The code in a response, by a rule, or by the one that follows from how the problem was asked."""
    asked: code.Rule = "completion" if answered.continued else "prefilled" if answered.opening else "fenced"
    problem = code.Problem(answered.details["prompt"], answered.details["entry_point"])
    solution = code.extract(text, problem, rule or asked)
    return Solution(solution, code.as_completion(solution, problem))


def _parser() -> OptionParser:
    parser = OptionParser("export-responses", _ABOUT)
    parser.add_argument(
        "directory",
        metavar="DIR",
        help=f"responses, such as DIR/{DIRECTORY}/humaneval-1a2b3c4d; or DIR with responses under one name",
    )
    formats = "; ".join(f"{name}: {tool.file}, {tool.format}" for name, tool in TOOLS.items())
    parser.add_argument("--to", required=True, **choice(TOOLS), help=formats)
    parser.add_argument("--out", metavar="FILE", help="file to write (default: DIR/TOOL/ and the tool's name of it)")
    parser.add_argument(
        "--generator", metavar="NAME", help="name of the model in the file (default: as generate had it)"
    )
    parser.add_argument(
        "--n", type=whole_number, help="samples of each prompt (default: as many as the prompt with most has)"
    )
    parser.add_argument(
        "--sample",
        type=whole_number,
        default=0,
        help="which sample alpaca_eval gets of each prompt (default: 0, the first)",
    )
    parser.add_argument(
        "--scores",
        metavar="FILE",
        help=f"with --to {PREFERENCES}: scores of the responses, such as DIR/{SCORES}/alpaca-1a2b3c4d.jsonl, of which "
        "more is better (default: the only ones of their name in DIR)",
    )
    parser.add_argument(
        "--rule",
        **choice(code.RULES),
        help="how code is read (default: completion of text that was continued, prefilled of an answer that was begun, "
        "else fenced)",
    )
    return parser
