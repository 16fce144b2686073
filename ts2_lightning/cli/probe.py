"""`probe`: what trained models think, several side by side, in numbers and pictures."""

import argparse
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ts2_lightning.cli.model_places import find_model, is_embedded_base
from ts2_lightning.cli.options import OptionParser
from ts2_lightning.cli.output import put
from ts2_lightning.cli.quiet import quieten
from ts2_lightning.data.datamodule import load_tokenizer
from ts2_lightning.data.encoding import EncodedRows
from ts2_lightning.data.formats import Conversation
from ts2_lightning.data.selection import Selection
from ts2_lightning.data.templates import ChatTemplate
from ts2_lightning.evaluation.distributions import DECODINGS
from ts2_lightning.evaluation.inputs import (
    batches,
    encode_prompt,
    encode_rows,
    micro_questions,
    named_template,
    read_messages,
    selection_of,
    toy_world_text,
)
from ts2_lightning.evaluation.models import check_device, load_model, read_limits
from ts2_lightning.evaluation.probes import (
    PROBES,
    SETTING_RANGES,
    Prompt,
    Settings,
    Subject,
    is_toy_world,
    write_probe,
)
from ts2_lightning.evaluation.probes.report import REPORT, resumed
from ts2_lightning.generation.sampling import end_ids
from ts2_lightning.modules.head import check_head
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
_TOY_WORLD_ROWS = "toyworld:test"
_LABELS = {"entmax": "entmax 1.5"}  # of decodings whose name does not say all


class ModelOption(NamedTuple):
    """One `--model`: what it is called, where it is, how it is decoded."""

    name: str
    path: str
    decoding: str

    @property
    def label(self) -> str:
        """Its name in pictures, with the decoding where it is not the usual one."""
        return self.name if self.decoding == "softmax" else f"{self.name} ({_LABELS.get(self.decoding, self.decoding)})"


class Inputs(NamedTuple):
    """What all models are asked, before it is put into tokens.

    Attributes:
        questions: of the micro probe.
        opening: what the answer to them already says.
        first_token: whether its first token is looked at, rather than sampled digits.
        prompts: of the macro probe.
        rows: of the other probes.
        sources: where prompts and rows come from.
    """

    questions: list[Conversation]
    opening: str
    first_token: bool
    prompts: list[Conversation]
    rows: Selection | None
    sources: dict[str, str]


class Candidate(NamedTuple):
    """A model that is to be probed, and what it is asked, in its own tokens."""

    option: ModelOption
    directory: str
    template: ChatTemplate
    questions: list[Prompt]
    prompts: list[Prompt]
    rows: EncodedRows | None


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
    quieten("probe")
    transformers_logging.disable_progress_bar()
    settings = _settings(options)
    models = _models(options)
    templates = _templates(options, models)
    with tempfile.TemporaryDirectory(prefix="ts2-probe-") as scratch:
        places = [
            find_model(model.path, f"--model {model.name}={model.path}").loadable(Path(scratch) / _digest(model.label))
            for model in models
        ]
        tokenizers = [_tokenizer(model, place) for model, place in zip(models, places, strict=True)]
        probes = _comparable(options.probe, models, tokenizers)
        inputs = _inputs(options, probes, all(map(is_toy_world, tokenizers)))
        candidates = [
            _candidate(model, place, tokenizer, inputs, templates.get(model.name, "auto"), options)
            for model, place, tokenizer in zip(models, places, tokenizers, strict=True)
        ]
        numbers = [_measure(candidate, probes, inputs, settings, options) for candidate in candidates]
    named = {model.label: model._asdict() for model in models}
    described = {
        **inputs.sources,
        "opening": inputs.opening,
        "limit": options.limit,
        **asdict(settings),
        "models": named,
    }
    out = Path(options.out)
    for probe in probes:
        of_models = {model.label: found[probe] for model, found in zip(models, numbers, strict=True)}
        for path in write_probe(probe, of_models, described, out):
            put(f"{probe}: {path}")
    shutil.rmtree(out / _PARTS, ignore_errors=True)
    put(f"report: {out / REPORT}")
    return 0


# Models ---------------------------------------------------------------------------------------------------------


def _models(options: argparse.Namespace) -> list[ModelOption]:
    models = [parse_model(text) for text in options.model]
    labels = [model.label for model in models]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise UserError(f"--model {twice}: two models of that name; give each its own")
    return models


def _templates(options: argparse.Namespace, models: list[ModelOption]) -> dict[str, str]:
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


def _tokenizer(model: ModelOption, place: str) -> PreTrainedTokenizerBase:
    try:
        return load_tokenizer(place)
    except UserError as error:
        raise UserError(f"--model {model.name}={model.path}: {error}".replace("data.tokenizer: ", "")) from error


def _comparable(wanted: str, models: list[ModelOption], tokenizers: list[PreTrainedTokenizerBase]) -> list[str]:
    """The probes that are made: with `all`, those that need one vocabulary are left out where there are several."""
    probes = list(PROBES) if wanted == "all" else [wanted]
    first = tokenizers[0].get_vocab()
    other = next((m for m, t in zip(models, tokenizers, strict=True) if t.get_vocab() != first), None)
    if other is None:
        return probes
    refused = [probe for probe in probes if PROBES[probe].by_token]
    said = (
        f"{', '.join(refused)}: compares models token by token, but {models[0].name} and {other.name} have different "
        "vocabularies"
    )
    if refused == probes:
        raise UserError(f"{said}; probe them one by one, each into its own --out")
    if refused:
        print(f"left out {said}", file=sys.stderr)
    return [probe for probe in probes if probe not in refused]


# What they are asked --------------------------------------------------------------------------------------------


def _inputs(options: argparse.Namespace, probes: list[str], toy_world: bool) -> Inputs:
    """Reads what the probes need, and nothing else."""
    reads = {PROBES[probe].reads for probe in probes}
    alone = probes == ["micro"] and options.prompts is not None  # then they are its questions
    sources: dict[str, str] = {}
    for kind, given in (("prompts", options.prompts), ("rows", options.rows)):
        if kind in reads or (kind == "prompts" and alone):
            if given is None and not toy_world:
                users = ", ".join(probe for probe in probes if PROBES[probe].reads == kind)
                raise UserError(f"--{kind}: none given; name a file for {users}")
            sources[kind] = given or _TOY_WORLD_ROWS
    prompts: list[Conversation] = []
    if "prompts" in sources:
        selection = selection_of(sources["prompts"], options.format, None)
        prompts = read_messages(selection, "--prompts", options.limit)
    questions, opening = micro_questions(toy_world)
    asked = prompts if alone else [Conversation.asking(question) for question in questions]
    return Inputs(
        asked if "questions" in reads else [],
        opening if options.opening is None else options.opening,
        alone or toy_world,
        prompts,
        selection_of(sources["rows"], options.format, options.limit) if "rows" in sources else None,
        sources,
    )


def _candidate(
    model: ModelOption,
    place: str,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Inputs,
    template_name: str,
    options: argparse.Namespace,
) -> Candidate:
    in_text = is_embedded_base(model.path) and template_name == "auto"
    template = toy_world_text(tokenizer) if in_text else named_template(template_name, tokenizer, model.name)
    return Candidate(
        model,
        place,
        template,
        [encode_prompt(template, messages, inputs.opening) for messages in inputs.questions],
        [encode_prompt(template, messages) for messages in inputs.prompts],
        None if inputs.rows is None else encode_rows(inputs.rows, template, options.max_length, read_limits(place)),
    )


# Measuring ------------------------------------------------------------------------------------------------------


def _measure(
    candidate: Candidate, probes: list[str], inputs: Inputs, settings: Settings, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """The numbers of one model by probe; the model is in memory only as long."""
    model, tokenizer = load_model(candidate.directory, options.device)
    rows, label = candidate.rows, candidate.option.label
    try:
        check_head(model)
    except UserError as error:
        raise UserError(f"--model {candidate.option.name}={candidate.option.path}: {error}") from error
    subject = Subject(
        label,
        model,
        tokenizer,
        candidate.option.decoding,
        tuple({*candidate.template.end_of_turn_ids, *end_ids(model, tokenizer)}),
        candidate.questions,
        inputs.first_token,
        candidate.prompts,
        batches=() if rows is None else batches(rows, options.batch_size),
    )
    key = {"model": _identity(candidate), "inputs": _asked(candidate), "settings": asdict(settings)}
    found = {}
    for probe in probes:
        part = Path(options.out) / _PARTS / f"{probe}-{_digest(label)}.json"
        found[probe] = resumed(part, key, partial(PROBES[probe].measure, subject, settings))
    return found


def _identity(candidate: Candidate) -> list[Any]:
    """What tells whether a model is still the same: its files, by size and time, and its decoding."""
    return [candidate.option, file_stamps(candidate.directory)]


def _asked(candidate: Candidate) -> str:
    """A digest of all tokens that a model is asked with."""
    rows = () if candidate.rows is None else (candidate.rows.ids.tobytes().hex(), candidate.rows.spans.tobytes().hex())
    return _digest(repr((candidate.questions, candidate.prompts, rows)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# Options --------------------------------------------------------------------------------------------------------


def _settings(options: argparse.Namespace) -> Settings:
    check_numbers("--", options, batch_size=COUNT, max_length=(COUNT, NULL), **SETTING_RANGES)
    if options.limit is not None:
        check_number("--limit", options.limit, COUNT)
    check_device(options.device)
    if Path(options.out).exists() and not Path(options.out).is_dir():
        raise UserError(f"--out {options.out}: this is a file; name a directory")
    return Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})


def _parser() -> OptionParser:
    usual = Settings()
    parser = OptionParser("probe", _ABOUT)
    parser.add_argument("probe", choices=[*PROBES, "all"], help="which probe")
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="NAME=PATH[:DECODING]",
        help="a transformers directory, a run, a checkpoint, toyworld (its base model) or a name on the hub; decoded "
        f"with one of {', '.join(DECODINGS)} (1.5); once for each model",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="directory for numbers, pictures and report.md")
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="prompts of macro; of micro where it runs alone, which then takes the first token of each answer instead "
        f"of the papers' single-digit question (default for toy-world models: {_TOY_WORLD_ROWS})",
    )
    parser.add_argument(
        "--rows",
        metavar="FILE",
        help=f"rows of tail and tspd, in any format of `data` (default for toy-world models: {_TOY_WORLD_ROWS})",
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
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: a GPU if there is one"
    )
    return parser
