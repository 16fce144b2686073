"""What the protocols of a grid's rows need: `ablate --dry-run` says it before anything is trained.

Nothing is fetched: questions are counted in files that are here, else as their data set is documented; sizes follow
from the base model's config.json if that is here. Prompts are counted by their characters, without a tokenizer.
"""

import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from rich.table import Table

from ts2_lightning.cli.generation_plan import CHARACTERS, estimate_note, hours, rendered, the_gpu
from ts2_lightning.evaluation import check_spec
from ts2_lightning.evaluation.protocols import Protocol
from ts2_lightning.evaluation.protocols.items import Part
from ts2_lightning.model_limits import limits_of
from ts2_lightning.modules.model_files import read_architecture
from ts2_lightning.planning import GPU, TRANSFORMERS, Decoding, GenerationCost, Wanted, generation_cost
from ts2_lightning.plugins import model_scheme
from ts2_lightning.studies.grid import Grid, Point
from ts2_lightning.types import UserError


@dataclass(frozen=True)
class Needs:
    """What a row of a grid needs for its protocols, over all seeds that are not done.

    Attributes:
        row: labels of the row, by axis; none for the base model.
        label: name of the base model's row, else empty.
        protocols: names of its protocols.
        costs: what the responses take, a part at a time.
        judging: numbers by their units, see `Protocol.judging`.
        models: other models that are needed.
    """

    row: Mapping[str, str]
    label: str
    protocols: tuple[str, ...]
    costs: tuple[GenerationCost, ...]
    judging: Mapping[str, float]
    models: tuple[str, ...] = ()

    @property
    def gpu_hours(self) -> float | None:
        """Hours of GPUs for the responses; None where they are not known."""
        of_costs = [cost.gpu_hours for cost in self.costs]
        return None if None in of_costs else sum(filter(None, of_costs))


def needs_of(
    grid: Grid, points: Sequence[Point], is_done: Callable[[Point], bool], gpu: GPU | None
) -> tuple[list[Needs], list[str]]:
    """What the rows need, and remarks on what could not be counted.

    Args:
        grid: all of it.
        points: points that are shown.
        is_done: whether nothing is left of a point.
        gpu: kind of GPU; None where rows are measured on CPUs, whose speed is not known.

    Raises:
        UserError: rows of a protocol's file that are no questions.
    """
    counter = _Counter(gpu)
    base = grid.base_model
    bases = [] if base is None else [counter.needs({}, base.label, base.path, [base.measure])]
    measured: set[str] = set()
    rows: dict[str, list[Point]] = {}
    for point in points:
        rows.setdefault(point.title, []).append(point)
    needs = []
    for of_row in rows.values():
        specs = []
        for point in of_row:
            what = json.dumps([point.training.digest, point.measure], sort_keys=True, default=str)
            if what not in measured and not is_done(point):
                measured.add(what)
                specs.append(point.measure)
        needs.append(counter.needs(of_row[0].labels, "", of_row[0].training.config["model"]["lm"]["path"], specs))
    return [one for one in [*bases, *needs] if one.protocols], counter.remarks


class _Counter:
    """Counts what protocols need, each model and file once.

    Args:
        gpu: kind of GPU, or None.
    """

    def __init__(self, gpu: GPU | None) -> None:
        self.remarks: list[str] = []
        self._gpu = gpu
        self._decodings: dict[str, tuple[Decoding | None, int | None]] = {}
        self._lengths: dict[str, list[int]] = {}

    def needs(self, row: Mapping[str, str], label: str, path: str, specs: Iterable[Mapping[str, Any]]) -> Needs:
        """What the models of a row need, one for each spec."""
        asked = [one for spec in specs for one in check_spec(spec).measures if isinstance(one, Protocol)]
        costs, judging = [], Counter[str]()
        decoding, context = self._decoding(path) if asked else (None, None)
        for protocol in asked:
            of_protocol = [self._wanted(protocol, part, context) for part in protocol.parts()]
            judging.update(protocol.judging(sum(wanted.responses for wanted in of_protocol)))
            costs += [self._cost(wanted, decoding, protocol.batch_size) for wanted in of_protocol]
        models = dict.fromkeys(one.models_used for one in asked if one.models_used != "none")
        names = tuple(dict.fromkeys(one.name for one in asked))
        return Needs(row, label, names, tuple(costs), judging, tuple(models))

    def _cost(self, wanted: Wanted, decoding: Decoding | None, batch_size: int) -> GenerationCost:
        if decoding is None or self._gpu is None:
            return GenerationCost(wanted)
        return generation_cost(wanted, decoding, self._gpu, replace(TRANSFORMERS, at_once=batch_size))

    def _wanted(self, protocol: Protocol, part: Part, context: int | None) -> Wanted:
        limit = part.sampling.max_new_tokens
        lengths = self._questions(protocol, part)
        rooms = [limit if context is None else max(0, min(limit, context - length)) for length in lengths]
        return Wanted.of((length, part.sampling.n, room) for length, room in zip(lengths, rooms, strict=True))

    def _questions(self, protocol: Protocol, part: Part) -> list[int]:
        """About how many tokens each prompt has."""
        kind = json.dumps([protocol.name, part.data_set, protocol.data, protocol.limit, protocol.variant])
        if kind not in self._lengths:
            if not protocol.is_in_files(part.data_set):
                rows = protocol.data_sets[part.data_set].rows
                count = rows if protocol.limit is None else min(rows, protocol.limit)
                self._lengths[kind] = [math.ceil(len(protocol.prompt) / CHARACTERS)] * count
                self._remark(f"{protocol.name}: rows of the hub are not looked at, and counted as they are documented")
            else:
                items = protocol.items(part.data_set)
                self._lengths[kind] = [math.ceil(len(one.question + one.opening) / CHARACTERS) for one in items]
        return self._lengths[kind]

    def _decoding(self, path: str) -> tuple[Decoding | None, int | None]:
        """What the model at a path takes, and its context; None where its config is not here."""
        if path not in self._decodings:
            self._decodings[path] = None, None
            try:
                with _directory(path) as directory:
                    config = read_architecture(directory, pretrained=False)
                    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
                    self._decodings[path] = Decoding.of(directory, dtype), limits_of(config).context
            except (UserError, OSError, ValueError) as error:
                self._remark(f"{path}: no hours, because its sizes are not known here ({error})")
        return self._decodings[path]

    def _remark(self, text: str) -> None:
        if text not in self.remarks:
            self.remarks.append(text)


@contextmanager
def _directory(path: str) -> Iterator[str]:
    """A directory with the config.json of a model, if it is on this machine.

    Raises:
        ValueError: it is not.
    """
    if (scheme := model_scheme(path)) is not None:
        with tempfile.TemporaryDirectory() as scratch:
            yield str(scheme.write_blank(Path(scratch)))
        return
    cached = None if Path(path).exists() else try_to_load_from_cache(path, "config.json")
    if not Path(path).exists() and not isinstance(cached, str):
        raise ValueError("its config.json is not on this machine")
    yield path if cached is None else str(Path(str(cached)).parent)


def needs_text(grid: Grid, points: Sequence[Point], is_done: Callable[[Point], bool], gpu: str | None) -> str | None:
    """What the protocols of some points need, as text; None if they have none.

    Args:
        grid: all of it.
        points: points that are shown.
        is_done: whether nothing is left of a point.
        gpu: kind of GPU that the user has named.

    Raises:
        UserError: no such GPU, or rows of a protocol's file that are no questions.
    """
    on_gpu = any(point.training.config["trainer"].get("accelerator") != "cpu" for point in points)
    device = the_gpu(gpu) if gpu is not None or on_gpu else None
    needs, remarks = needs_of(grid, points, is_done, device)
    if not needs:
        return None
    axes = [axis for axis in grid.axes if any(axis in one.row for one in needs)]
    units = list(dict.fromkeys(unit for one in needs for unit in one.judging))
    table = Table(box=None, pad_edge=False, header_style="")
    for title in (*(axes or [""]), "protocols"):
        table.add_column(title, no_wrap=True)
    for title in ("responses", "new tokens, at most", "GPU hours", *units):
        table.add_column(title, justify="right", no_wrap=True)
    for one in needs:
        labels = [one.row.get(axis, "-") for axis in axes] or [""]
        if one.label:
            labels[0] = one.label
        numbers = [
            f"{sum(cost.wanted.responses for cost in one.costs):,}",
            f"{sum(cost.wanted.new_tokens for cost in one.costs):,}",
            hours(one.gpu_hours),
            *(f"{one.judging[unit]:,.6g}" if unit in one.judging else "-" for unit in units),
        ]
        table.add_row(*labels, ", ".join(one.protocols), *numbers)
    no_hours = ["No hours: there are no figures of a CPU's speed; name a GPU with --gpu"] if device is None else []
    return "\n".join([_title(device), rendered(table), *no_hours, *_below(needs), *remarks])


def _title(device: GPU | None) -> str:
    place = f", on {device.name} with transformers" if device is not None else ""
    return f"Evaluation, of all seeds that are not done{place}:"


def _below(needs: Sequence[Needs]) -> list[str]:
    costs = [cost for one in needs for cost in one.costs]
    lines = []
    of_rows = [one.gpu_hours for one in needs if one.gpu_hours is not None]
    if any(cost.seconds is not None for cost in costs):
        lines.append(f"{hours(sum(of_rows))} GPU hours in all. {estimate_note(costs[0])}")
    if unfit := next((cost for cost in costs if not cost.fits), None):
        assert unfit.gpu is not None
        lines.append(
            f"WARNING: it does not fit on one {unfit.gpu.name}, where measures have a model: {unfit.gpus} hold it"
        )
    models = dict.fromkeys(model for one in needs for model in one.models)
    return [*lines, *(f"Needed besides: {model}" for model in models)]
