"""Fine-tunes the toy world's base model with every objective and writes the table of docs/objectives.md.

    python docs/toyworld_objectives.py               # one seed, about 10 s a fit on a CPU core
    python docs/toyworld_objectives.py --seeds 0 1 2 # means over three seeds, with their deviations

Settings, data and measures are the quickstart's, the same for every objective: nothing is tuned. A fit that has
exported its model is not run again, so an interrupted table goes on where it was.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from ts2_lightning.cli.quiet import quieten
from ts2_lightning.data.toyworld import load_world
from ts2_lightning.evaluation.models import load_model
from ts2_lightning.evaluation.toyworld import evaluate_toyworld
from ts2_lightning.experiments.configs import shipped_config
from ts2_lightning.experiments.quickstart import CONFIG, fit, latest_export, nearer, style_of
from ts2_lightning.experiments.toyworld_base import ensure_base
from ts2_lightning.types import UserError

DOCUMENT = Path(__file__).with_name("objectives.md")
BEGIN, END = "<!-- toy world: begin -->", "<!-- toy world: end -->"

OBJECTIVES = {
    "cross_entropy": "CE",
    "label_smoothing": "label smoothing 0.2",
    "entropy_bonus": "entropy bonus 0.1",
    "focal": "focal 3",
    "lambda_pr": "lambda-PR",
    "gem": "GEM 0.7",
    "gem_logsigmoid": "GEM 0.7, logsigmoid",
    "tofu": "TOFU 3, 0.8",
    "sparsemax": "sparsemax",
    "entmax15": "entmax 1.5",
    "suppression_only": "CE + 0.25 suppression",
    "ts2": "TS2 0.25",
    "ts2_adaptive": "TS2 0.25, adaptive",
    "ts2_top_k": "TS2 0.25, top 5",
    "entmax_plus": "Entmax+ 0.25",
    "power_inflation": "power inflation 2",
    "exponential_inflation": "exponential inflation 4",
    "logarithmic_inflation": "logarithmic inflation 0.01",
}
"""Stem of a fragment in `configs/loss` -> label, in the order of the table."""

BASELINES = {"CE, weight decay 0.1": "cross_entropy_weight_decay", "CE, NEFTune 5": "neftune"}
"""Label -> stem of a fragment in `configs/baseline`."""

MEASURES: dict[str, tuple[str, str]] = {
    "V, T 1": ("seen/validity_t1", ".2f"),
    "D, T 1": ("seen/distinct_t1", ".2f"),
    "V, papers": ("seen/validity_papers", ".2f"),
    "D, papers": ("seen/distinct_papers", ".2f"),
    "D at V .95": ("seen/distinct_matched", ".2f"),
    "format": ("seen/format_t1", ".2f"),
    "end": ("seen/end_probability", ".2f"),
    "accuracy": ("accuracy", ".2f"),
    "outside": ("seen/outside_plausible", ".3f"),
    "tail mass": ("seen/tail_mass", ".3f"),
    "support": ("seen/support_size", ".2f"),
    "entropy": ("seen/entropy", ".2f"),
}
"""Title -> (measure, format); `evaluate_toyworld` says what each is."""

SPREAD = tuple(MEASURES)[:5]
"""Columns that show their standard deviation where there are several seeds."""

LEGEND = (
    "V: share of valid answers. D: distinct plausible answers expected in 32 samples (the world's own distribution: "
    "{base:.1f}). At T 1, under the papers' decoder (T 0.6, top-p 0.9, top-k 50), and at the highest temperature "
    "where V is still 0.95 (-: there is none). The rest at T 1: format and end of the turn as they should be; "
    "outside: mass outside the plausible answers; tail mass: outside the sparsemax support; entropy in nats. "
    "Accuracy: greedy, on tasks with one right answer."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Fits what is missing, measures all, prints the table and puts it into the document."""
    options = _parser().parse_args(argv)
    quieten("fit")
    runs: dict[str, list[Path]] = {"base": [ensure_base()]}
    for seed in options.seeds:
        for label, (stem, extra) in fits(options.only).items():
            name = f"objectives/seed-{seed}/{stem}"
            if options.again or not latest_export(name, options.runs_dir).is_dir():
                status = fit(label, name, [*extra, "--trainer.enable_progress_bar", "false"], options.runs_dir, seed)
                if status:
                    return status
            runs.setdefault(label, []).append(latest_export(name, options.runs_dir))
    text = table(measure(runs), len(options.seeds))
    print(f"\n{text}")
    if not options.only and not options.dry:
        insert(DOCUMENT, text)
        print(f"\nWritten into {nearer(DOCUMENT)}")
    return 0


def fits(only: Sequence[str] = ()) -> dict[str, tuple[str, list[str]]]:
    """Label -> (name of its runs, what it overrides in the quickstart's configuration).

    Args:
        only: stems of fragments and baselines; empty: all.

    Raises:
        UserError: a fragment of `configs/loss` has no label, or `only` names something else.
    """
    stems = sorted(path.stem for path in shipped_config("loss/ts2.yaml").parent.glob("*.yaml"))
    if set(stems) != OBJECTIVES.keys():
        raise UserError(f"configs/loss and OBJECTIVES differ in {sorted(OBJECTIVES.keys() ^ set(stems))}")
    rate = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["model"]["optimizer"]["lr"]
    found = {label: (stem, ["--model.loss", _path(f"loss/{stem}.yaml")]) for stem, label in OBJECTIVES.items()}
    half = ["--model.loss", _path("loss/cross_entropy.yaml"), "--model.optimizer.lr", str(rate / 2)]
    found["CE, half rate"] = ("half_rate", half)
    for label, stem in BASELINES.items():
        found[label] = (stem, ["-c", _path(f"baseline/{stem}.yaml")])
    unknown = set(only) - {stem for stem, _ in found.values()}
    if unknown:
        raise UserError(f"--only: no such objective: {', '.join(sorted(unknown))}")
    order = [OBJECTIVES["cross_entropy"], "CE, half rate", *BASELINES]
    order += [label for label in found if label not in order]
    return {label: found[label] for label in order if not only or found[label][0] in only}


def measure(runs: Mapping[str, Sequence[Path]]) -> dict[str, list[dict[str, float]]]:
    """The exact measures of every model. Label -> directories, one per seed."""
    world = load_world()
    transformers_logging.disable_progress_bar()  # one bar over the models is enough
    measured: dict[str, list[dict[str, float]]] = {}
    for label, directories in tqdm(runs.items(), desc="Measuring", unit=" models"):
        for directory in directories:
            model, tokenizer = load_model(directory)
            measured.setdefault(label, []).append(evaluate_toyworld(model, tokenizer, world, style_of(label)))
    return measured


def table(measured: Mapping[str, Sequence[Mapping[str, float]]], seeds: int) -> str:
    """A markdown table with its legend: means over the seeds."""
    lines = ["| objective | " + " | ".join(MEASURES) + " |", "| --- |" + " ---: |" * len(MEASURES)]
    for label, runs in measured.items():
        cells = [
            cell([run.get(name, math.nan) for run in runs], spec, title in SPREAD)
            for title, (name, spec) in MEASURES.items()
        ]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    base = next(iter(measured.values()))[0].get("seen/distinct_base", math.nan)
    count = f"Means over {seeds} seeds, ± standard deviation over them" if seeds > 1 else "One seed"
    return "\n".join([*lines, "", f"{count}. {LEGEND.format(base=base)}"])


def cell(values: Sequence[float], spec: str, spread: bool) -> str:
    """A mean, with the standard deviation of a sample if asked for; `-` where a value is missing.

    >>> cell([0.5], ".2f", True), cell([0.4, 0.6], ".2f", True), cell([math.nan], ".2f", False)
    ('0.50', '0.50 ± 0.14', '-')
    """
    if any(math.isnan(value) for value in values):
        return "-"
    mean = format(statistics.fmean(values), spec)
    return f"{mean} ± {format(statistics.stdev(values), spec)}" if spread and len(values) > 1 else mean


def insert(document: Path, text: str) -> None:
    """Replaces what stands between the two marker lines.

    Raises:
        UserError: the document has no markers.
    """
    before, begin, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{document}: expected the lines {BEGIN} and {END}")
    document.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def _path(name: str) -> str:
    return str(nearer(shipped_config(name)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Fit every objective in the toy world; write the table.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the training rows (default: 0)")
    parser.add_argument("--runs_dir", default="runs", help="directory of all runs (default: runs)")
    parser.add_argument("--only", nargs="+", default=[], metavar="STEM", help="these alone, without writing")
    parser.add_argument("--again", action="store_true", help="also run what has finished")
    parser.add_argument("--dry", action="store_true", help="print the table, leave the document as it is")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
