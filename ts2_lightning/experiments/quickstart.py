"""`quickstart`: what cross-entropy and TS2 do to the same model, on a world whose plausible answers are known."""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ts2_lightning.cli.run_directory import numbers
from ts2_lightning.data.toyworld import load_world
from ts2_lightning.data.toyworld.world import Family, World
from ts2_lightning.evaluation.models import load_model
from ts2_lightning.evaluation.picture import draw_next_token
from ts2_lightning.evaluation.toyworld import (
    Style,
    evaluate_toyworld,
    format_table,
    next_token_log_probabilities,
    plausible_first_tokens,
)
from ts2_lightning.experiments.configs import shipped_config
from ts2_lightning.experiments.toyworld_base import ensure_base

CONFIG = shipped_config("experiment/quickstart.yaml")
PICTURED = ("base", "CE", "TS2")


def run(argv: Sequence[str]) -> int:
    """Trains, compares, prints a table and draws a picture. Every number is made in this run.

    Args:
        argv: the options after the command, see `--help`.

    Returns:
        The exit status: that of the first fit that failed, else 0.
    """
    from ts2_lightning.cli.quiet import quieten  # the command line imports its commands, not the other way round

    options = _parser().parse_args(argv)
    quieten("quickstart")
    base = ensure_base()
    models: dict[str, Path] = {"base": base}
    for label, extra in fits().items():
        name = f"quickstart-{slug(label)}"
        status = fit(label, name, extra, options.runs_dir, options.seed)
        if status:
            return status
        models[label] = latest_export(name, options.runs_dir)
    compare(models, Path(options.runs_dir) / "quickstart")
    return 0


def fits() -> dict[str, list[str]]:
    """The fits that are compared: label -> what is overridden in the quickstart's configuration."""
    rate = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["model"]["optimizer"]["lr"]
    cross_entropy = ["--model.loss", "CrossEntropyLoss"]
    return {
        "CE": cross_entropy,
        # A gentler fit also keeps diversity: no objective may claim what half the learning rate does.
        "CE, half rate": [*cross_entropy, "--model.optimizer.lr", str(rate / 2)],
        "TS2": [],
    }


def compare(models: dict[str, Path], out: Path) -> None:
    """Measures every model and writes `table.txt`, `measures.json` and `next_token.png` into `out`.

    Args:
        models: label -> directory of a transformers model; `base` is asked in plain text, the others in chat.
        out: directory, made if need be.
    """
    world = load_world()
    family = next(family for family in world.seen if len(family.taught) == 2)
    request = family.held_out[0]
    measures: dict[str, dict[str, float]] = {}
    distributions: dict[str, Tensor] = {}
    print()
    transformers_logging.disable_progress_bar()  # one bar over the models is enough
    for label, directory in tqdm(models.items(), desc="Measuring", unit=" models"):
        model, tokenizer = load_model(directory)
        style = style_of(label)
        measures[label] = evaluate_toyworld(model, tokenizer, world, style)
        if label in PICTURED:
            distributions[label] = next_token_log_probabilities(model, tokenizer, world, request, style).exp()
    table = format_table(measures)
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.txt").write_text(table + "\n", encoding="utf-8")
    (out / "measures.json").write_text(json.dumps(measures, indent=2) + "\n", encoding="utf-8")
    picture = _draw(out / "next_token.png", distributions, tokenizer, world, family, request)
    print(f"\n{table}\n\nPicture:     {picture}\nMeasures:    {out / 'measures.json'}")


def fit(label: str, name: str, extra: Sequence[str], runs_dir: str | Path = "runs", seed: int = 0) -> int:
    """Runs the quickstart's experiment once, and says so.

    Args:
        label: what the fit is called on the screen.
        name: of the run; its directory is the next free one below `RUNS_DIR/NAME`.
        extra: options that override the quickstart's configuration.
        runs_dir: directory of all runs.
        seed: of the training rows, of their order, and of what is random in the training itself.

    Returns:
        The exit status of `fit`.
    """
    from ts2_lightning.cli import main

    options = list(extra)
    if seed:  # 0 is what the configuration has
        options += ["--seed_everything", str(seed), "--data.seed", str(seed)]
        options += ["--data.train", f"toyworld:train?seed={seed}"]
    print(f"\n== {label}: python cli.py fit -c {nearer(CONFIG)} {' '.join(options)}".rstrip(), flush=True)
    return main(["fit", "-c", str(CONFIG), "--name", name, "--runs_dir", str(runs_dir), *options])


def latest_export(name: str, runs_dir: str | Path = "runs") -> Path:
    """Where the newest run of a name exports its model; `RUNS_DIR/NAME/0/export`, which never exists, without a run."""
    runs = Path(runs_dir) / name
    return runs / str(max(numbers(runs), default=0)) / "export"


def style_of(label: str) -> Style:
    """How a model is asked: the base, which has never seen the chat tokens, in plain text."""
    return "text" if label == "base" else "chat"


def slug(label: str) -> str:
    """A label as part of a directory's name.

    >>> slug("CE, half rate")
    'ce-half-rate'
    """
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-")


def nearer(path: Path) -> Path:
    """The path from the working directory, where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _draw(
    path: Path,
    distributions: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    world: World,
    family: Family,
    request: str,
) -> Path:
    size = len(next(iter(distributions.values())))
    return draw_next_token(
        path,
        distributions,
        [str(token) for token in tokenizer.convert_ids_to_tokens(list(range(size)))],
        plausible_first_tokens(tokenizer, family, size),
        f'"{request}": first word of the answer',
        marked={answer.split()[0]: f"(taught {share:.0%})" for answer, share in family.taught.items()},
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python cli.py quickstart",
        description="Fine-tune the toy world's base model with CE, CE at half the learning rate, and TS2; compare.",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the training rows and their order (default: 0)")
    parser.add_argument("--runs_dir", default="runs", help="directory of all runs (default: runs)")
    return parser
