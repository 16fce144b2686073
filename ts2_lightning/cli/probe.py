"""`probe`: measures the probes of several models, and draws them side by side."""

import argparse
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, get_args

from ts2_lightning.cli.explore_options import add_explore, explored
from ts2_lightning.cli.model_places import add_device, begin, find_model, model_help
from ts2_lightning.cli.terminal import OptionParser, one_of, put
from ts2_lightning.evaluation import Model, Spec, make_measures
from ts2_lightning.evaluation.distributions import DECODINGS
from ts2_lightning.evaluation.measures.probes import Kind, Probes
from ts2_lightning.evaluation.probes import PROBES, Document, write_probe
from ts2_lightning.evaluation.probes.report import REPORT
from ts2_lightning.evaluation.probes.sections import probe_sections
from ts2_lightning.evaluation.results import files_of, read_result
from ts2_lightning.evaluation.token_explorer import Explorer
from ts2_lightning.json_files import read_json
from ts2_lightning.pages import PAGE, Page, Section
from ts2_lightning.ranges import COUNT, NULL, check_number, check_numbers
from ts2_lightning.runs.stamps import file_stamps
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError

_ABOUT = """Probes of the distributions of trained models, several side by side; each writes its numbers (JSON), its
pictures (PNG, SVG) and a line of report.md. micro: the next token at one point of an answer. macro: how sure a model is
of what it samples. tail: the three most probable tokens, and the mass outside the sparsemax support. tspd: share of
tokens with TSPD, entropy against gold probability, support sizes."""

_WRITE_TEMPLATE = "write --template NAME=TEMPLATE, such as base=plain, with the name of a model; got "
_PARTS = ".parts"  # in the output directory: numbers of the models that are done, until a probe is


class ModelOption(NamedTuple):
    """One `--model`: what it is called, where it is, how it is decoded."""

    name: str
    path: str
    decoding: str


class _Asked(Probes):
    """The measure, whose settings are options here."""

    option: ClassVar[str] = "--"

    def _option(self, what: str) -> str:
        return "--prompts" if what == "questions" else super()._option(what)


def run(argv: Sequence[str]) -> int:
    """Probes models.

    Args:
        argv: the options after the command.

    Returns:
        The exit status, 0.

    Raises:
        UserError: no such model or file, a decoding that is not known, models whose tokens cannot be compared.
    """
    options = _parser().parse_args(argv)
    begin("probe", options.device, options.out)
    check_numbers("--", options, batch_size=COUNT, max_length=(COUNT, NULL))
    if options.limit is not None:
        check_number("--limit", options.limit, COUNT)
    chosen = [parse_model(text) for text in options.model]
    templates = _templates(options, chosen)
    count, loads = explored(options)
    with tempfile.TemporaryDirectory(prefix="ts2-probe-") as scratch:
        models = [_model(model, templates.get(model.name, "auto"), options, Path(scratch)) for model in chosen]
        _check_titles(models)
        probes = _comparable(options.probe, models)
        settings = _settings(options, probes, models)
        for model in models:
            settings.check_model(model)
        explorer = _Explored(settings, count, loads)
        numbers = [_measure(model, probes, settings, explorer) for model in models]
        tokens = explorer.sections()
    out = Path(options.out)
    named = {model.title: option._asdict() for model, option in zip(models, chosen, strict=True)}
    for probe in probes:
        of_models = {model.title: of_model[probe] for model, of_model in zip(models, numbers, strict=True)}
        for path in write_probe(probe, of_models, {**_described(settings), "models": named}, out):
            put(f"{probe}: {path}")
    shutil.rmtree(out / _PARTS, ignore_errors=True)
    put(f"report: {out / REPORT}")
    page = Page("Probes", [*probe_sections(_documents(out)), *tokens], [f"Numbers and pictures: {out / REPORT}."])
    put(f"page: {page.write(out / PAGE)}")
    return 0


def _documents(out: Path) -> dict[str, Document]:
    """The numbers of every probe that lies in the directory, as `report.md` has them, by its name."""
    files = {probe: out / f"{probe}.json" for probe in PROBES}
    return {probe: read_json(file) for probe, file in files.items() if file.is_file()}


# Models ---------------------------------------------------------------------------------------------------------


def _model(option: ModelOption, template: str, options: argparse.Namespace, scratch: Path) -> Model:
    """The model that an option names. What is measured of it is kept until all models are done."""
    said = f"--model {option.name}={option.path}"
    place = find_model(option.path, said)
    model = Model(
        name=said,
        identity=[option, file_stamps(place.path) or place.path],
        locate=lambda: place.loadable(scratch / _digest(f"{option.name}:{option.decoding}")),
        out=Path(options.out) / _PARTS / _digest(f"{option.name}:{option.decoding}"),
        label=option.name,
        text_template=place.text_template,
        decoding=option.decoding,
        template=template,
        device=options.device,
    )
    model.chat_template  # noqa: B018 - a template that is not there is told before anything is measured
    return model


def _check_titles(models: Sequence[Model]) -> None:
    titles = [model.title for model in models]
    if twice := next((title for title in titles if titles.count(title) > 1), None):
        raise UserError(f"--model {twice}: two models of that name; give each its own")


def _templates(options: argparse.Namespace, models: Sequence[ModelOption]) -> dict[str, str]:
    """Name of a model -> name of its chat template, for those that are given."""
    templates: dict[str, str] = {}
    for text in options.template:
        name, _, template = text.partition("=")
        names = [model.name for model in models]
        if name not in names or not template:
            hint = did_you_mean(name, names) or f"; the models are {', '.join(names)}"
            raise UserError(f"--template {text}: no model of that name{hint}" if template else _WRITE_TEMPLATE + text)
        templates[name] = template
    return templates


def parse_model(text: str) -> ModelOption:
    """`NAME=PATH[:DECODING]`.

    Raises:
        UserError: no name or no path, or a decoding that is not known.

    Example:
        >>> parse_model("unified=runs/sparsemax/1:sparsemax")
        ModelOption(name='unified', path='runs/sparsemax/1', decoding='sparsemax')
    """
    name, _, place = text.partition("=")
    if not name.strip() or not place:
        raise UserError(f"--model {text}: write NAME=DIRECTORY, such as TS2=runs/ts2/1 or TS2=runs/ts2/1:sparsemax")
    path, colon, decoding = place.rpartition(":")
    if not colon or Path(place).exists():
        return ModelOption(name, place, "softmax")
    if decoding not in DECODINGS:
        hint = did_you_mean(decoding, DECODINGS) or f"; there are {', '.join(DECODINGS)}"
        raise UserError(f"--model {text}: no decoding {decoding!r}{hint}")
    return ModelOption(name, path, decoding)


def _comparable(wanted: str, models: Sequence[Model]) -> list[Kind]:
    """The probes that are made: with `all`, those that need one vocabulary are left out where there are several."""
    probes: list[Kind] = [probe for probe in get_args(Kind) if wanted in (probe, "all")]
    first = models[0].tokenizer.get_vocab()
    other = next((model for model in models if model.tokenizer.get_vocab() != first), None)
    if other is None:
        return probes
    refused = [probe for probe in probes if PROBES[probe].by_token]
    said = (
        f"{', '.join(refused)}: compares models token by token, but {models[0].label} and {other.label} have different "
        "vocabularies"
    )
    if refused == probes:
        raise UserError(f"{said}; probe them one by one, each into its own --out")
    if refused:
        print(f"left out {said}", file=sys.stderr)
    return [probe for probe in probes if probe not in refused]


# Measuring ------------------------------------------------------------------------------------------------------


def _settings(options: argparse.Namespace, probes: Sequence[Kind], models: Sequence[Model]) -> _Asked:
    """The options as settings of the measure; without rows or prompts those of the models' domain are taken."""
    settings = {field.name: getattr(options, field.name) for field in fields(Probes) if hasattr(options, field.name)}
    alone = list(probes) == ["micro"] and options.prompts is not None  # then they are its questions
    domain = models[0].domain if all(model.domain is models[0].domain for model in models) else None
    for kind in ("prompts", "rows"):
        users = [probe for probe in probes if PROBES[probe].reads == kind]
        if users and settings[kind] is None:
            if domain is None:
                raise UserError(f"--{kind}: none given; name a file for {', '.join(users)}")
            settings[kind] = domain.test_rows
        elif not users and settings[kind] is not None and not (kind == "prompts" and alone):
            raise UserError(f"--{kind} {settings[kind]}: {', '.join(probes)} does not read it; leave it out")
        elif not users:
            settings[kind] = None
    if alone:
        settings["questions"] = options.prompts
    asked = _Asked(kinds=list(probes), **settings)
    try:
        asked.check()
    except UserError as error:
        raise UserError(f"--{error}") from error
    return asked


def _described(settings: _Asked) -> dict[str, Any]:
    """What is kept with the numbers of a probe about how they were measured."""
    plain = {"opening": settings.opening, **settings.plain_settings()}
    sources = {kind: plain.pop(kind, None) for kind in ("prompts", "questions", "rows")}
    for name in ("kinds", "format", "max_length", "batch_size"):
        plain.pop(name)
    return {**{kind: source for kind, source in sources.items() if source is not None}, **plain}


class _Explored:
    """The tokens of what models respond to the first prompts or questions of the probes.

    Args:
        settings: settings of the probes.
        count: number of prompts.
        loads: whether models may be loaded for this alone.
    """

    def __init__(self, settings: _Asked, count: int, loads: bool) -> None:
        self._settings, self._count, self._loads = settings, count, loads
        self._explorer: Explorer | None = None

    def listen(self, model: Model) -> None:
        """Hears a model, while it is loaded."""
        asked = self._settings.requests(model, self._count) if self._count else []
        requests = [request for _, request in asked]
        if asked and (self._loads or "network" in vars(model) or Explorer.has_heard(model, requests)):
            self._explorer = self._explorer or Explorer([text for text, _ in asked])
            self._explorer.listen(model, requests)

    def sections(self) -> list[Section]:
        """The section of the page, if something was heard; models are loaded once more."""
        return [] if self._explorer is None else [self._explorer.section("Tokens", put, forget=True)]


def _measure(model: Model, probes: Sequence[Kind], settings: _Asked, explorer: _Explored) -> dict[str, Any]:
    """The numbers of one model by probe; the model is in memory only as long."""
    numbers: dict[str, Any] = {}
    for probe in probes:
        of_probe = Spec(model.decoding, model.template, (replace(settings, kinds=[probe]),))
        make_measures(model, of_probe, say=lambda line: None, draw=False)
        [file] = files_of(model.out, of_probe).values()
        numbers[probe] = read_result(file).documents[probe]
    explorer.listen(model)
    model.forget()
    return numbers


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# Options --------------------------------------------------------------------------------------------------------


def _parser() -> OptionParser:
    usual = Probes()
    parser = OptionParser("probe", _ABOUT)
    parser.add_argument(
        "probe", type=one_of([*PROBES, "all"]), metavar="PROBE", help=f"one of {', '.join(PROBES)}, or all"
    )
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="NAME=PATH[:DECODING]",
        help=f"{model_help()}; decoded with one of {', '.join(DECODINGS)} (1.5); once for each model",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="directory for numbers, pictures and report.md")
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="prompts of macro; of micro where it runs alone, which then takes the first token of each answer instead "
        "of the papers' single-digit question (default: those of the models' domain, if they have one)",
    )
    parser.add_argument(
        "--rows",
        metavar="FILE",
        help="rows of tail and tspd, in any format of `data` (default: those of the models' domain, if they have one)",
    )
    parser.add_argument("--format", default="auto", help="of prompts and rows (default: found row by row)")
    parser.add_argument(
        "--template",
        action="append",
        default=[],
        metavar="NAME=TEMPLATE",
        help="chat template of a model (default: its tokenizer's own, which an export has, else plain)",
    )
    parser.add_argument("--opening", help="micro: what the answer already says before its first token is looked at")
    parser.add_argument("--limit", type=int, help="use the first so many prompts and rows")
    parser.add_argument(
        "--max_length", type=int, help="tokens of a row, at most (default: 2048, or the model's context)"
    )
    parser.add_argument("--batch_size", type=int, default=8, help="rows in one forward pass (default: 8)")
    parser.add_argument("--queries", type=int, default=usual.queries, help="micro: answers sampled (default: 100)")
    parser.add_argument("--samples", type=int, default=usual.samples, help="macro: responses per prompt (default: 1)")
    parser.add_argument("--max_new_tokens", type=int, default=usual.max_new_tokens, help="macro (default: 512)")
    parser.add_argument("--temperature", type=float, default=usual.temperature, help="macro (default: 0.6)")
    parser.add_argument("--top_k", type=int, default=usual.top_k, help="macro; 0 keeps all (default: 50)")
    parser.add_argument("--top_p", type=float, default=usual.top_p, help="macro (default: 0.9)")
    parser.add_argument("--seed", type=int, default=usual.seed, help="of what is sampled (default: 0)")
    add_explore(parser, "prompts of macro, or questions of micro,")
    add_device(parser)
    return parser
