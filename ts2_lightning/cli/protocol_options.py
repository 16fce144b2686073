"""The options that say which protocols are asked, and how: those that `evaluate` and `generate` share."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

from ts2_lightning.cli.judge_options import add_judges, merge_group
from ts2_lightning.cli.protocols import find_protocol, protocols
from ts2_lightning.cli.terminal import OptionParser, put
from ts2_lightning.evaluation import Spec, check_spec
from ts2_lightning.evaluation.protocols import Protocol
from ts2_lightning.evaluation.registry import group_of
from ts2_lightning.generation import DECODING
from ts2_lightning.ranges import COUNT, SEED, check_number, whole_number
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError
from ts2_lightning.yaml_files import load_yaml

_COUNTS = ("n", "limit", "batch_size", "max_new_tokens")
_FLAGS = ("variant", "run_code", "sandbox", "i_know_what_i_run")
"""Settings that only some protocols have."""


def protocol_help() -> str:
    """What `--protocol` takes, for the help."""
    names = ", ".join(protocols())
    return f"what is asked: {names}, or FILE.CLASS of your own; `protocols NAME` says all about one"


def add_sampling_options(parser: OptionParser, usual: Mapping[str, Any]) -> None:
    """Adds how many responses are sampled, and how. None of them has a value where the user gives none.

    Args:
        parser: parser of a command.
        usual: text of the help that says what stands for an option that is left out, by the option's name; `paper's`
            for the others.
    """
    helps = {
        "n": ("N", "responses to each question"),
        "limit": ("N", "use the first so many questions, of each data set"),
        "seed": ("N", "seed of the sampling"),
        "temperature": ("T", "0 takes the most probable token"),
        "top_k": ("N", "0 keeps all tokens"),
        "top_p": ("P", "1 keeps all tokens"),
        "max_new_tokens": ("N", "tokens of a response, at most"),
        "batch_size": ("N", "responses at a time; halved where memory runs out"),
    }
    for name, (metavar, text) in helps.items():
        default = usual.get(name, "the paper's")
        parser.add_argument(f"--{name}", metavar=metavar, help=f"{text} (default: {default})")


def add_protocol_options(parser: OptionParser) -> None:
    """Adds rows, variant and further settings of protocols."""
    parser.add_argument(
        "--data",
        action="append",
        metavar="NAME=FILE",
        help="the rows of a protocol, or of one of its data sets: NAME.SET=FILE (default: the data set on the hub)",
    )
    parser.add_argument("--variant", metavar="NAME", help="paper (default) or papers_code, where they differ")
    parser.add_argument(
        "--set", action="append", metavar="NAME.SETTING=VALUE", help="another setting, such as gsm8k.ks=[1,4,16]"
    )


def number(options: Any, option: str) -> Any:
    """The number of an option of `add_sampling_options`; None where the user has given none.

    Raises:
        UserError: it is none, or out of its range.
    """
    value = whole_number(getattr(options, option))
    if value is None:
        return None
    if option in ("temperature", "top_p") and isinstance(value, str):
        with suppress(ValueError):  # what is no number is refused below
            value = float(value)
    allowed = {"seed": (SEED,), **dict.fromkeys(_COUNTS, (COUNT,)), **DECODING}[option]
    check_number(f"--{option}", value, *allowed)
    return value


def spec_of(options: Any) -> Spec:
    """What is asked and measured, from the options. A line says of which protocols `--n` is not.

    Raises:
        UserError: an unknown protocol or setting, or a value that cannot be; names the option.
    """
    asked = {name: find_protocol(name, "--protocol") for name in _listed(options.protocol)}
    settings: dict[str, dict[str, Any]] = {name: {} for name in asked}
    _add_common(options, asked, settings)
    add_judges(options, asked, settings)
    for text in options.data or ():
        _add_data(text, asked, settings)
    for text in options.set or ():
        _add_setting(text, asked, settings)
    _add_n(number(options, "n"), asked, settings)
    spec: dict[str, Any] = {"decoding": options.decoding, "template": options.template, **settings}
    return check_spec(spec, "--protocol")


def _listed(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError(f"--protocol: name some of {', '.join(protocols())}, with commas between them")
    return list(dict.fromkeys(names))


def _add_common(options: Any, asked: Mapping[str, type[Protocol]], settings: dict[str, dict[str, Any]]) -> None:
    """The options that all protocols take, and those that only some have."""
    for option in ("limit", "batch_size", "seed", "max_new_tokens", *DECODING):
        value = number(options, option)
        if value is not None:
            for of_protocol in settings.values():
                of_protocol[option] = value
    for option in _FLAGS:
        value = getattr(options, option, None)
        if value in (None, False):
            continue
        takers = [name for name, protocol in asked.items() if option in {field.name for field in fields(protocol)}]
        if not takers:
            raise UserError(f"--{option}: none of {', '.join(asked)} has this setting; leave it out")
        for name in takers:
            settings[name][option] = value


def _add_n(n: int | None, asked: Mapping[str, type[Protocol]], settings: dict[str, dict[str, Any]]) -> None:
    """`--n`, for protocols that sample: at temperature 0 all responses are the same, so one is enough."""
    once = []
    for name, of_protocol in settings.items():
        temperature = of_protocol.get("temperature")
        if temperature is None and all(sampling.is_greedy for sampling in asked[name].samplings.values()):
            once.append(name)
        elif n is not None:
            of_protocol.setdefault("n", n)
        elif temperature == 0:
            of_protocol.setdefault("n", 1)
    if once and n is not None and n > 1:
        put(f"--n {n} is not for {', '.join(once)}: one response to each question, at temperature 0")


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
    """`gsm8k.ks=[1,4,16]`: a setting of one protocol, its value as YAML; `stories.judge.votes=3`: one of a group."""
    match = re.fullmatch(r"(?P<place>[^=]+)=(?P<value>.*)", text, re.S)
    place = match["place"].strip() if match else ""
    name = next((name for name in sorted(asked, key=len, reverse=True) if place.startswith(f"{name}.")), None)
    setting = place.removeprefix(f"{name}.") if name else place.partition(".")[2]
    if match is None or not re.fullmatch(r"\w+(\.\w+)*", setting):
        raise UserError(f"--set {text}: write PROTOCOL.SETTING=VALUE, such as gsm8k.ks=[1,4,16]")
    if name is None:
        first = place.partition(".")[0]
        hint = did_you_mean(first, asked) or f"; there is {', '.join(asked)}"
        raise UserError(f"--set {text}: no such protocol in --protocol{hint}")
    value = load_yaml(match["value"], f"--set {text}")
    group, _, inner = setting.partition(".")
    kind = group_of(asked[name], group)
    if kind is not None:
        merge_group(kind, group, settings[name], {inner: value} if inner else value)
    elif inner:
        raise UserError(f"--set {text}: {name} has no group of settings {group!r}; write {name}.SETTING=VALUE")
    else:
        settings[name][setting] = value
