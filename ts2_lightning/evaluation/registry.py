"""The registry of measures: which there are, and how users write what they want measured."""

import importlib
import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_args, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from ts2_lightning import plugins
from ts2_lightning.evaluation.distributions import DECODINGS
from ts2_lightning.evaluation.measure import Measure
from ts2_lightning.evaluation.measures.cost import Cost
from ts2_lightning.evaluation.measures.diversity import Diversity
from ts2_lightning.evaluation.measures.lm_eval import LMEval
from ts2_lightning.evaluation.measures.probes import Probes
from ts2_lightning.evaluation.measures.validation import Validation
from ts2_lightning.evaluation.protocols.alpaca import AlpacaEval
from ts2_lightning.evaluation.protocols.choice import ARC, MMLU
from ts2_lightning.evaluation.protocols.creative import Creative
from ts2_lightning.evaluation.protocols.gsm8k import GSM8K
from ts2_lightning.evaluation.protocols.humaneval import HumanEval
from ts2_lightning.evaluation.protocols.maths import Maths
from ts2_lightning.evaluation.protocols.mtbench101 import MTBench101
from ts2_lightning.evaluation.protocols.novelty import NoveltyBench
from ts2_lightning.evaluation.protocols.openllm import OpenLLM
from ts2_lightning.evaluation.protocols.safety import HarmBench, MaliciousInstruct
from ts2_lightning.evaluation.protocols.stories import Stories
from ts2_lightning.ranges import SHARE, check_number
from ts2_lightning.runs.stamps import digest
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError
from ts2_lightning.values import Value

M = TypeVar("M", bound=Measure)
G = TypeVar("G")

PROTOCOLS = (
    GSM8K, Maths, OpenLLM, ARC, MMLU, HumanEval, Creative, AlpacaEval, NoveltyBench,
    Stories, MTBench101, MaliciousInstruct, HarmBench,
)  # fmt: skip
"""Measures that ask questions and score the responses."""

LOGGED = ("train", "val", "test")
"""First parts of the names of values that a training logs."""
NO_MEASURES = ("decoding", "template", "interpolate")
"""Keys of a specification that say how all of its measures are made."""
_NAME = re.compile(rf"(?!({'|'.join((*LOGGED, *NO_MEASURES))})$)[A-Za-z][A-Za-z0-9_-]*")
"""What a measure may be called: its files and values are named after it, and others have the names left out."""


@cache
def registered_measures() -> dict[str, type[Measure]]:
    """Every measure by its name, in the order of tables: those of plug-ins first."""
    ours = {measure.name: measure for measure in (Validation, Diversity, Probes, *PROTOCOLS, Cost, LMEval)}
    others = plugins.offered("measures")
    for name, measure in others.items():
        if not (isinstance(measure, type) and issubclass(measure, Measure) and measure.name == name) or name in ours:
            raise UserError(
                f"the measure {name!r} of a plug-in must be a subclass of Measure with that `name`, and none of "
                f"{', '.join(ours)}; got {measure!r}"
            )
    return {**others, **ours}


@dataclass(frozen=True)
class Spec:
    """What is to be measured of a model.

    Attributes:
        decoding: distribution that it is decoded with, one of `DECODINGS`.
        template: name of the chat template that it is asked with; `auto`: the one that it was trained with, else that
            of its tokenizer, else `plain`.
        measures: measures with their settings, in the order of the registry.
        interpolate: share of the way from the base model to the run's own at which its weights are taken: 1 is the
            run's model, 0 the base.
    """

    decoding: str = "softmax"
    template: str = "auto"
    measures: tuple[Measure, ...] = ()
    interpolate: float = 1.0


def check_spec(spec: Mapping[str, Any], where: str = "measure") -> Spec:
    """Reads what is to be measured, as far as it can be judged without a model.

    Args:
        spec: `decoding`, `template`, `interpolate`, and measures with their settings: a mapping; null or true for none,
            false to leave the measure out. A measure of the user's own is named `FILE.CLASS`, as Python imports it.
        where: begins messages.

    Raises:
        UserError: an unknown measure or setting, or a value that cannot be; names it.

    Example:
        >>> check_spec({"cost": {}, "validation": {"limit": 100}, "probes": False}).measures
        (Validation(rows=None, format=None, limit=100, max_length=None, batch_size=None, logit_scale=1.0), Cost())
    """
    if not isinstance(spec, Mapping):
        raise UserError(f"{where} must be a mapping such as {{validation: {{}}, cost: {{}}}}, got {spec!r}")
    decoding, template = spec.get("decoding", "softmax"), spec.get("template", "auto")
    classes = {name: _class_of(name, where) for name in spec if name not in NO_MEASURES}
    if not isinstance(decoding, str) or decoding not in DECODINGS:
        hint = did_you_mean(str(decoding), DECODINGS) or f"; there are {', '.join(DECODINGS)}"
        raise UserError(f"{where}.decoding: no decoding {decoding!r}{hint}")
    interpolate = spec.get("interpolate", 1.0)
    check_number(f"{where}.interpolate", interpolate, SHARE)
    if not isinstance(template, str):
        raise UserError(f"{where}.template must be the name of a chat template, got {template!r}")
    count = Counter(measure.name for name, measure in classes.items() if spec[name] is not False)
    if twice := next((name for name in count if count[name] > 1), None):
        raise UserError(f"{where}: two measures are called {twice!r}; give one of them another `name`")
    order = [name for name in registered_measures() if name in classes] + [
        name for name in classes if name not in registered_measures()
    ]
    return Spec(
        decoding,
        template,
        tuple(_read(classes[name], spec[name], f"{where}.{name}") for name in order if spec[name] is not False),
        float(interpolate),
    )


def _class_of(name: Any, where: str) -> type[Measure]:
    """The measure of a name, or the class that the name imports."""
    if name in registered_measures():
        return registered_measures()[name]
    module, _, attribute = str(name).rpartition(".")
    if not module:
        hint = did_you_mean(str(name), [*NO_MEASURES, *registered_measures()])
        raise UserError(f"{where}: no measure {name!r}{hint or '; there are ' + ', '.join(registered_measures())}")
    try:
        imported = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        kind = "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
        raise UserError(f"{where}: measure {name} cannot be imported ({kind}{error}); write FILE.CLASS") from error
    if not (isinstance(imported, type) and issubclass(imported, Measure)):
        raise UserError(f"{where}: {name} is no measure; derive it from ts2_lightning.evaluation.Measure")
    if fault := _fault_of(imported):
        raise UserError(f"{where}: {name}: {fault}")
    code_digest(imported)  # of the file as it is now, whose code will run
    return imported


def _fault_of(measure: type[Measure]) -> str | None:
    """Why a user's class cannot be a measure; None if it can."""
    name = getattr(measure, "name", None)
    if inspect.isabstract(measure):
        return f"it lacks the method {', '.join(sorted(measure.__abstractmethods__))}"
    if not isinstance(name, str) or not is_name(name):
        taken = ", ".join((*LOGGED, *NO_MEASURES))
        return f"`name` must be letters, digits, _ and -, begin with a letter, and be none of {taken}; got {name!r}"
    if registered_measures().get(name, measure) is not measure:
        return f"there is a measure called {name!r} already; give it another `name`"
    if not all(isinstance(value, Value) for value in measure.values):
        return f"`values` must be a tuple of ts2_lightning.values.Value, got {measure.values!r}"
    if len({value.name for value in measure.values}) < len(measure.values):
        return f"two of its `values` have one name: {', '.join(value.name for value in measure.values)}"
    own = [field for field, kind in inspect.get_annotations(measure).items() if "ClassVar" not in str(kind)]
    if own and "__dataclass_fields__" not in vars(measure):
        return f"write @dataclass(frozen=True) above the class, or its settings ({', '.join(own)}) are none"
    return None


def is_name(name: str) -> bool:
    """Whether a measure may be called so.

    Example:
        >>> is_name("weights"), is_name("val"), is_name("../weights")
        (True, False, False)
    """
    return _NAME.fullmatch(name) is not None


@cache
def code_digest(measure: type[Measure]) -> str | None:
    """A digest of the file with the class of a user's measure; None for one that is registered.

    What a registered measure computes changes with the version of its package alone.
    """
    if registered_measures().get(measure.name) is measure:
        return None
    file = getattr(sys.modules.get(measure.__module__), "__file__", None)
    text = Path(file).read_text(encoding="utf-8", errors="replace") if file and Path(file).is_file() else ""
    return digest([measure.__module__, measure.__qualname__, text])


def _read(measure: type[M], value: Any, where: str) -> M:
    """A measure from its settings."""
    parsed = _settings(measure, {} if value is None or value is True else value, where)
    try:
        read = measure(**parsed)
        read.check()
        json.dumps(read.plain_settings())
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except Exception as error:  # a user's class may raise anything
        raise UserError(f"{where}: these settings cannot be taken ({type(error).__name__}: {error})") from error
    return read


def _settings(of: type, value: Any, where: str, usual: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """The settings of a measure, or of a part of one; each is parsed by the type of its field.

    `usual` has those that are not in the value.
    """
    if not isinstance(value, Mapping):
        raise UserError(f"{where} must be a mapping of settings, {{}} for the usual ones, got {value!r}")
    types = {field.name: field for field in fields(of)}
    for name in value:
        if name not in types:
            hint = did_you_mean(str(name), types) or f"; there are {', '.join(types) or 'none'}"
            raise UserError(f"{where}: no setting {name!r}{hint}")
    if needed := [name for name, field in types.items() if name not in {*value, *usual} and _is_needed(field)]:
        raise UserError(f"{where}: it needs {', '.join(needed)}, which has no default")
    return {**usual, **{name: _setting(of, name, setting, where) for name, setting in value.items()}}


def _setting(of: type, name: str, value: Any, where: str) -> Any:
    """One setting. One that is a group of settings, such as a judge, may be named by its first alone.

    What is not set of a group is what the group's default has, which may differ from that of its class.
    """
    kind = group_of(of, name)
    if kind is None or (value is None and kind is not get_type_hints(of)[name]):
        return _parsed(of, name, value, where)
    default = next(_default_of(field) for field in fields(of) if field.name == name)
    return read_group(kind, value, f"{where}.{name}", default if isinstance(default, kind) else None)


def group_of(of: type, name: str) -> type | None:
    """The dataclass of a setting that is a group of settings, such as a judge; None if it is none.

    Args:
        of: class that has the setting.
        name: name of the setting; of one that it has not, None too.
    """
    hint = get_type_hints(of).get(name)
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 and isinstance(kinds[0], type) and is_dataclass(kinds[0]) else None


def read_group(kind: type[G], value: Any, where: str, default: G | None = None) -> G:
    """A group of settings, such as a judge, each parsed by the type of its field.

    Args:
        kind: dataclass of the settings.
        value: mapping of settings, or the first of them alone as a text.
        where: begins messages; its last part is the name of the group.
        default: what has the settings that are not in the value; None for the defaults of the class.

    Raises:
        UserError: an unknown setting, or a value that cannot be; names it.

    Example:
        >>> from ts2_lightning.evaluation.judges import ChatSettings
        >>> read_group(ChatSettings, {"model": "judge", "max_new_tokens": 8}, "judge").max_new_tokens
        8
    """
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    whole = {names[0]: value} if isinstance(value, str) else value
    usual = {} if default is None else {name: getattr(default, name) for name in names}
    parsed = _settings(kind, whole, where, usual)
    try:
        return kind(**parsed)
    except UserError as error:
        of_group = str(error).removeprefix(where.rpartition(".")[2])  # it may begin with the group's own name
        raise UserError(f"{where}{of_group if of_group[:1] in '.:' else f': {error}'}") from error


def _default_of(setting: "Field[Any]") -> Any:
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


def _is_needed(setting: "Field[Any]") -> bool:
    return setting.default is MISSING and setting.default_factory is MISSING


def _parsed(of: type, name: str, value: Any, where: str) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(of, "of")
    try:
        return parser.parse_object({"of": {name: value}}).as_dict()["of"][name]
    except ArgumentError as error:
        [kind] = [field.type for field in fields(of) if field.name == name]
        expected = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "").replace("None", "null")
        raise UserError(f"{where}.{name}: expected {expected}, got {value!r}") from error
