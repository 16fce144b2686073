"""The report of `data`: where rows come from, how many and how long they are, what an epoch costs, and some as text."""

import json
import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ts2_lightning.cli.errors.guard import one_line
from ts2_lightning.cli.marked_rows import COLOUR_LEGEND, LEGEND, laid_out, marked, painted, read_pieces, visible
from ts2_lightning.cli.terminal import in_colour, page_width
from ts2_lightning.data import EncodedRows, SFTData, StepShape, epoch_plan, evaluation_plan
from ts2_lightning.data.collate import capacity_of, pack
from ts2_lightning.data.counts import unused_fields
from ts2_lightning.types import UserError

_QUANTILES = {"least": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "most": 1.0}
_BINS = 12  # of the histogram, at most
_NAMED = 3  # bad rows that are named
_LABEL = 15  # columns of what stands before a value


class Cost(NamedTuple):
    """Cost of an epoch, or of one pass over other rows.

    Attributes:
        steps: optimizer steps; 0 if nothing is learnt.
        micro_batches: forward passes of each rank.
        rows: rows, repetitions counted. All that follows is the sum over the ranks.
        tokens: their tokens.
        supervised: those of them that are learnt.
        places: what the network computes: tokens and padding.
    """

    steps: int
    micro_batches: int
    rows: int
    tokens: int
    supervised: int
    places: int

    @property
    def padding(self) -> float:
        """Share of the places that are padding."""
        return 1 - self.tokens / self.places


def cost_of(data: SFTData, split: str, world_size: int = 1) -> Cost:
    """The cost of the first epoch of a split, counted on its plan.

    Args:
        data: after `setup`.
        split: the training rows are shuffled and divided into steps, the others come once in their order.
        world_size: ranks that hold different rows.
    """
    rows = data.rows(split)
    lengths, supervised = rows.lengths, rows.supervised
    ranks = range(world_size)
    if split == "train":
        shape = data.shape._replace(world_size=world_size)
        plans = [list(epoch_plan(lengths, supervised, shape, rank, data.seed, times=data.times)) for rank in ranks]
        steps = len(plans[0]) // shape.accumulation
    else:
        plans = [evaluation_plan(supervised, data.eval_batch_size, world_size, rank) for rank in ranks]
        steps = 0
    batches = [np.array(batch.rows, dtype=np.int64) for plan in plans for batch in plan]
    order = np.concatenate(batches)
    capacity = capacity_of(data.packing, data.row_length)
    places = sum(places_of(lengths[batch], capacity) for batch in batches)
    return Cost(steps, len(plans[0]), len(order), int(lengths[order].sum()), int(supervised[order].sum()), places)


def places_of(lengths: NDArray[np.int64], capacity: float | None) -> int:
    """Tokens and padding of the batch that `collate` makes of rows.

    Args:
        lengths: [R] tokens of each row; a batch without rows is a filler of one place.
        capacity: Capacity of a packed sequence, see `collate`.

    Example:
        >>> places_of(np.array([3, 5]), None), places_of(np.array([3, 5, 2]), capacity=6), places_of(np.array([]), None)
        (10, 10, 1)
    """
    if not len(lengths):
        return 1
    if capacity is None:
        return len(lengths) * int(lengths.max())
    sequences = pack(lengths, capacity)
    return len(sequences) * max(int(lengths[sequence].sum()) for sequence in sequences)


def report(data: SFTData, split: str, world_size: int = 1, show: int = 3, row: int | None = None) -> str:
    """The whole output of the command for one split.

    Args:
        data: Datamodule after `setup`.
        split: Name of the split.
        world_size: Number of ranks that an epoch is divided between.
        show: Number of rows to print.
        row: Number of the one row to print instead.

    Raises:
        UserError: if there is no such row.
    """
    rows, width = data.rows(split), page_width()
    about = data.describe()
    files = about["splits"][split]["files"]
    if row is not None and row >= len(rows):
        raise UserError(f"--row {row}: {split} has the rows 0 to {len(rows) - 1}")
    sections = [
        _source_lines(about, files, split),
        _count_lines(rows, data.template is not None),
        _length_lines(rows, data.row_length, width),
        _weight_lines(rows, data.times if split == "train" else None),
        _unknown_cost_lines(data, rows)
        if data.streaming and split == "train"
        else _cost_lines(data, split, cost_of(data, split, world_size), world_size),
    ]
    blocks = ["\n".join(_fitted(line, width) for line in section) for section in sections]
    numbers = [row] if row is not None else drawn(len(rows), show, data.seed)
    if numbers:
        blocks.append(_fitted(COLOUR_LEGEND if in_colour() else LEGEND, width))
    ends = np.cumsum([file["rows"] for file in files])
    for number in numbers:
        origin = files[int(np.searchsorted(ends, rows.places[number], side="right"))]["path"]
        blocks.append(f"{_fitted(_headline(rows, number, origin), width)}\n{shown_row(data, split, number, width)}")
    return "\n\n".join(blocks)


def drawn(rows: int, count: int, seed: int) -> list[int]:
    """Some rows, drawn without repetition, in their order.

    >>> drawn(3, 5, seed=0)
    [0, 1, 2]
    """
    chosen = np.random.default_rng(seed).choice(rows, min(count, rows), replace=False)
    return sorted(chosen.tolist())


def shown_row(data: SFTData, split: str, number: int, width: int) -> str:
    """A row as text, with what is learnt in colour or, where there are no colours, between signs."""
    ends = () if data.template is None else data.template.end_of_turn_ids
    pieces = read_pieces(data.rows(split)[number], data.tokenizer, ends)
    return laid_out(painted(pieces) if in_colour() else marked(pieces), width)


def _headline(rows: EncodedRows, number: int, origin: str) -> str:
    encoded = rows[number]
    supervised = int((encoded.spans[:, 1] - encoded.spans[:, 0]).sum())
    weight = "" if encoded.weight == 1 else f", weight {encoded.weight:g}"
    text = f"Text {number}, of row {rows.places[number]}" if rows.counts.unrolled else f"Row {number}"
    return f"-- {text}: {len(encoded.ids):,} tokens, {supervised:,} supervised{weight}; {origin}"


def _source_lines(about: dict[str, Any], files: list[dict[str, Any]], split: str) -> Iterator[str]:
    total = sum(file["rows"] for file in files)
    yield f"{split.capitalize()}: {_counted(total, 'row')} read from {_counted(len(files), 'file')}"
    width = len(f"{max(file['rows'] for file in files):,}")
    for file in files:
        yield f"  {file['rows']:>{width},}  {file['path']}"
    if about["tokenizer"] is not None:
        yield _value("tokenizer", about["tokenizer"])
    if about["template"] is not None:
        unlearnt_end = "" if about["train_on_end"] else ", not the token that ends them"
        learnt = {"all": "all turns of the assistant", "last": "the last turn of the assistant"}[about["train_on"]]
        yield _value("template", f"{about['template']}; learnt: {learnt}{unlearnt_end}")
    if about["chat_template_kwargs"]:
        arguments = ", ".join(f"{name}: {json.dumps(value)}" for name, value in about["chat_template_kwargs"].items())
        yield _value("asked with", visible(arguments))


def _count_lines(rows: EncodedRows, has_turns: bool) -> Iterator[str]:
    counts = rows.counts
    yield "Rows"
    yield _value("read", f"{counts.read:,}")
    unrolled = (
        f", as {len(rows):,} texts: the template writes a last turn otherwise than earlier ones"
        if counts.unrolled
        else ""
    )
    yield _value("kept", f"{counts.kept:,}{unrolled}")
    if counts.thoughts:
        yield _value("thoughts", f"in {counts.thoughts:,} of the kept, before the last learnt answer")
    if counts.masked:
        yield _value("masked", f"{_counted(counts.masked, 'turn')} of the assistant, as their rows say")
    lost = _counted(counts.turns_lost, "turn") if counts.turns_lost else ""
    cut = f"; {lost} in them not learnt any more" if lost and counts.truncated else ""
    dropped = f"; and {lost} of the kept, each with its text" if lost and not counts.truncated else ""
    yield _value("truncated", f"{counts.truncated:,} of the kept{cut}")
    yield _value("dropped", f"{counts.dropped:,} as too long{dropped}")
    unwanted = counts.rejected.get("left out", 0)
    if unwanted:
        yield _value("left out", f"{unwanted:,} by their format")
    bad = Counter({kind: count for kind, count in counts.rejected.items() if kind != "left out"})
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in bad.most_common())
    yield _value("bad", f"{bad.total():,}{f': {kinds}' if bad else ''}")
    for reject in rows.rejects[:_NAMED]:
        yield f"    {visible(reject.origin)}: {visible(one_line(reject.reason))}"
    if len(rows.rejects) > _NAMED:
        yield f"    and {len(rows.rejects) - _NAMED:,} more"
    if counts.unused:
        yield _value("not used", f"the fields {visible(unused_fields(counts.unused))}")
    tokens, supervised = len(rows.ids), int(rows.supervised.sum())
    yield _value("tokens", f"{tokens:,}, of which {supervised:,} supervised ({supervised / tokens:.1%})")
    turns = Counter(np.diff(rows.span_edges).tolist())
    what = "learnt turns" if has_turns else "learnt runs"
    shown = [f"{number} in {_counted(count, 'row')}" for number, count in sorted(turns.items())]
    yield _value(what, ", ".join(shown if len(shown) <= _BINS else [*shown[: _BINS - 1], "...", shown[-1]]))


def _length_lines(rows: EncodedRows, most: int, width: int) -> Iterator[str]:
    lengths = rows.lengths
    yield f"Tokens of a row (max_length {most:,})"
    values = np.quantile(lengths, list(_QUANTILES.values()), method="inverted_cdf")
    quantiles = ", ".join(f"{name} {int(value):,}" for name, value in zip(_QUANTILES, values, strict=True))
    yield f"  {quantiles}; mean {lengths.mean():,.1f}"
    yield from histogram(lengths, width)


def histogram(values: NDArray[np.int64], width: int) -> list[str]:
    """How often values are in equal ranges, drawn as bars.

    Args:
        values: [N], N > 0, not negative.
        width: columns.

    Example:
        >>> print("\\n".join(histogram(np.array([1, 3, 3, 4, 27, 27]), width=40)))
           0 -  4  4 ███████████████████████████
           5 -  9  0
          10 - 14  0
          15 - 19  0
          20 - 24  0
          25 - 29  2 ██████████████
    """
    step = _round_step(int(values.max()) + 1)
    first = int(values.min()) // step
    counts = np.bincount(values // step - first)
    last = f"{(first + len(counts)) * step - 1:,}"
    figures = len(f"{counts.max():,}")
    room = width - 2 * len(last) - figures - 8
    lines = []
    for number, count in enumerate(counts.tolist(), start=first):
        low, high = f"{number * step:,}", f"{(number + 1) * step - 1:,}"
        bar = "█" * -(-count * room // int(counts.max()))  # whatever is there can be seen
        lines.append(f"  {low:>{len(last)}} - {high:>{len(last)}}  {count:>{figures},} {bar}".rstrip())
    return lines


def _round_step(end: int) -> int:
    """The least of 1, 2, 5, 10, 20, ... that divides what is below `end` into few ranges."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if -(-end // (factor * power)) <= _BINS:
                return factor * power
        power *= 10


def _weight_lines(rows: EncodedRows, times: NDArray[np.floating] | None) -> Iterator[str]:
    if rows.counts.weighted:
        weights = rows.weights
        least, most, mean = (f"{float(value):g}" for value in (weights.min(), weights.max(), weights.mean()))
        yield f"Weights: {_counted(rows.counts.weighted, 'row')} other than 1; from {least} to {most}, mean {mean}"
    else:
        yield "Weights: all 1"
    if times is None:
        yield "Times: every row once an epoch"
    else:
        shares = (f"{value:g} for {_counted(count, 'row')}" for value, count in sorted(Counter(times.tolist()).items()))
        yield f"Times in an epoch: {', '.join(shares)}"


def _cost_lines(data: SFTData, split: str, cost: Cost, world_size: int) -> Iterator[str]:
    ranks = _counted(world_size, "rank")
    if split == "train":
        shape: StepShape = data.shape._replace(world_size=world_size)
        division = f"batch {shape.batch_size}, micro-batch {shape.micro_batch_size}, packing {data.packing}"
        yield f"An epoch on {ranks} ({division})"
        yield _value("steps", f"{cost.steps:,}")
        yield _value("micro-batches", f"{cost.micro_batches:,} per rank, {shape.accumulation:,} a step")
    else:
        yield f"A pass on {ranks} (batch {data.eval_batch_size}, packing {data.packing})"
        yield _value("batches", f"{cost.micro_batches:,} per rank")
    yield _value("rows", f"{cost.rows:,}")
    yield _value("tokens", f"{cost.tokens:,}, of which {cost.supervised:,} supervised")
    padding = f"{cost.padding:.2%} of the {cost.places:,} places that are computed"
    yield _value("padding", padding + (" in the first epoch" if split == "train" else ""))


def _unknown_cost_lines(data: SFTData, rows: EncodedRows) -> Iterator[str]:
    read = rows.counts.read
    yield f"An epoch: streamed, so what it costs is not known; these are its first {_counted(read, 'row')}"
    yield _value("a step", f"{data.batch_size:,} rows, of which {rows.counts.kept / read:.1%} are kept")
    means = (f"{count * data.batch_size / read:,.0f}" for count in (len(rows.ids), rows.supervised.sum()))
    yield _value("tokens", "{} a step in the mean, of which {} supervised".format(*means))


def _value(name: str, value: str) -> str:
    return f"  {name:<{_LABEL}}{value}"


def _counted(count: int, noun: str) -> str:
    """A number with its noun.

    >>> _counted(1, "row"), _counted(1000, "row")
    ('1 row', '1,000 rows')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _fitted(line: str, width: int) -> str:
    """A line, continued below its value where it is too long; words longer than a line, such as paths, are not cut."""
    if len(line) <= width:
        return line
    lead = line[: len(line) - len(line.lstrip())]
    hanging = " " * (_LABEL + 2) if line[_LABEL : _LABEL + 2] == "  " else lead + "  "
    return "\n".join(
        textwrap.wrap(
            line,
            width,
            drop_whitespace=True,
            subsequent_indent=hanging,
            break_long_words=False,
            break_on_hyphens=False,
            replace_whitespace=False,
        )
    )
