"""`protocols`: the list of protocols, read from their classes."""

import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields, is_dataclass
from inspect import cleandoc
from typing import Any

from ts2_lightning.cli import program
from ts2_lightning.cli.terminal import OptionParser, page_width, put
from ts2_lightning.evaluation import check_spec, registered_measures
from ts2_lightning.evaluation.protocols import Protocol, Sampling
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError


def run(argv: Sequence[str]) -> int:
    """Prints all protocols, or one.

    Args:
        argv: the options after the command, see `--help`.

    Returns:
        The exit status, 0.

    Raises:
        UserError: there is no protocol of that name.
    """
    options = _parser().parse_args(argv)
    listed = [find_protocol(options.name, "protocols")] if options.name else list(protocols().values())
    if options.json:
        put(json.dumps([as_dict(protocol) for protocol in listed], indent=2, ensure_ascii=False))
    else:
        put(describe(listed[0], page_width()) if options.name else overview(listed, page_width()))
    return 0


def protocols() -> dict[str, type[Protocol]]:
    """Every registered protocol by its name."""
    return {name: measure for name, measure in registered_measures().items() if issubclass(measure, Protocol)}


def find_protocol(name: str, option: str) -> type[Protocol]:
    """The class of a protocol: a registered one by its name, one of the user's own as `FILE.CLASS`.

    Raises:
        UserError: there is none; says which name is near.
    """
    if name in protocols():
        return protocols()[name]
    if "." not in name:
        near = did_you_mean(name, protocols()) or f"; there are {', '.join(protocols())}, and FILE.CLASS of your own"
        raise UserError(f"{option}: no protocol {name!r}{near}")
    [measure] = check_spec({name: {}}, option).measures
    if not isinstance(measure, Protocol):
        raise UserError(f"{option}: {name} is no protocol; derive it from ts2_lightning.evaluation.protocols.Protocol")
    return type(measure)


def cost(protocol: Protocol) -> int:
    """The number of tokens that responses to all rows have at most."""
    return sum(
        protocol.data_sets[part.data_set].rows * part.sampling.n * part.sampling.max_new_tokens
        for part in protocol.parts()
    )


def as_dict(protocol: type[Protocol]) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "name": protocol.name,
        "about": _about(protocol),
        "source": protocol.source,
        "prompt": protocol.prompt,
        "data": {name: asdict(data) for name, data in protocol.data_sets.items()},
        "variants": {
            variant: {"samples": _sampled(sampling), "tokens_at_most": cost(protocol(variant=variant))}
            for variant, sampling in protocol.samplings.items()
        },
        "models_needed": protocol.models_needed,
        "deviations": list(protocol.deviations),
        "settings": {field.name: _plain(field.default) for field in fields(protocol)},
    }


def overview(listed: Iterable[type[Protocol]], width: int) -> str:
    """All protocols: name, what it is, sizes, cost, source."""
    blocks = []
    for protocol in listed:
        rows = sum(data.rows for data in protocol.data_sets.values())
        first = next(iter(protocol.samplings.values()))
        lines = [
            f"{protocol.name}",
            _wrapped(_about(protocol).split("\n\n")[0], width, "  "),
            _wrapped(f"{rows:,} questions; {_sampled(first)}; {cost(protocol()):,} tokens at most", width, "  "),
            _wrapped(f"[{protocol.source}]", width, "  "),
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, f"One of them in full: {program()} protocols NAME"])


def describe(protocol: type[Protocol], width: int) -> str:
    """One protocol in full."""
    blocks = [protocol.name, _wrapped(_about(protocol), width), _wrapped(f"Source: {protocol.source}", width)]
    blocks.append("\n".join(["What the user says:", textwrap.indent(protocol.prompt.strip("\n"), "    ")]))
    lines = ["Data, where you name no file:"]
    for name, data in protocol.data_sets.items():
        where = " ".join(filter(None, [data.hub, data.name, data.split])) or f"none; its home is {data.home}"
        lines.append(_wrapped(f"{name}: {where}, {data.rows:,} rows; fields: {data.fields}", width, "  "))
    blocks.append("\n".join(lines))
    lines = ["Variants, and what each samples:"]
    for variant, sampling in protocol.samplings.items():
        tokens = cost(protocol(variant=variant))
        lines.append(_wrapped(f"{variant}: {_sampled(sampling)}; {tokens:,} tokens at most in all", width, "  "))
    blocks.append("\n".join(lines))
    blocks.append(_wrapped(f"Models needed beside the one that is measured: {protocol.models_needed}", width))
    if protocol.deviations:
        listed = [_wrapped(sentence, width, "  - ", "    ") for sentence in protocol.deviations]
        blocks.append("\n".join(["Where text, public code and this one differ:", *listed]))
    described = _settings(protocol)
    lines = ["Settings, with their defaults:"]
    for field in fields(protocol):
        lines.append(f"  {field.name}:" if is_dataclass(field.default) else f"  {field.name} = {_shown(field.default)}")
        lines += [_wrapped(described[field.name], width, " " * 6)] if field.name in described else []
        lines += [f"      {field.name}.{name} = {_shown(value)}" for name, value in _group(field.default).items()]
    blocks.append("\n".join(lines))
    blocks.append(f"Run it with:\n  {program()} evaluate MODEL --protocol {protocol.name}")
    return "\n\n".join(blocks)


def _sampled(sampling: Sampling) -> str:
    """How a variant samples, in words."""
    tokens = f"at most {sampling.max_new_tokens:,} tokens"
    if sampling.is_greedy:
        return f"1 response at temperature 0, {tokens}"
    kept = [f"top-k {sampling.top_k}"] if sampling.top_k else []
    kept += [f"top-p {sampling.top_p:g}"] if sampling.top_p < 1 else []
    responses = f"{sampling.n} responses" if sampling.n > 1 else "1 response"
    return ", ".join([f"{responses} at temperature {sampling.temperature:g}", *kept, tokens])


def _about(protocol: type[Protocol]) -> str:
    """The docstring up to its settings."""
    text = cleandoc(vars(protocol).get("__doc__") or "")
    return re.split(r"^(?:Attributes|Args|Example):$", text, maxsplit=1, flags=re.M)[0].strip()


def _plain(default: Any) -> Any:
    return _group(default) if is_dataclass(default) else default


def _group(default: Any) -> dict[str, Any]:
    """The settings of a group, such as a judge; none of anything else."""
    return asdict(default) if is_dataclass(default) and not isinstance(default, type) else {}


def _settings(protocol: type[Protocol]) -> dict[str, str]:
    """Name -> description, from the sections `Attributes:` of the class and of what it is derived from."""
    described: dict[str, str] = {}
    for cls in reversed(protocol.__mro__):
        doc = cleandoc(vars(cls).get("__doc__") or "")
        section = re.search(r"^Attributes:\n(.*?)(?=^\S|\Z)", doc, re.S | re.M)
        items = re.findall(r"^(\w+): (.*?)(?=^\w|\Z)", textwrap.dedent(section[1]), re.S | re.M) if section else []
        described |= {name: " ".join(text.split()) for name, text in items}
    return described


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _wrapped(text: str, width: int, first: str = "", rest: str | None = None) -> str:
    rest = first if rest is None else rest
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    return "\n\n".join(
        textwrap.fill(
            paragraph,
            width,
            initial_indent=first,
            subsequent_indent=rest,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for paragraph in paragraphs
    )


def _parser() -> OptionParser:
    parser = OptionParser(
        "protocols", "List the protocols: what is asked, samples, cost, paper. With a NAME, say all about one."
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="gsm8k, or the import path of your own: mine.Riddles")
    parser.add_argument("--json", action="store_true", help="print a list that a program can read")
    return parser
