"""Means over tokens that arrive in uneven pieces, on several ranks."""

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from ts2_lightning.ops import widest_float


class Reducer(Protocol):
    """The part of a Lightning strategy that sums over ranks."""

    @property
    def root_device(self) -> torch.device:
        """The device on which this rank computes."""

    def reduce(self, tensor: Tensor, group: object = None, reduce_op: str = "sum") -> Tensor:
        """The sum of a tensor over all ranks."""


class TokenMeans:
    """Exact means over all tokens since the last reset: sums and a count, never a mean of means.

    Sums stay on their device, in float64 where it has it; `compute` waits for the device once and makes one all-reduce.
    The names stay the same for as long as the object lives; ranks without a token yet learn them from the others.

    Example:
        >>> means = TokenMeans()
        >>> means.update({"entropy": torch.tensor([1.0, 2.0, 3.0])})
        >>> means.update({"entropy": torch.tensor([6.0])})
        >>> means.compute()
        {'entropy': 3.0}
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._agreed = False  # whether all ranks have the same names
        self.reset()

    def reset(self) -> None:
        """Starts again from no token."""
        self._sums: Tensor | None = None  # [names + 1], the number of tokens comes last
        self.count = 0
        """Tokens on all ranks, as of the last `compute`."""

    @torch.no_grad()
    def update(self, tokens: Mapping[str, Tensor]) -> None:
        """Adds N tokens, possibly none.

        Args:
            tokens: values [N] of each name, the same names every time and on every rank; with N = 0 names may be
                missing, as the parts of a composite loss are unknown before its first token.

        Raises:
            ValueError: a name came or went.
        """
        if not tokens or not next(iter(tokens.values())).shape[0]:
            return
        names = self._in_order(tokens)
        rows = torch.stack([tokens[name] for name in names])
        self._add(rows.sum(1, dtype=widest_float(rows.device)), rows.shape[1])

    @torch.no_grad()
    def add_sums(self, sums: Mapping[str, Tensor], count: int) -> None:
        """Adds `count` tokens, at least one, of which only the sums are there.

        Args:
            sums: sum [] of each name over the tokens, the same names every time and on every rank.
            count: number of the tokens.

        Raises:
            ValueError: a name came or went.

        Example:
            >>> means = TokenMeans()
            >>> means.add_sums({"padding": torch.tensor(3)}, 12)
            >>> means.compute()
            {'padding': 0.25}
        """
        names = self._in_order(sums)
        values = torch.stack([sums[name] for name in names])
        self._add(values.to(widest_float(values.device)), count)

    def _in_order(self, names: Iterable[str]) -> list[str]:
        ordered = sorted(names)  # one order on every rank
        if not self._names:
            self._names = ordered
        if ordered != self._names:
            raise ValueError(f"token statistics came or went: {sorted(set(ordered) ^ set(self._names))}")
        return ordered

    def _add(self, sums: Tensor, count: int) -> None:
        sums = torch.cat([sums, sums.new_full((1,), count)])
        self._sums = sums if self._sums is None else self._sums + sums

    def compute(self, reducer: Reducer | None = None) -> dict[str, float]:
        """The mean under each name; empty where there was no token on any rank.

        Args:
            reducer: Lightning strategy over whose ranks to sum; every rank must call. Default: this process alone.

        Raises:
            ValueError: ranks have different names.
        """
        sums = self._sums
        if reducer is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
            self._agree_on_names()
            if sums is None:
                device = reducer.root_device
                sums = torch.zeros(len(self._names) + 1, dtype=widest_float(device), device=device)
            sums = reducer.reduce(sums, reduce_op="sum")
        if sums is None:
            return {}
        *totals, count = sums.tolist()
        self.count = int(count)
        return {name: total / count for name, total in zip(self._names, totals, strict=True)} if count else {}

    def _agree_on_names(self) -> None:
        """Tells ranks without a token what the columns of the sums are; one exchange, when the first tokens come."""
        if self._agreed:
            return
        gathered: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(gathered, self._names)
        filled = [names for names in gathered if names]
        if any(names != filled[0] for names in filled):
            raise ValueError(f"ranks have different token statistics: {gathered}")
        if filled:
            self._names, self._agreed = filled[0], True
