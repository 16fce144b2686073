"""`evaluate`: models under the papers' protocols: responses, scores and values, a table and pictures."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ts2_lightning.cli.asked_models import AskedModels, add_model_options
from ts2_lightning.cli.model_places import add_device, begin
from ts2_lightning.cli.protocols import find_protocol, protocols
from ts2_lightning.cli.terminal import OptionParser, put
from ts2_lightning.evaluation import Model, Spec, check_spec, files_of, make_measures
from ts2_lightning.evaluation.protocols import Protocol
from ts2_lightning.evaluation.protocols.pictures import draw_all
from ts2_lightning.evaluation.protocols.tables import Evaluated, as_csv, as_markdown, as_text, remarks
from ts2_lightning.evaluation.results import read_result
from ts2_lightning.ranges import COUNT, SEED, check_number, whole_number
from ts2_lightning.runs.writing import write_whole
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError
from ts2_lightning.yaml_files import load_yaml

_ABOUT = """Asks models the questions of protocols, scores what they respond, and shows the values side by side. What is
there is not made again: responses in DIR/responses, scores in DIR/scores, values in DIR/measures; DIR is the run or,
for another model, a directory below --out. An evaluation that was killed goes on; several may work on the same one."""


def run(argv: Sequence[str]) -> int:
    """Evaluates models.

    Args:
        argv: the options after the command, see `--help`.

    Returns:
        The exit status, 0.

    Raises:
        UserError: no such model, protocol or file, or a setting that cannot be.
    """
    options = _parser().parse_args(argv)
    begin("evaluate", options.device, options.out)
    spec = spec_of(options)
    out = Path(options.out)
    evaluated: list[Evaluated] = []
    with tempfile.TemporaryDirectory(prefix="ts2-evaluate-") as scratch:
        models = AskedModels(options, Path(scratch), out).models()
        for model in models:
            put(f"== {model.name}")
            make_measures(model, spec, put, draw=False)
            model.forget()
            evaluated.append(_read(model, spec))
    _write(evaluated, out, [measure for measure in spec.measures if isinstance(measure, Protocol)])
    return 0


def _read(model: Model, spec: Spec) -> Evaluated:
    """What is on disk now of what was asked for."""
    results = {name: read_result(file) for name, file in files_of(model.out, spec).items()}
    return Evaluated(model.title, results)


def _write(evaluated: Sequence[Evaluated], out: Path, asked: Sequence[Protocol]) -> None:
    below = remarks(evaluated, asked)
    put("\n".join(["", as_text(evaluated), "", *below]))
    for name, text in (("table.csv", as_csv(evaluated)), ("table.md", as_markdown(evaluated, below))):
        write_whole(out / name, lambda beside, text=text: beside.write_text(text, encoding="utf-8"))  # type: ignore[misc]
    pictures = draw_all(evaluated, out)
    named = ", ".join(path.name for path in pictures if path.suffix == ".png")
    put(f"\n{out}: table.csv, table.md{', ' + named if named else ''}")


# What is asked for ----------------------------------------------------------------------------------------------


def spec_of(options: Any) -> Spec:
    """What is to be measured, from the options.

    Raises:
        UserError: an unknown protocol or setting, or a value that cannot be; names the option.
    """
    asked = {name: find_protocol(name, "--protocol") for name in _listed(options.protocol)}
    settings: dict[str, dict[str, Any]] = {name: {} for name in asked}
    _add_common(options, asked, settings)
    for text in options.data or ():
        _add_data(text, asked, settings)
    for text in options.set or ():
        _add_setting(text, asked, settings)
    spec: dict[str, Any] = {"decoding": options.decoding, "template": options.template, **settings}
    return check_spec(spec, "--protocol")


def _listed(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError(f"--protocol: name some of {', '.join(protocols())}, with commas between them")
    return list(dict.fromkeys(names))


def _add_common(options: Any, asked: Mapping[str, type[Protocol]], settings: dict[str, dict[str, Any]]) -> None:
    """The options that all protocols take, and those that only some have."""
    for option, allowed in (("n", COUNT), ("limit", COUNT), ("batch_size", COUNT), ("seed", SEED)):
        value = whole_number(getattr(options, option))
        if value is not None:
            check_number(f"--{option}", value, allowed)
            for name, of_protocol in settings.items():
                if option != "n" or not all(sampling.is_greedy for sampling in asked[name].samplings.values()):
                    of_protocol[option] = value
    for option in ("variant", "run_code", "sandbox"):
        value = getattr(options, option)
        if value in (None, False):
            continue
        takers = [name for name, protocol in asked.items() if option in {field.name for field in fields(protocol)}]
        if not takers:
            raise UserError(f"--{option}: none of {', '.join(asked)} has this setting; leave it out")
        for name in takers:
            settings[name][option] = value


def _add_data(text: str, asked: Mapping[str, type[Protocol]], settings: dict[str, dict[str, Any]]) -> None:
    """`gsm8k=FILE`, or `openllm.arc=FILE` where a protocol has several data sets."""
    place, equals, file = text.partition("=")
    name, _, data_set = place.partition(".") if place not in asked else (place, "", "")
    if not equals or not file:
        raise UserError(f"--data {text}: write PROTOCOL=FILE, or PROTOCOL.SET=FILE where there are several data sets")
    if name not in asked:
        hint = did_you_mean(name, asked) or f"; there is {', '.join(asked)}"
        raise UserError(f"--data {text}: no such protocol in --protocol{hint}")
    sets = asked[name].data_sets
    if not data_set and len(sets) > 1:
        raise UserError(f"--data {text}: write {name}.SET={file}, SET being one of {', '.join(sets)}")
    if data_set and data_set not in sets:
        raise UserError(
            f"--data {text}: no data set {data_set!r}{did_you_mean(data_set, sets)}; there is {', '.join(sets)}"
        )
    if not data_set:
        settings[name]["data"] = file
    else:
        settings[name].setdefault("data", {})[data_set] = file


def _add_setting(text: str, asked: Mapping[str, type[Protocol]], settings: dict[str, dict[str, Any]]) -> None:
    """`gsm8k.ks=[1,4,16]`: a setting of one protocol, its value as YAML."""
    match = re.fullmatch(r"(?P<name>.+)\.(?P<setting>\w+)=(?P<value>.*)", text, re.S)
    if match is None:
        raise UserError(f"--set {text}: write PROTOCOL.SETTING=VALUE, such as gsm8k.ks=[1,4,16]")
    if match["name"] not in asked:
        hint = did_you_mean(match["name"], asked) or f"; there is {', '.join(asked)}"
        raise UserError(f"--set {text}: no such protocol in --protocol{hint}")
    settings[match["name"]][match["setting"]] = load_yaml(match["value"], f"--set {text}")


def _parser() -> OptionParser:
    parser = OptionParser("evaluate", _ABOUT)
    add_model_options(parser)
    parser.add_argument(
        "--protocol",
        required=True,
        metavar="NAME,...",
        help=f"what is asked: {', '.join(protocols())}, or FILE.CLASS of your own; `protocols NAME` says all about one",
    )
    parser.add_argument(
        "--data",
        action="append",
        metavar="NAME=FILE",
        help="the rows of a protocol, or of one of its data sets: NAME.SET=FILE (default: the data set on the hub)",
    )
    parser.add_argument("--n", metavar="N", help="responses to each question (default: those of the paper)")
    parser.add_argument("--limit", metavar="N", help="the first so many questions of each data set")
    parser.add_argument("--seed", metavar="N", help="seed of the sampling (default: 0)")
    parser.add_argument("--batch_size", metavar="N", help="responses at a time (default: 64)")
    parser.add_argument("--variant", metavar="NAME", help="paper (default) or papers_code, where they differ")
    parser.add_argument(
        "--set", action="append", metavar="NAME.SETTING=VALUE", help="another setting, such as gsm8k.ks=[1,4,16]"
    )
    parser.add_argument("--run_code", action="store_true", help="let protocols run the code that models write")
    parser.add_argument("--sandbox", metavar="NAME", help="where that code runs")
    parser.add_argument("--out", default="evaluation", metavar="DIR", help="table and pictures (default: evaluation)")
    add_device(parser)
    return parser
