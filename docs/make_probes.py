"""Makes the pictures of docs/probes: base, CE, GEM, TOFU and TS2 on the toy world, through every probe.

    python docs/make_probes.py

It fine-tunes the toy world's base model with the quickstart's settings (about 20 s a fit on a CPU core), once more with
CE at half the learning rate, which also keeps diversity, and then gives the command that is printed. A fit that has
exported its model is not run again.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ts2_lightning.cli import main as command_line
from ts2_lightning.cli.quickstart import fit, fits, latest_export, nearer
from ts2_lightning.shipped_configs import shipped_config
from ts2_lightning.studies.names import slug

OUT = Path(__file__).with_name("probes")
OBJECTIVES = {"GEM": "gem", "TOFU": "tofu"}
"""Label -> stem of a fragment in `configs/loss`, of those that the quickstart does not fit."""

SETTINGS = ["--samples", "4", "--max_new_tokens", "12", "--batch_size", "64"]


def main(argv: Sequence[str] | None = None) -> int:
    """Fits what is missing, and probes all."""
    options = _parser().parse_args(argv)
    models = {"base": "toyworld"}
    for label, extra in all_fits().items():
        name = f"probes/{slug(label)}"
        if not latest_export(name, options.runs_dir).is_dir():
            status = fit(label, name, extra, options.runs_dir)
            if status:
                return status
        models[label] = str(nearer(latest_export(name, options.runs_dir)))
    named = [word for label, path in models.items() for word in ("--model", f"{label}={path}")]
    command = ["probe", "all", *named, *SETTINGS, "--out", str(nearer(OUT))]
    print(f"\npython cli.py {shlex.join(command)}", flush=True)
    return command_line(command)


def all_fits() -> dict[str, list[str]]:
    """Label -> what is overridden in the quickstart's configuration: its own fits, and `OBJECTIVES` before TS2."""
    ours = {
        label: ["--model.loss", str(nearer(shipped_config(f"loss/{stem}.yaml")))] for label, stem in OBJECTIVES.items()
    }
    theirs = fits()
    return {label: extra for label, extra in theirs.items() if label != "TS2"} | ours | {"TS2": theirs["TS2"]}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python docs/make_probes.py", description="Makes the pictures of docs/probes."
    )
    parser.add_argument("--runs_dir", default="runs", help="directory of all runs (default: runs)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
