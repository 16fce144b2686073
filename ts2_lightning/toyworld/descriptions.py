"""Descriptions of the exact measures of the toy world: what `exact.evaluate_toyworld` returns."""

from collections.abc import Iterator
from dataclasses import replace

from ts2_lightning.toyworld.world import CLOSED_TASKS
from ts2_lightning.values import Value

_DECODERS = {"t1": ("T 1", "T 1"), "papers": ("papers", "T 0.6, top-k 50, top-p 0.9")}
"""Decoder -> its name in titles, and what it is."""

_IF_ANY = ", defined if every question has a plausible answer"
_DISTINCT = "distinct valid answers expected in 32 samples"
_HIGHEST = "the highest T at which V is 0.95"
_END = "probability that an answer ends where it should"


def _of_decoders(
    name: str, title: str, meaning: str, format: str = ".3f", shown: bool = False, ending: str = "", taught: str = ""
) -> tuple[Value, Value]:
    """Descriptions of a value under each of the two decoders; more of it is better."""
    t1, papers = (
        Value(f"{name}_{decoder}{ending}", f"{title}, {called}{taught}", f"{meaning}; {what}", "higher", format, shown)
        for decoder, (called, what) in _DECODERS.items()
    )
    return t1, papers


def _family_values() -> list[Value]:
    """Descriptions of what `_family_measures` returns for the families that are seen in fine-tuning."""
    validity = _of_decoders("validity", "V", "share of valid answers", shown=True)
    distinct = _of_decoders("distinct", "D", _DISTINCT, ".2f", shown=True)
    first = "of the first token of the answer"
    return [
        validity[0],
        distinct[0],
        validity[1],
        distinct[1],
        Value("distinct_matched", "D at V .95", f"{_DISTINCT}; at {_HIGHEST}", "higher", ".2f", True),
        Value("temperature_matched", "T at V .95", _HIGHEST, None, ".2f"),
        *_of_decoders("coverage", "coverage", "the same as a share of all valid answers"),
        *_of_decoders("format", "format", f"probability of the taught form around the model's own answers{_IF_ANY}"),
        Value("end_probability", "end", f"{_END}; T 1{_IF_ANY}", "higher", ".3f"),
        Value("outside_plausible", "outside", f"mass {first} outside of the plausible ones", "lower", ".3f", True),
        Value("tail_mass", "tail mass", f"mass {first} outside of its sparsemax support", None, ".3f", True),
        Value("support_size", "support", f"sparsemax support {first}, in tokens", None, ".2f"),
        Value("entropy", "entropy", f"entropy {first}, in nats", None, ".2f"),
        Value("distinct_base", "D of the world", f"{_DISTINCT} of the world's own distribution", None, ".2f"),
    ]  # fmt: skip


def _taught_values() -> list[Value]:
    """Descriptions of the diversity over families of which one, two or three answers are taught."""
    pairs = []
    for k in (1, 2, 3):
        pair = _of_decoders("distinct", "D", _DISTINCT, ".2f", ending=f"_k{k}", taught=f", {k} taught")
        asked = f"; questions with {k} taught answer{'' if k == 1 else 's'}"
        pairs.append([replace(value, meaning=value.meaning + asked) for value in pair])
    return [value for decoder in zip(*pairs, strict=True) for value in decoder]


def _item_values() -> list[Value]:
    """Descriptions of what `_item_measures` returns."""
    greedy = "greedy accuracy on held-out questions that have one answer"
    tasks = [Value(f"accuracy/{task}", f"accuracy, {task}", "", "higher", ".3f") for task in (*CLOSED_TASKS, "maker")]
    one = _of_decoders("maker/pass_1", "pass@1", "probability of the right answer")
    many = _of_decoders("maker/pass_32", "pass@32", "probability that one of 32 samples is right")
    return [Value("accuracy", "accuracy", greedy, "higher", ".3f", True), *tasks, one[0], many[0], one[1], many[1]]


def _values() -> Iterator[Value]:
    seen = [*_family_values(), *_taught_values()]
    yield from (value.under("seen") for value in seen)
    for value in seen:
        taught = value.name[-3:-1] == "_k"  # there is none where no question is taught
        unseen = "" if taught else "; questions of which none was taught"
        yield value.under("unseen", title=f"{value.title}, unseen", meaning=value.meaning + unseen, shown=False)
    yield from _item_values()


VALUES: tuple[Value, ...] = tuple(_values())
"""Descriptions of what `evaluate_toyworld` returns."""


def _decoded_values() -> Iterator[Value]:
    """Descriptions of what `ToyWorldDecoded` returns."""
    decoder = "under the decoder of the measure's settings"
    of_seen = (
        Value("validity", "decoded V", f"share of valid answers; {decoder}", "higher", ".3f", True),
        Value("distinct", "decoded D", f"{_DISTINCT}; {decoder}", "higher", ".2f", True),
        Value("coverage", "decoded coverage", f"the same as a share of all valid answers; {decoder}", "higher", ".3f"),
    )
    yield from (value.under("seen") for value in of_seen)
    for value in of_seen:
        meaning = f"{value.meaning}; questions of which none was taught"
        yield value.under("unseen", title=f"{value.title}, unseen", meaning=meaning, shown=False)


DECODED_VALUES: tuple[Value, ...] = tuple(_decoded_values())
"""Descriptions of the values of the measure `toyworld_decoded`."""
