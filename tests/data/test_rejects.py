"""The policy for bad rows."""

import json
import pickle
from pathlib import Path
from typing import get_args

import pytest

from ts2_lightning.data.rejects import Reject, Rejects
from ts2_lightning.types import RejectKind, RowError, UserError

BAD = [Reject(f"rows.jsonl:{line}", "empty answer", f"reason {line}") for line in (3, 5, 8, 9)]


def rejects_of(bad: list[Reject], *options: object) -> Rejects:
    rejects = Rejects(*options)
    for reject in bad:
        rejects.add(reject)
    return rejects


def test_any_bad_row_is_an_error_by_default() -> None:
    Rejects().finish(0)
    Rejects().finish(10)
    rejects = rejects_of([*BAD, Reject("rows.jsonl:9", "not UTF-8", "reason")])
    with pytest.raises(UserError) as error:
        rejects.finish(1000)
    assert str(error.value) == (
        "rows.jsonl:3: reason 3 | rows.jsonl:5: reason 5 | rows.jsonl:8: reason 8; 5 of 1000 rows are bad "
        "(4 empty answer, 1 not UTF-8); mend them, or let data.max_rejects, the share of bad rows to leave out, be at "
        "least 0.005"
    )


@pytest.mark.parametrize(("bad", "total"), [(4, 3 * 7 * 11), (1, 3), (4, 4), (3, 10**7)])
def test_the_share_that_the_error_names_is_enough(bad: int, total: int) -> None:
    with pytest.raises(UserError) as error:
        rejects_of(BAD[:bad]).finish(total)
    share = float(str(error.value).rpartition(" ")[2])
    rejects_of(BAD[:bad], share).finish(total)
    with pytest.raises(UserError):
        rejects_of(BAD[:bad], bad / total * 0.999).finish(total)


def test_tolerated_rows_are_listed(tmp_path: Path) -> None:
    file = tmp_path / "run" / "rejects-train.jsonl"
    odd = Reject("rows.jsonl:10", "not UTF-8", "\ud800 ☃")
    rejects = rejects_of([*BAD, odd], 0.5, file)
    rejects.finish(10)
    listed = [json.loads(line) for line in file.read_text(encoding="utf-8").replace("\\ud800", "?").splitlines()]
    assert listed[:4] == [bad._asdict() for bad in BAD]
    assert listed[4] == {"origin": "rows.jsonl:10", "kind": "not UTF-8", "reason": "? ☃"}
    assert rejects.summary() == "4 empty answer, 1 not UTF-8"
    Rejects(0.5, tmp_path / "none.jsonl").finish(10)
    assert not (tmp_path / "none.jsonl").exists()


def test_rows_that_a_format_leaves_out_are_not_bad(tmp_path: Path) -> None:
    rejects = rejects_of([Reject("rows.jsonl:1", "left out", "no")] * 9, 0.0, tmp_path / "rejects.jsonl")
    rejects.finish(10)
    assert (len(rejects), rejects.by_kind) == (0, {"left out": 9})
    assert not list(tmp_path.iterdir())


def test_the_kind_of_an_error_survives_the_way_between_processes() -> None:
    for kind in get_args(RejectKind):
        error = pickle.loads(pickle.dumps(RowError("reason", kind)))
        assert (str(error), error.kind) == ("reason", kind)
