"""`judge`: how far a judge agrees with labels that are known to be better, before anybody believes it."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ts2_lightning.cli.judge_options import add_judge_options, judge_values, max_cost
from ts2_lightning.cli.model_places import add_device, begin
from ts2_lightning.cli.terminal import OptionParser, put
from ts2_lightning.evaluation.judges import (
    ChatJudge,
    ChatSettings,
    Judge,
    JudgePrompt,
    Parser,
    RewardModel,
    RewardSettings,
    spending_limit,
)
from ts2_lightning.evaluation.judges.agreement import Agreed
from ts2_lightning.evaluation.judges.calibration import (
    TITLES,
    Worth,
    worth_of_pairs,
    worth_of_ratings,
    worth_of_rewards,
)
from ts2_lightning.evaluation.judges.labelled import (
    FIELDS,
    PAIR_PROMPT,
    RATING_PROMPT,
    Labelled,
    pair_parser,
    rating_parser,
    read_labelled,
    scale_of,
)
from ts2_lightning.evaluation.judges.questions import Label, Rating
from ts2_lightning.evaluation.registry import read_group
from ts2_lightning.ranges import COUNT, check_number, whole_number
from ts2_lightning.runs.writing import write_json, write_whole
from ts2_lightning.types import UserError
from ts2_lightning.yaml_files import load_yaml

_ABOUT = """Has a judge rate what people, or a stronger judge, have rated already, and says how far it agrees: accuracy,
kappa, correlations, and what it owes to the place and the length of a response, each with the 95 % interval of the
bootstrap over rows. Pairs are asked in both orders. Verdicts are kept: what was asked once is not asked again."""

G = TypeVar("G")

OUT = "judge_check"
_OF_CHATS = (
    "judge_backend", "judge_temperature", "judge_api_key_env", "votes", "price", "max_cost", "scale", "prompt",
    "pattern",
)  # fmt: skip
"""Options that reward models have no use for."""
_FEW = 100
"""Rows below which a figure says little."""
_MANY_UNREAD = 0.1


def run(argv: Sequence[str]) -> int:
    """Checks a judge.

    Args:
        argv: the options after the command, see `--help`.

    Returns:
        The exit status, 0.

    Raises:
        UserError: no such judge or file, a row that is none, or a setting that cannot be.
    """
    options = _parser().parse_args(argv)
    begin("judge", options.device, options.out)
    labelled, are_pairs = read_labelled(options.check, "--check", _limit(options))
    kind = options.kind or ("pair" if are_pairs else "rating")
    if kind != "reward" and (kind == "pair") != are_pairs:
        rows = "pairs" if are_pairs else "single responses"
        raise UserError(f"--kind {kind}: the rows of {options.check} are {rows}")
    if kind == "reward":
        judge, worth = _rewards(labelled, are_pairs, options)
    else:
        settings = _settings(options, ChatSettings)
        with spending_limit(max_cost(options, {"--judge": settings})):
            judge, worth = _pairs(settings, labelled, options) if are_pairs else _ratings(settings, labelled, options)
    _write(Path(options.out), kind, judge, worth, options)
    return 0


def _settings(options: Any, kind: type[G]) -> G:
    values: dict[str, Any] = judge_values(options)["judge"]
    for text in options.set or ():
        name, equals, value = text.partition("=")
        name = name.strip().removeprefix("judge.").removeprefix("reward.")
        if not equals or not name:
            raise UserError(f"--set {text}: write SETTING=VALUE, such as max_new_tokens=64")
        values[name] = load_yaml(value, f"--set {text}")
    return read_group(kind, values, "judge" if kind is ChatSettings else "reward")


def _rewards(labelled: Sequence[Labelled], are_pairs: bool, options: Any) -> tuple[Judge, Worth]:
    for name in _OF_CHATS:
        if getattr(options, name) is not None:
            raise UserError(f"--{name}: is for judges that are asked in words, not for --kind reward; leave it out")
    judge = RewardModel(_settings(options, RewardSettings))
    judge.check()
    if not are_pairs:
        return judge, worth_of_ratings(labelled, judge.judge([row.case for row in labelled]), on_scale=False)
    rewards = judge.judge([case for row in labelled for case in (row.case, row.swapped)])
    return judge, worth_of_rewards(labelled, list(zip(rewards[::2], rewards[1::2], strict=True)))


def _ratings(settings: ChatSettings, labelled: Sequence[Labelled], options: Any) -> tuple[Judge, Worth]:
    least, most = scale_of(labelled, _scale(options.scale))
    if options.scale is None:
        put(f"ratings from {least:g} to {most:g}, the smallest and the largest label (--scale sets others)")
    details = {"least": f"{least:g}", "most": f"{most:g}"}
    prompt, parser = _asked(options, RATING_PROMPT, rating_parser(least, most))
    judge = ChatJudge(settings, prompt, parser)
    judge.check()
    cases = [replace(row.case, details={**details, **row.case.details}) for row in labelled]
    return judge, worth_of_ratings(labelled, judge.judge(cases))


def _pairs(settings: ChatSettings, labelled: Sequence[Labelled], options: Any) -> tuple[Judge, Worth]:
    if options.scale is not None:
        raise UserError("--scale: is for ratings, and the rows are pairs; leave it out")
    prompt, parser = _asked(options, PAIR_PROMPT, pair_parser())
    judge = ChatJudge(settings, prompt, parser)
    judge.check()
    verdicts = judge.judge([case for row in labelled for case in (row.case, row.swapped)])
    return judge, worth_of_pairs(labelled, list(zip(verdicts[::2], verdicts[1::2], strict=True)))


def _asked(options: Any, usual: JudgePrompt, parser: Parser) -> tuple[JudgePrompt, Parser]:
    """What the judge is asked, and how it is read: ours, or what the user has named."""
    prompt = usual
    if options.prompt is not None:
        try:
            prompt = JudgePrompt("check", Path(options.prompt).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompt {options.prompt}: cannot be read ({error})") from error
        places = ("{response}", "{other}") if "{other}" in usual.text else ("{response}",)
        if absent := next((place for place in places if place not in prompt.text), None):
            raise UserError(f"--prompt {options.prompt}: has no {absent}, so that the judge would not see it")
    if options.pattern is not None:
        parser = replace(parser, pattern=options.pattern)  # type: ignore[call-arg]
    assert isinstance(parser, Rating | Label)
    return prompt, parser


def _scale(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    parts: list[float] = []
    with suppress(ValueError):
        parts = [float(part) for part in text.split(",")]
    if len(parts) != 2 or not all(map(math.isfinite, parts)) or parts[0] >= parts[1]:
        raise UserError(f"--scale {text}: write LEAST,MOST, such as 1,10")
    return parts[0], parts[1]


def _limit(options: Any) -> int | None:
    limit: Any = whole_number(options.limit)
    if limit is not None:
        check_number("--limit", limit, COUNT)
    return limit


# What is shown --------------------------------------------------------------------------------------------------


def _write(out: Path, kind: str, judge: Judge, worth: Worth, options: Any) -> None:
    title = judge.title if isinstance(judge, ChatJudge) else "/".join(Path(options.judge).parts[-2:])
    put("\n".join(["", *_table(title, worth), "", *_remarks(worth)]).rstrip())
    whole = {
        "judge": options.judge, "kind": kind, "file": options.check, "rows": len(worth.rows),
        "identity": judge.identity, "values": {name: _plain(agreed) for name, agreed in worth.values.items()},
    }  # fmt: skip
    write_json(out / "agreement.json", whole)
    for name, text in (("agreement.csv", _csv(worth.values)), ("verdicts.jsonl", _lines(worth.rows))):
        write_whole(out / name, lambda beside, text=text: beside.write_text(text, encoding="utf-8"))  # type: ignore[misc]
    put(f"\n{out}: agreement.csv, agreement.json, verdicts.jsonl")


def _table(title: str, worth: Worth) -> list[str]:
    width = max(len(TITLES[name]) for name in worth.values)
    lines = [f"{title} on {len(worth.rows):,} {'pairs' if 'longer_wins' in worth.values else 'responses'}"]
    for name, agreed in worth.values.items():
        lines.append(f"  {TITLES[name]:<{width}}  {_shown(agreed)}")
    return lines


def _shown(agreed: Agreed) -> str:
    if math.isnan(agreed.value):
        return f"{'-':>6}  ({agreed.note})"
    if math.isnan(agreed.low):
        return f"{agreed.value:6.3f}  ({agreed.note})"
    return f"{agreed.value:6.3f} [{agreed.low:.3f}, {agreed.high:.3f}]  {agreed.rows:,}"


def _remarks(worth: Worth) -> list[str]:
    remarks = ["in brackets the 95 % interval of the bootstrap over rows, behind it their number"]
    unread = worth.values["unread"].value
    if unread == 1:
        remarks.append("no verdict could be read: see `raw` in verdicts.jsonl, and --prompt and --pattern")
    elif unread > _MANY_UNREAD:
        remarks.append(f"{unread:.0%} of the verdicts could not be read: the figures are of the others alone")
    if len(worth.rows) < _FEW:
        remarks.append(
            f"{len(worth.rows):,} rows are few: the intervals count, not the figures"
            if len(worth.rows) > 1
            else "one row says nothing of a judge"
        )
    return remarks


def _plain(agreed: Agreed) -> dict[str, Any]:
    plain = agreed._asdict()
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in plain.items()}


def _csv(values: Mapping[str, Agreed]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["figure", *Agreed._fields])
    for name, agreed in values.items():
        writer.writerow([name, *("" if value is None else value for value in _plain(agreed).values())])
    return stream.getvalue()


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def _parser() -> OptionParser:
    parser = OptionParser("judge", _ABOUT)
    parser.add_argument("--check", required=True, metavar="FILE", help=f"rows with {FIELDS}")
    parser.add_argument(
        "--kind", choices=("rating", "pair", "reward"), help="reward: MODEL is one (default: by the rows)"
    )
    parser.add_argument("--scale", metavar="LEAST,MOST", help="ratings (default: smallest and largest label)")
    parser.add_argument("--prompt", metavar="FILE", help="what the judge is asked, with {response} (default: ours)")
    parser.add_argument("--pattern", metavar="REGEX", help="what is read of its answer: the first group")
    parser.add_argument("--limit", metavar="N", help="use the first so many rows")
    parser.add_argument("--set", action="append", metavar="SETTING=VALUE", help="another setting of the judge")
    parser.add_argument("--out", default=OUT, metavar="DIR", help=f"table and verdicts (default: {OUT})")
    add_judge_options(parser, required=True)
    add_device(parser)
    return parser
