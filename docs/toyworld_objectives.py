"""Writes the table of docs/objectives.md from the runs of its grid.

python cli.py ablate -c configs/grid/toyworld/objectives.yaml   # 63 fits and their measures
python docs/toyworld_objectives.py                              # or with the grid's directory, elsewhere than runs/
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from ts2_lightning.studies.report import collect, complete_settings
from ts2_lightning.studies.report.markdown import seeds_said
from ts2_lightning.studies.report.tables import markdown, results_table
from ts2_lightning.types import UserError

DOCUMENT = Path(__file__).with_name("objectives.md")
BEGIN, END = "<!-- toy world: begin -->", "<!-- toy world: end -->"
RUNS = "runs/toyworld-objectives"


def main(argv: Sequence[str], document: Path = DOCUMENT) -> int:
    """Puts the table of a grid's runs into the document. Nothing is trained or measured here."""
    results = complete_settings(collect(argv or [RUNS]))
    if results.missing:
        raise UserError(f"{results.missing[0].name}: {results.missing[0].reason}")
    insert(document, f"{markdown(results_table(results, results.settings.columns))}\n\n{seeds_said(results)}")
    return 0


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


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
