"""`quickstart`: what cross-entropy and TS2 do to the same model, on a world whose plausible answers are known."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from textwrap import wrap

import yaml
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ts2_lightning.cli import main
from ts2_lightning.cli.terminal import OptionParser, put, quieten
from ts2_lightning.evaluation import Model, check_spec, make_measures
from ts2_lightning.evaluation.picture import draw_next_token
from ts2_lightning.program import program
from ts2_lightning.ranges import SEED, check_numbers
from ts2_lightning.runs.directory import numbers
from ts2_lightning.runs.stamps import file_stamps
from ts2_lightning.runs.writing import write_whole
from ts2_lightning.shipped_configs import shipped_config
from ts2_lightning.studies.names import slug
from ts2_lightning.studies.report import Results, Row, Run
from ts2_lightning.studies.report.tables import plain, results_table
from ts2_lightning.toyworld import load_world
from ts2_lightning.toyworld.base import ensure_base
from ts2_lightning.toyworld.domain import text_template
from ts2_lightning.toyworld.exact import LEGEND, Style, next_token_log_probabilities, plausible_first_tokens
from ts2_lightning.toyworld.world import Family, World

CONFIG = shipped_config("experiment/quickstart.yaml")
BASE = "base"
PICTURED = (BASE, "CE", "TS2")
COLUMNS = tuple(
    f"toyworld/{name}"
    for name in (
        "seen/format_t1", "accuracy", "seen/validity_t1", "seen/distinct_t1", "seen/distinct_papers",
        "seen/outside_plausible", "seen/support_size", "seen/tail_mass", "seen/entropy",
    )
)  # fmt: skip
WIDTH = 80
"""Characters of a line of the table: it is also a file, the same whatever the terminal."""

_MARKS = "↑ more is better, ↓ less is; *: the best of a column, of one seed: any difference may be chance."


def run(argv: Sequence[str]) -> int:
    """Trains, compares, prints a table and draws a picture. Every number is made in this run.

    Args:
        argv: the options after the command, see `--help`.

    Returns:
        The exit status: that of the first fit that failed, else 0.
    """
    options = _parser().parse_args(argv)
    check_numbers("--", options, seed=SEED)
    quieten("quickstart")
    base = ensure_base()
    runs: dict[str, Path] = {}
    for label, extra in fits().items():
        name = f"quickstart-{slug(label)}"
        status = fit(label, name, extra, options.runs_dir, options.seed)
        if status:
            return status
        runs[label] = latest_export(name, options.runs_dir).parent
    compare(base, runs, Path(options.runs_dir) / "quickstart", options.seed)
    return 0


def fits() -> dict[str, list[str]]:
    """The fits that are compared: label -> what is overridden in the quickstart's configuration."""
    rate = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["model"]["optimizer"]["lr"]
    cross_entropy = ["--model.loss", "CrossEntropyLoss"]
    return {
        "CE": cross_entropy,
        # A gentler fit also keeps diversity: objectives are compared at the same rate, each at two.
        "CE, half rate": [*cross_entropy, "--model.optimizer.lr", str(rate / 2)],
        "TS2": [],
        "TS2, half rate": ["--model.optimizer.lr", str(rate / 2)],
    }


def compare(base: Path, runs: Mapping[str, Path], out: Path, seed: int) -> None:
    """Measures every model, each measure once, and writes `table.txt` and `next_token.png` into `out`.

    Args:
        base: directory of the toy world's base model; what is measured of it is kept in `out/base`.
        runs: label -> a run that has exported its model; what is measured of it is kept in the run.
        out: directory, made if need be.
        seed: seed of the runs.
    """
    world = load_world()
    family = next(family for family in world.seen if len(family.taught) == 2)
    request = family.held_out[0]
    spec = check_spec({"toyworld": {}})
    rows: list[Row] = []
    distributions: dict[str, Tensor] = {}
    print()
    transformers_logging.disable_progress_bar()  # one bar over the models is enough
    models = _models(base, runs, out)
    for label, model in tqdm(models.items(), desc="Measuring", unit=" models"):
        values = make_measures(model, spec, say=lambda _: None)
        measured = Run(label, model.out, seed, values, settings={"toyworld": {}})
        rows.append(Row(label, {}, (measured,), is_base=label == BASE))
        if label in PICTURED:
            style: Style = "text" if model.is_asked_in_text else "chat"
            log_probabilities = next_token_log_probabilities(model.network, model.tokenizer, world, request, style)
            distributions[label] = log_probabilities.exp()
    shown = plain(results_table(Results("Quickstart", "", (), tuple(rows), {}), COLUMNS), WIDTH)
    table = "\n".join([shown, "", *wrap(LEGEND, WIDTH), *wrap(_MARKS, WIDTH)])
    write_whole(out / "table.txt", lambda beside: beside.write_text(table + "\n", encoding="utf-8"))
    picture = _draw(out / "next_token.png", distributions, models[BASE].tokenizer, world, family, request)
    put(f"\n{table}\n\nPicture:     {picture}\nReport:      {program()} report '{out}*'")


def _models(base: Path, runs: Mapping[str, Path], out: Path) -> dict[str, Model]:
    """What is measured, by label: the base is asked in plain text, the others in chat. They keep their values."""
    models = {BASE: Model(BASE, file_stamps(base), partial(str, base), out / BASE, text_template=text_template)}
    for label, run in runs.items():
        export = run / "export"
        models[label] = Model(label, file_stamps(export), partial(str, export), run, run)
    return models


def fit(label: str, name: str, extra: Sequence[str], runs_dir: str | Path = "runs", seed: int = 0) -> int:
    """Runs the quickstart's experiment once, and says so.

    Args:
        label: what the fit is called on the screen.
        name: name of the run; its directory is the next free one below `RUNS_DIR/NAME`.
        extra: options that override the quickstart's configuration.
        runs_dir: directory of all runs.
        seed: seed of the training rows, of their order, and of what is random in the training itself.

    Returns:
        The exit status of `fit`.
    """
    options = list(extra)
    if seed:  # 0 is what the configuration has
        options += ["--seed_everything", str(seed), "--data.seed", str(seed)]
        options += ["--data.train", f"toyworld:train?seed={seed}"]
    print(f"\n== {label}: {program()} fit -c {nearer(CONFIG)} {' '.join(options)}".rstrip(), flush=True)
    return main(["fit", "-c", str(CONFIG), "--name", name, "--runs_dir", str(runs_dir), *options])


def latest_export(name: str, runs_dir: str | Path = "runs") -> Path:
    """Where the newest run of a name exports its model; `RUNS_DIR/NAME/0/export`, which never exists, without a run."""
    runs = Path(runs_dir) / name
    return runs / str(max(numbers(runs), default=0)) / "export"


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


def _parser() -> OptionParser:
    about = "Fine-tune the toy world's base model with CE and TS2, each at two learning rates; compare."
    parser = OptionParser("quickstart", about)
    parser.add_argument("--seed", type=int, default=0, help="of the training rows and their order (default: 0)")
    parser.add_argument("--runs_dir", default="runs", help="directory of all runs (default: runs)")
    return parser
