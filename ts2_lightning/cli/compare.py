"""`compare`: how models differ on the questions of protocols, from what is measured of them on disk."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ts2_lightning.cli.asked_models import EVALUATION, asked_help, evaluated_place
from ts2_lightning.cli.protocols import find_protocol, protocols
from ts2_lightning.cli.terminal import OptionParser, check_out, put, quieten
from ts2_lightning.evaluation.comparison import (
    Entrant,
    Pair,
    Way,
    as_csv,
    as_markdown,
    as_text,
    asks_questions,
    compare_all,
    contrasts_of,
    draw_forest,
    remarks,
    sections_of,
    ways_of,
)
from ts2_lightning.evaluation.comparison.pairs import ALL, values_of
from ts2_lightning.evaluation.distributions import DECODINGS
from ts2_lightning.evaluation.registry import registered_measures
from ts2_lightning.generation.backends.endpoint import PREFIX
from ts2_lightning.pages import PAGE, Page
from ts2_lightning.program import program
from ts2_lightning.ranges import COUNT_OR_ZERO, check_number, whole_number
from ts2_lightning.runs.writing import write_whole
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError

COMPARISON = "comparison"
"""Directory of table, picture and page, unless the user names another."""

_ABOUT = """Compares models on the questions, prompts and rows that both were measured on, from what `evaluate`,
`measure` and `ablate` have left on disk: mean differences with intervals and p values, corrected for their number, and
the questions at which the models differ most. Nothing is asked or scored. What is missing is said, with the command
that makes it."""

_ITEMS = 10
_OPTIONS = ("limit", "n", "temperature", "top_k", "top_p", "max_new_tokens", "seed", "variant")
"""Settings of protocols that have an option of their own in `evaluate`."""


def run(argv: Sequence[str]) -> int:
    """Compares models.

    Args:
        argv: the options after the command, see `--help`.

    Returns:
        The exit status, 0.

    Raises:
        UserError: no such model, protocol or value, or nothing that two of the models have in common.
    """
    options = _parser().parse_args(argv)
    quieten("compare")
    check_out(options.out)
    entrants = _entrants(options)
    classes = {} if options.protocol is None else _classes(options.protocol)
    ways, notes = ways_of(entrants, tuple(classes), _decoding(options.decoding))
    count: Any = whole_number(options.items)
    check_number("--items", count, COUNT_OR_ZERO)
    missing = _missing(ways, entrants, classes, options)
    pairs = compare_all(ways, _baseline(options.baseline, entrants), options.all_pairs, _values(options.values, ways))
    if not any(pair.difference is not None for pair in pairs):
        if lines := [*notes, *missing]:
            put("\n".join(lines))
        raise UserError(_nothing(ways, pairs, options))
    contrasts, of_texts = contrasts_of(pairs, entrants, count, classes)
    below = [*remarks(pairs), *notes, *of_texts, *missing]
    page = Page("Models compared", sections_of(pairs, entrants, contrasts, below), _intro(entrants, options))
    _write(pairs, entrants, below, page, Path(options.out))
    return 0


# What is compared -----------------------------------------------------------------------------------------------


def _entrants(options: Any) -> list[Entrant]:
    """The models, none of which is loaded; where two would have the same title, they are called as the user does."""
    names = list(options.model)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{twice}: it is named twice; name each model once")
    if len(names) < 2:
        raise UserError(f"{names[0]}: name at least two models, since one alone is compared with nothing")
    places = [evaluated_place(name, Path(options.evaluation_dir)) for name in names]
    directories = [directory.resolve() for _, directory in places]
    for name, directory in zip(names, directories, strict=True):
        if (other := names[directories.index(directory)]) != name:
            raise UserError(f"{name}: it is the same as {other}, {directory}; name each model once")
    titles = [title for title, _ in places]
    return [
        Entrant(title if titles.count(title) == 1 else name, name, directory)
        for name, (title, directory) in zip(names, places, strict=True)
    ]


def _classes(text: str) -> dict[str, str]:
    """What the user calls the protocols, by their names."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError(f"--protocol: name some of {', '.join(protocols())}, with commas between them")
    return {name if not asks_questions(name) else find_protocol(name, "--protocol").name: name for name in names}


def _decoding(name: str) -> str:
    if name not in DECODINGS:
        hint = did_you_mean(name, DECODINGS) or f"; there are {', '.join(DECODINGS)}"
        raise UserError(f"--decoding: no decoding {name!r}{hint}")
    return name


def _baseline(name: str | None, entrants: Sequence[Entrant]) -> int:
    """The number of the model that the others are compared with."""
    if name is None:
        return 0
    for number, entrant in enumerate(entrants):
        if name in (entrant.name, entrant.title):
            return number
    names = [entrant.name for entrant in entrants]
    raise UserError(
        f"--baseline {name}: none of the models{did_you_mean(name, names) or '; there are ' + ', '.join(names)}"
    )


def _values(text: str | None, ways: Sequence[Way]) -> list[str]:
    """The names of the values that are compared; none for the main ones."""
    names = [] if text is None else [name.strip() for name in text.split(",") if name.strip()]
    there = values_of(ways)
    for name in names:
        if name != ALL and name not in there and ways:
            hint = did_you_mean(name, [ALL, *there]) or f"; there are {', '.join(there)}, and {ALL}"
            raise UserError(f"--values: no value {name!r} is there for each question{hint}")
    return names


# What is missing ------------------------------------------------------------------------------------------------


def _missing(ways: Sequence[Way], entrants: Sequence[Entrant], classes: Mapping[str, str], options: Any) -> list[str]:
    """A line for each model and way in which others were measured and it was not, with the command that measures it."""
    place = options.evaluation_dir
    lines = [
        f"{entrant.title} was not measured under {way.title}: "
        + (_command(way, entrant.name, classes, place) if asks_questions(way.protocol) else _measure(way, entrant))
        for way in ways
        for entrant, result in zip(entrants, way.results, strict=True)
        if result is None
    ]
    unmeasured = [name for name in classes if name not in {way.protocol for way in ways}]
    models = shlex.join(entrant.name for entrant in entrants)
    return lines + [
        f"no model was measured under {name}: {program()} "
        + (f"evaluate {models} --protocol {classes[name]}" if asks_questions(name) else _measure_usually(name, models))
        for name in unmeasured
    ]


def _measure(way: Way, entrant: Entrant) -> str:
    """The command that measures a model as others were, by something that is no protocol."""
    result = next(result for result in way.results if result is not None)
    usual = registered_measures()[way.protocol]().plain_settings()
    settings = {name: value for name, value in way.settings.items() if value != usual.get(name)}
    said = {"decoding": (result.decoding, "softmax"), "template": (result.template, "auto")}
    beside = {name: value for name, (value, default) in said.items() if value not in (default, None)}
    words = ["measure", entrant.name, "--spec", json.dumps({way.protocol: settings, **beside})]
    own = entrant.directory.resolve() == Path(entrant.name).expanduser().resolve()
    return f"{program()} {shlex.join(words if own else [*words, '--out', str(entrant.directory)])}"


def _measure_usually(name: str, models: str) -> str:
    return f"measure {models} --spec {shlex.quote(json.dumps({name: {}}))}"


def _command(way: Way, model: str, classes: Mapping[str, str], place: str) -> str:
    """The command that measures a model in a way; settings that are as usual are left out."""
    registered = protocols().get(way.protocol)
    name = classes.get(way.protocol, way.protocol if registered else f"FILE.{way.protocol}")
    usual: Mapping[str, Any] = {}
    variant = str(way.settings.get("variant"))
    if registered is not None and variant in registered.samplings:
        usual = {**registered(variant=variant).plain_settings(), "variant": registered().variant}
    words = [program(), "evaluate", shlex.quote(model), "--protocol", name]
    result = next(result for result in way.results if result is not None)
    template = None if model.startswith(PREFIX) else result.template  # a server sees to its own
    places = {"decoding": (result.decoding, "softmax"), "template": (template, "auto")}
    for option, (value, default) in {**places, "out": (place, EVALUATION)}.items():
        words += [] if value in (default, None) else [f"--{option}", shlex.quote(str(value))]
    for setting, value in way.settings.items():
        if value is None or value == usual.get(setting):
            continue
        if setting == "data":
            files = {name: value} if isinstance(value, str) else {f"{name}.{of}": file for of, file in value.items()}
            words += [word for place, file in files.items() for word in ("--data", shlex.quote(f"{place}={file}"))]
        elif setting in _OPTIONS:
            words += [f"--{setting}", str(value)]
        else:
            plain = value if isinstance(value, str) else json.dumps(value)
            words += ["--set", shlex.quote(f"{name}.{setting}={plain}")]
    return " ".join(words)


def _nothing(ways: Sequence[Way], pairs: Sequence[Pair], options: Any) -> str:
    """Why there is nothing to compare."""
    place = options.evaluation_dir
    if not ways and place != EVALUATION and not Path(place).is_dir():
        return f"nothing to compare: --evaluation_dir {place}: no such directory; name the --out of evaluate"
    if not ways:
        return (
            f"nothing to compare: none of these models was measured under a protocol ({options.decoding} decoding), or "
            "has values of single prompts or rows; run "
            f"`{program()} evaluate {shlex.join(options.model)} --protocol NAME`"
        )
    if pairs:
        return "nothing to compare: no two of these models were asked the same questions"
    return (
        "nothing to compare: no two of these models were measured in the same way; the lines above say what is missing"
    )


# What is shown --------------------------------------------------------------------------------------------------


def _intro(entrants: Sequence[Entrant], options: Any) -> list[str]:
    """Which models are compared, and with what."""
    baseline = entrants[_baseline(options.baseline, entrants)].title
    how = "every two of them" if options.all_pairs else f"each with {baseline}"
    return [f"{', '.join(entrant.title for entrant in entrants)}: {how}, on the questions that both were asked."]


def _write(pairs: Sequence[Pair], entrants: Sequence[Entrant], below: Sequence[str], page: Page, out: Path) -> None:
    put("\n".join([as_text(pairs, entrants), "", *below]))
    texts = {"table.csv": as_csv(pairs, entrants), "table.md": as_markdown(pairs, entrants, below)}
    for name, text in texts.items():
        write_whole(out / name, lambda beside, text=text: beside.write_text(text, encoding="utf-8"))  # type: ignore[misc]
    draw_forest(pairs, entrants, out / "differences")
    page.write(out / PAGE)
    put(f"\n{out}: {PAGE}, table.csv, table.md, differences.png")


def _parser() -> OptionParser:
    parser = OptionParser("compare", _ABOUT)
    parser.add_argument(
        "model", nargs="+", metavar="MODEL", help=f"{asked_help()}; or a directory with responses or measures"
    )
    parser.add_argument(
        "--protocol",
        metavar="NAME,...",
        help="protocols, and measures such as diversity, that are compared (default: all there are)",
    )
    parser.add_argument("--baseline", metavar="MODEL", help="what others are compared with (default: the first)")
    parser.add_argument("--all_pairs", action="store_true", help="compare every two models")
    parser.add_argument(
        "--values", metavar="NAME,...", help="such as accuracy,pass_at_4, or all (default: the main ones, as evaluate)"
    )
    parser.add_argument("--decoding", default="softmax", metavar="NAME", help="of the models (default: softmax)")
    parser.add_argument(
        "--items", default=_ITEMS, metavar="N", help=f"questions whose texts the page shows (default: {_ITEMS} a part)"
    )
    parser.add_argument(
        "--evaluation_dir", default=EVALUATION, metavar="DIR", help=f"--out of evaluate (default: {EVALUATION})"
    )
    parser.add_argument(
        "--out", default=COMPARISON, metavar="DIR", help=f"table, picture, page (default: {COMPARISON})"
    )
    return parser
