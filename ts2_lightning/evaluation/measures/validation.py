"""Cross-entropy, perplexity and the token statistics of rows, as `validate` gives them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from tqdm.auto import tqdm

from ts2_lightning.data import SFTData
from ts2_lightning.evaluation.loading import supervised_logits
from ts2_lightning.evaluation.measure import ASKED, PER_ITEM, Measure, Measured
from ts2_lightning.evaluation.model import Model, Rows
from ts2_lightning.metrics import BySet, TokenMeans
from ts2_lightning.metrics.functional import token_statistics
from ts2_lightning.ops.statistics import TOKEN_VALUES
from ts2_lightning.ranges import COUNT, NULL, POSITIVE, check_numbers
from ts2_lightning.runs.stamps import digest
from ts2_lightning.types import Batch, UserError
from ts2_lightning.values import Value, by_name

_OF_TOKENS = by_name(TOKEN_VALUES)
_OF_EACH_ROW = ("cross_entropy", "token_accuracy", "entropy", "support_size", "gold_in_support", "tail_mass")


def _of_rows(name: str, meaning: str, shown: bool = False) -> Value:
    """A token statistic, told apart in tables from that of the other measures."""
    value = _OF_TOKENS[name]
    return replace(value, title=f"{value.title}, validation", meaning=meaning, shown=shown)


@dataclass(frozen=True)
class Validation(Measure):
    """Means over the supervised tokens of rows, by teacher forcing.

    They are of the softmax of the logits, whatever the decoding, as `val/...` is while a model is trained: sparsemax
    gives the gold token probability 0 here and there, and cross-entropy would be infinite.

    Attributes:
        rows: sources of rows; null takes the run's `data.validation`, of which several sets are measured each, too.
        format: format of the rows; null takes the run's, for rows that are named here `auto`.
        limit: use the first so many rows of a set; null takes the run's.
        max_length: tokens of a row, at most; null takes the run's.
        batch_size: rows in one forward pass; null takes the run's.
        logit_scale: c of the support and of the tail outside it, that of sparsemax(c z). The same for all models, so
            that they can be compared; `validate` takes the objective's.
    """

    name: ClassVar[str] = "validation"
    usual: ClassVar[bool] = True
    values: ClassVar[tuple[Value, ...]] = (
        _of_rows("cross_entropy", "a supervised token of the validation rows, in nats", shown=True),
        Value("perplexity", "perplexity", "", "lower", ".3f"),
        Value("token_accuracy", "token accuracy", "", "higher", ".3f"),
        _OF_TOKENS["gold_probability"],
        _OF_TOKENS["gold_rank"],
        _of_rows(
            "entropy", "of the model's distribution at the supervised tokens of the validation rows, in nats", True
        ),
        _of_rows("support_size", ""),
        _OF_TOKENS["gold_in_support"],
        _of_rows("tail_mass", ""),
        *(_OF_TOKENS[name] for name in ("top1", "top2", "top3")),
        Value("tokens", "tokens, validation", "", None, ".0f"),
    )
    decoded: ClassVar[bool] = False

    rows: Rows = None
    format: str | None = None
    limit: int | None = None
    max_length: int | None = None
    batch_size: int | None = None
    logit_scale: float = 1.0

    def check(self) -> None:
        """Raises UserError for a number out of its range."""
        optional = (COUNT, NULL)
        check_numbers("", self, limit=optional, max_length=optional, batch_size=optional, logit_scale=POSITIVE)

    def inputs(self, model: Model) -> Any:
        """The files of the rows, by their content."""
        return model.row_identity(f"{self.name}.rows", self._data(model))

    def measure(self, model: Model, beside: Path) -> Measured:
        """`cross_entropy`, `perplexity`, `token_accuracy` and all of `types.TOKEN_STATISTICS`; of a set `SET/NAME`.

        Documents `per_item` and `asked`: means over the tokens of each row, so that models can be compared row by row.
        """
        loaders = model.read_rows(f"{self.name}.rows", self._data(model)).val_dataloader()
        sums: BySet[TokenMeans] = BySet("", loaders, TokenMeans)
        names = [*loaders] if isinstance(loaders, Mapping) else [""]
        by_row = [_Rows() for _ in names]
        for place, loader in enumerate(loaders.values() if isinstance(loaders, Mapping) else [loaders]):
            for batch in tqdm(loader, desc="Reading rows", unit=" batches", disable=None, leave=False):
                by_row[place].ask(batch)
                for here, logits in supervised_logits(model.network, batch):
                    statistics = self._of_tokens(logits, batch["labels"][here].to(logits.device))
                    by_row[place].update(batch["row_index"][batch["token_rows"][here]], statistics)
                    for means in sums.of(place):
                        means.update(statistics)
        values = {
            f"{of}/{name}".strip("/"): value for of, means in sums.items() for name, value in _finish(means).items()
        }
        per_item = {
            f"{of}/{name}".strip("/"): rows.means(name)
            for of, rows in zip(names, by_row, strict=True)
            for name in _OF_EACH_ROW
        }
        asked = {of: rows.asked for of, rows in zip(names, by_row, strict=True)}
        return Measured(values, {PER_ITEM: per_item, ASKED: asked})

    def _of_tokens(self, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        statistics = token_statistics(logits, labels, self.logit_scale)
        return statistics | {"token_accuracy": (statistics["gold_probability"] >= statistics["top1"]).float()}

    def _data(self, model: Model) -> SFTData:
        return model.validation_data(
            f"{self.name}.rows", self.rows, format=self.format, limit_validation=self.limit,
            max_length=self.max_length, eval_batch_size=self.batch_size,
        )  # fmt: skip


class _Rows:
    """Means over the supervised tokens of each row of a set.

    Attributes:
        asked: twelve digits of the tokens of each row and of what is supervised in it, by the number of the row.
    """

    def __init__(self) -> None:
        self.asked: dict[str, str] = {}
        self._sums: dict[int, torch.Tensor] = {}  # [names + 1], the number of tokens comes last

    def ask(self, batch: Batch) -> None:
        """Notes what tells the rows of a batch apart."""
        ids = batch["input_ids"].flatten()
        for place, (row, (start, end)) in enumerate(
            zip(batch["row_index"].tolist(), batch["row_spans"].tolist(), strict=True)
        ):
            supervised = batch["supervised"][batch["token_rows"] == place] - start
            self.asked[str(row)] = digest([ids[start:end].tolist(), supervised.tolist()])[:12]

    def update(self, rows: torch.Tensor, statistics: Mapping[str, torch.Tensor]) -> None:
        """Adds N tokens, with the number of the row of each."""
        values = torch.stack([statistics[name] for name in _OF_EACH_ROW]).cpu().double()
        values = torch.cat([values, torch.ones_like(values[:1])])
        numbers, places = rows.unique(return_inverse=True)
        sums = values.new_zeros(len(values), len(numbers)).index_add_(1, places, values)
        for row, of_row in zip(numbers.tolist(), sums.T, strict=True):
            self._sums[row] = self._sums.get(row, 0) + of_row

    def means(self, name: str) -> dict[str, float]:
        """The mean of each row that has supervised tokens."""
        place = _OF_EACH_ROW.index(name)
        return {str(row): float(sums[place] / sums[-1]) for row, sums in sorted(self._sums.items())}


def _finish(sums: TokenMeans) -> dict[str, float]:
    means = sums.compute()
    if not means:
        raise UserError(f"{Validation.name}.rows: no supervised token in them")
    perplexity = torch.tensor(means["cross_entropy"], dtype=torch.float64).exp().item()  # math.exp would overflow
    return {**means, "perplexity": perplexity, "tokens": sums.count}
