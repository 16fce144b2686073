"""The options that say who judges, and what it may cost: those that `evaluate` and `judge` share."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ts2_lightning.cli.model_places import usual_device
from ts2_lightning.cli.terminal import OptionParser
from ts2_lightning.evaluation import Measure, Spec
from ts2_lightning.evaluation.judges import ChatSettings
from ts2_lightning.evaluation.registry import group_of
from ts2_lightning.generation.backends import BACKENDS
from ts2_lightning.generation.backends.endpoint import PREFIX
from ts2_lightning.ranges import COUNT, NOT_NEGATIVE, POSITIVE, check_number, whole_number
from ts2_lightning.types import UserError

_OPTIONS = {
    "judge": ("judge", "model"),
    "judge_backend": ("judge", "backend"),
    "judge_temperature": ("judge", "temperature"),
    "judge_api_key_env": ("judge", "api_key_env"),
    "votes": ("judge", "votes"),
    "price": ("judge", ""),
    "reward_model": ("reward", "model"),
}
"""The group of settings of a protocol that each option is for, and its setting there."""


def add_judge_options(parser: OptionParser, required: bool = False) -> None:
    """Adds who judges.

    Args:
        parser: parser of a command.
        required: whether there is nothing to do without a judge.
    """
    add = parser.add_argument_group("judges").add_argument
    add(
        "--judge",
        metavar="MODEL",
        required=required,
        help=f"language model that rates: a transformers directory, a name on the hub, or {PREFIX}URL#NAME",
    )
    add("--judge_backend", metavar="NAME", help=f"what makes its answers: {', '.join(BACKENDS)}")
    add("--judge_temperature", metavar="T", help="default: the protocol's, mostly 0")
    add("--judge_api_key_env", metavar="NAME", help="environment variable that has its key; '' sends none")
    add("--votes", metavar="N", help="times that it is asked of each response, at a temperature above 0 (default: 1)")
    add("--price", metavar="IN,OUT", help="dollars for a million tokens that it reads, and that it writes")
    add("--max_cost", "--max-cost", metavar="DOLLARS", help="stop before judges cost more, all of them together")
    if not required:
        add("--reward_model", metavar="MODEL", help="reward model that scores: a transformers directory, or a name")


def judge_values(options: Any) -> dict[str, dict[str, Any]]:
    """The settings that the options name, by their group, such as `judge`.

    Args:
        options: options of `add_judge_options`, and `device`.

    Raises:
        UserError: a number that is none, or out of its range.
    """
    values: dict[str, dict[str, Any]] = {}
    for option, (group, setting) in _OPTIONS.items():
        text = getattr(options, option, None)
        if text is not None:
            values.setdefault(group, {}).update(_prices(text) if option == "price" else {setting: _value(option, text)})
            if setting == "model" and options.device != usual_device():  # which takes every GPU, where a judge can
                values[group]["device"] = options.device
    return values


def add_judges(options: Any, asked: Mapping[str, type[Measure]], settings: dict[str, dict[str, Any]]) -> None:
    """Adds who judges to the settings of the protocols that have a judge.

    Args:
        options: options of `add_judge_options`; those of other commands name no judge.
        asked: protocols by their names.
        settings: settings of each protocol, which are added to.

    Raises:
        UserError: an option that is for none of the protocols.
    """
    for group, values in judge_values(options).items():
        takers = [name for name, protocol in asked.items() if _takes(protocol, group)]
        if not takers:
            option = next(name for name, (of, _) in _OPTIONS.items() if of == group and getattr(options, name, None))
            raise UserError(f"--{option}: none of {', '.join(asked)} has a {group}; leave it out")
        for name in takers:
            merge_group(group_of(asked[name], group), group, settings[name], values)


def _takes(protocol: type[Measure], group: str) -> bool:
    """Whether a protocol has a judge of that kind, and not one of its own that nobody else can stand in for."""
    return group_of(protocol, group) is not None and group not in getattr(protocol, "own_judges", ())


def merge_group(kind: Any, group: str, settings: dict[str, Any], value: Any) -> None:
    """Adds settings of a group to those that are there; a text is its first one, which names a model.

    Args:
        kind: dataclass of the group.
        group: name of the group.
        settings: settings of the protocol, which are added to.
        value: settings of the group by their names, or what the user has written in their place.
    """
    first = fields(kind)[0].name
    there, more = ({first: one} if isinstance(one, str) else one for one in (settings.get(group, {}), value))
    both = isinstance(there, Mapping) and isinstance(more, Mapping)
    settings[group] = {**there, **more} if both else more  # what is no mapping is refused where it is read


def max_cost(options: Any, judges: Mapping[str, ChatSettings]) -> float | None:
    """The dollars that judges may cost; None for no limit.

    Args:
        options: options of `add_judge_options`.
        judges: judges that are asked, by the name of who asks them.

    Raises:
        UserError: no such number, or a limit where nobody knows what judges cost.
    """
    if options.max_cost is None:
        return None
    dollars = _number("--max_cost", options.max_cost, POSITIVE)
    for judge in judges.values():
        if judge.is_endpoint and judge.prices is None:
            raise UserError(f"--max_cost: nobody has said what {judge.model} costs; add --price IN,OUT")
    if not any(judge.prices for judge in judges.values()):
        raise UserError("--max_cost: no judge that is asked has a price; leave it out, or add --price IN,OUT")
    return dollars


def judges_of(spec: Spec) -> dict[str, ChatSettings]:
    """The language models that judge in what is measured, by the names of measure and setting."""
    return {
        f"{measure.name}.{setting.name}": judge
        for measure in spec.measures
        for setting in fields(measure)
        if isinstance(judge := getattr(measure, setting.name), ChatSettings)
    }


def _value(option: str, text: str) -> Any:
    if option == "votes":
        value = whole_number(text)
        check_number("--votes", value, COUNT)
        return value
    return _number("--judge_temperature", text, NOT_NEGATIVE) if option == "judge_temperature" else text


def _prices(text: str) -> dict[str, float]:
    parts = text.split(",")
    if len(parts) != 2:
        raise UserError(f"--price {text}: write IN,OUT, dollars for a million tokens that are read and written")
    prompt, completion = (_number("--price", part.strip(), NOT_NEGATIVE) for part in parts)
    return {"prompt_price": prompt, "completion_price": completion}


def _number(option: str, text: str, allowed: Any) -> float:
    try:
        value: Any = float(text)
    except ValueError:
        value = text
    check_number(option, value, allowed)
    return float(value)
