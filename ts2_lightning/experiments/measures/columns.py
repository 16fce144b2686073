"""What is known of each measured value: what tables call it, whether more of it is better, how it is printed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower"] | None
_Row = tuple[str, str, Better, str, bool]


@dataclass(frozen=True)
class Column:
    """One value of a table.

    Attributes:
        name: of the value, such as `toyworld/seen/validity_t1`.
        title: what tables and pictures call it.
        better: which way is better; None where neither is by itself.
        format: how a value is printed, as for `format`.
        default: whether tables show it where nobody has said which columns they shall have.
    """

    name: str
    title: str
    better: Better = None
    format: str = ".4g"
    default: bool = False


def column(name: str) -> Column:
    """What is known of a value. One of a named validation set is called after the set; others are called by their name.

    Example:
        >>> column("toyworld/seen/distinct_t1").title, column("mine/own").title
        ('D, T 1', 'mine/own')
        >>> column("validation/chat/cross_entropy").title
        'CE, validation, chat'
    """
    if name in COLUMNS:
        return COLUMNS[name]
    measure, *parts = name.split("/")
    whole = COLUMNS.get(f"{measure}/{parts[-1]}") if len(parts) == 2 else None
    return Column(name, f"{whole.title}, {parts[0]}", whole.better, whole.format) if whole else Column(name, name)


# Name, title, better, format, default: in the order of the tables.

_FAMILIES: tuple[_Row, ...] = (
    ("validity_t1", "V, T 1", "higher", ".3f", True),
    ("distinct_t1", "D, T 1", "higher", ".2f", True),
    ("validity_papers", "V, papers", "higher", ".3f", True),
    ("distinct_papers", "D, papers", "higher", ".2f", True),
    ("distinct_matched", "D at V .95", "higher", ".2f", True),
    ("temperature_matched", "T at V .95", None, ".2f", False),
    ("coverage_t1", "coverage, T 1", "higher", ".3f", False),
    ("coverage_papers", "coverage, papers", "higher", ".3f", False),
    ("format_t1", "format, T 1", "higher", ".3f", False),
    ("format_papers", "format, papers", "higher", ".3f", False),
    ("end_probability", "end", "higher", ".3f", False),
    ("outside_plausible", "outside", "lower", ".3f", True),
    ("tail_mass", "tail mass", None, ".3f", True),
    ("support_size", "support", None, ".2f", False),
    ("entropy", "entropy", None, ".2f", False),
    ("distinct_base", "D of the world", None, ".2f", False),
)
_TAUGHT: tuple[_Row, ...] = tuple(
    (f"distinct_{decoder}_k{k}", f"D, {title}, {k} taught", "higher", ".2f", False)
    for decoder, title in (("t1", "T 1"), ("papers", "papers"))
    for k in (1, 2, 3)
)
_ITEMS: tuple[_Row, ...] = (
    ("accuracy", "accuracy", "higher", ".3f", True),
    *((f"accuracy/{task}", f"accuracy, {task}", "higher", ".3f", False)
      for task in ("plus", "capital", "opposite", "copy", "maker")),
    ("maker/pass_1_t1", "pass@1, T 1", "higher", ".3f", False),
    ("maker/pass_32_t1", "pass@32, T 1", "higher", ".3f", False),
    ("maker/pass_1_papers", "pass@1, papers", "higher", ".3f", False),
    ("maker/pass_32_papers", "pass@32, papers", "higher", ".3f", False),
)  # fmt: skip
_VALIDATION: tuple[_Row, ...] = (
    ("cross_entropy", "CE, validation", "lower", ".3f", True),
    ("perplexity", "perplexity", "lower", ".3f", False),
    ("token_accuracy", "token accuracy", "higher", ".3f", False),
    ("gold_probability", "p(gold)", "higher", ".3f", False),
    ("gold_rank", "rank of gold", "lower", ".2f", False),
    ("entropy", "entropy, validation", None, ".3f", True),
    ("support_size", "support, validation", None, ".2f", False),
    ("gold_in_support", "gold in support", None, ".3f", False),
    ("tail_mass", "tail mass, validation", None, ".3f", False),
    ("top1", "1st token", None, ".3f", False),
    ("top2", "2nd token", None, ".3f", False),
    ("top3", "3rd token", None, ".3f", False),
    ("tokens", "tokens, validation", None, ".0f", False),
)
_DIVERSITY: tuple[_Row, ...] = (
    ("ngram", "n-gram", "higher", ".2f", True),
    ("self_bleu", "100 - self-BLEU", "higher", ".2f", True),
    ("sentence_bert", "Sent-BERT", "higher", ".2f", True),
    ("distinct_1", "distinct 1-grams", "higher", ".3f", False),
    ("distinct_2", "distinct 2-grams", "higher", ".3f", False),
    ("distinct_3", "distinct 3-grams", "higher", ".3f", False),
    ("mean_probability", "p(sampled)", None, ".3f", False),
    ("tokens", "tokens a response", None, ".1f", False),
    ("ended", "ended", None, ".3f", False),
    ("responses", "responses", None, ".0f", False),
)
_PROBES: tuple[_Row, ...] = (
    ("tail/top1", "1st token, tail probe", None, ".3f", False),
    ("tail/top2", "2nd token, tail probe", None, ".3f", False),
    ("tail/top3", "3rd token, tail probe", None, ".3f", False),
    ("tail/tail_mass", "tail mass, tail probe", None, ".3f", True),
    ("tail/support_size", "support, tail probe", None, ".2f", False),
    ("tspd/share", "TSPD(2, .1, .2)", None, ".3f", True),
    ("tspd/support_size", "support, TSPD probe", None, ".2f", False),
    ("tspd/zero_gradient", "gold alone in support", None, ".3f", False),
    ("tspd/entropy", "entropy, TSPD probe", None, ".3f", False),
    ("tspd/gold_probability", "p(gold), TSPD probe", None, ".3f", False),
    ("macro/mean", "p(sampled), macro probe", None, ".3f", True),
    ("macro/median", "median p(sampled), macro probe", None, ".3f", False),
    ("macro/standard_deviation", "s.d. of p(sampled), macro probe", None, ".3f", False),
    ("micro/implausible_mass", "implausible, micro probe", "lower", ".3f", True),
    ("micro/tail_mass", "tail mass, micro probe", None, ".3f", False),
    ("micro/support_size", "support, micro probe", None, ".2f", False),
    ("micro/entropy", "entropy, micro probe", None, ".3f", False),
)
_COST: tuple[_Row, ...] = (  # times follow the load of the machine, so that none is the best
    ("seconds", "seconds", None, ".1f", True),
    ("steps", "steps", None, ".0f", False),
    ("tokens_per_second", "tokens/s", None, ".0f", False),
    ("supervised_tokens_per_second", "supervised tokens/s", None, ".0f", True),
    ("peak_memory_gb", "memory, GB", "lower", ".2f", True),
)


def _columns() -> Iterator[Column]:
    for split in ("seen", "unseen"):
        for name, title, better, spec, default in (*_FAMILIES, *_TAUGHT):
            seen = split == "seen"
            yield Column(
                f"toyworld/{split}/{name}", title if seen else f"{title}, unseen", better, spec, default and seen
            )
    others = {
        "toyworld": _ITEMS, "validation": _VALIDATION, "diversity": _DIVERSITY, "probes": _PROBES, "cost": _COST
    }  # fmt: skip
    for measure, rows in others.items():
        for name, *known in rows:
            yield Column(f"{measure}/{name}", *known)  # type: ignore[arg-type]


COLUMNS: dict[str, Column] = {found.name: found for found in _columns()}
"""Every value that has a title, in the order of tables."""
