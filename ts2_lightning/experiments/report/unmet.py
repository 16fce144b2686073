"""What somebody wants shown and no run has: it is said, not passed over."""

from ts2_lightning.experiments.measures.columns import COLUMNS
from ts2_lightning.experiments.report.results import Missing, Results
from ts2_lightning.suggestions import did_you_mean


def unmet(results: Results) -> tuple[Missing, ...]:
    """The values of columns and pictures that are asked for and that no run has; none where no run has any value."""
    wanted = results.settings
    values = [*wanted.columns, *(name for plane in wanted.planes for name in plane)]
    values += [name for names in (wanted.against or {}).values() for name in names]
    logged = list(dict.fromkeys(name for run in results.runs for name in run.curves))
    there = results.names
    lacking = [(name, there) for name in values if name not in there]
    lacking += [(name, logged) for name in wanted.curves if name not in logged]
    if not there:
        return ()
    return tuple(Missing(name, "", _why(name, known, results)) for name, known in dict(lacking).items())


def _why(name: str, known: list[str], results: Results) -> str:
    made = {measure for row in results.rows for run in row.runs for measure in run.settings}
    if name not in COLUMNS:
        return f"not measured{did_you_mean(name, known)}"
    return "not measured, or not defined" if name.partition("/")[0] in made else "not measured"
