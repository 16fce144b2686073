"""`evaluate`: models under the papers' protocols: responses, scores and values, a table and pictures."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from ts2_lightning.cli.asked_models import EVALUATION, AskedModels, add_model_options
from ts2_lightning.cli.backend_options import add_endpoint_options
from ts2_lightning.cli.explore_options import add_explore, explored
from ts2_lightning.cli.generation_plan import add_plan_options, check_plan, parts_of, plan_text
from ts2_lightning.cli.judge_options import add_judge_options, judges_of, max_cost
from ts2_lightning.cli.model_places import add_device, begin
from ts2_lightning.cli.protocol_options import add_protocol_options, add_sampling_options, protocol_help, spec_of
from ts2_lightning.cli.terminal import OptionParser, put
from ts2_lightning.evaluation import Model, Spec, files_of, make_measures
from ts2_lightning.evaluation.judges import spending_limit
from ts2_lightning.evaluation.protocols import Protocol
from ts2_lightning.evaluation.protocols.pictures import draw_all
from ts2_lightning.evaluation.protocols.sections import ProtocolExplorer, text_sections, value_sections
from ts2_lightning.evaluation.protocols.tables import Evaluated, as_csv, as_markdown, as_text, remarks
from ts2_lightning.evaluation.results import read_result
from ts2_lightning.pages import PAGE, Page
from ts2_lightning.runs.writing import write_whole

_ABOUT = """Asks models the questions of protocols, scores what they respond, and shows the values side by side. What is
there is not made again: responses in DIR/responses, scores in DIR/scores, values in DIR/measures; DIR is the run or,
for another model, a directory below --out. An evaluation that was killed goes on; several may work on the same one."""


def run(argv: Sequence[str]) -> int:
    """Evaluates models.

    Args:
        argv: the options after the command, see `--help`.

    Returns:
        The exit status, 0.

    Raises:
        UserError: no such model, protocol or file, or a setting that cannot be.
    """
    options = _parser().parse_args(argv)
    begin("evaluate", options.device, options.out)
    check_plan(options)
    spec = spec_of(options)
    out = Path(options.out)
    count, loads = explored(options)
    evaluated: list[Evaluated] = []
    limit = spending_limit(max_cost(options, judges_of(spec)))
    with tempfile.TemporaryDirectory(prefix="ts2-evaluate-") as scratch, limit:
        models = AskedModels(options, Path(scratch), out).models()
        asked = [measure for measure in spec.measures if isinstance(measure, Protocol)]
        if options.plan:
            put(
                "\n\n".join(
                    plan_text(model, parts_of(model, asked), options.gpu, options.processes or 1) for model in models
                )
            )
            return 0
        explorer = ProtocolExplorer(asked, count, put)
        for model in models:
            put(f"== {model.name}")
            make_measures(model, spec, put, draw=False)
            explorer.listen(model, loads)
            model.forget()
            evaluated.append(_read(model, spec))
        written = _write(evaluated, out, asked)
        sections = [*value_sections(evaluated), *text_sections(models, asked), *explorer.sections()]
        page = Page(", ".join(measure.name for measure in asked), sections, remarks(evaluated, asked))
        written.insert(0, page.write(out / PAGE).name)
    put(f"\n{out}: {', '.join(written)}")
    for model in models:
        put(f"{model.out}: responses, scores and values of {model.title}")
    return 0


def _read(model: Model, spec: Spec) -> Evaluated:
    """What is on disk now of what was asked for."""
    results = {name: read_result(file) for name, file in files_of(model.out, spec).items()}
    return Evaluated(model.title, results)


def _write(evaluated: Sequence[Evaluated], out: Path, asked: Sequence[Protocol]) -> list[str]:
    """Prints the table, and writes it beside the pictures. Returns the names of the files that people look at."""
    below = remarks(evaluated, asked)
    put("\n".join(["", as_text(evaluated), "", *below]))
    for name, text in (("table.csv", as_csv(evaluated)), ("table.md", as_markdown(evaluated, below))):
        write_whole(out / name, lambda beside, text=text: beside.write_text(text, encoding="utf-8"))  # type: ignore[misc]
    pictures = draw_all(evaluated, out)
    return ["table.csv", "table.md", *(path.name for path in pictures if path.suffix == ".png")]


def _parser() -> OptionParser:
    parser = OptionParser("evaluate", _ABOUT)
    add_model_options(parser)
    parser.add_argument("--protocol", required=True, metavar="NAME,...", help=protocol_help())
    add_protocol_options(parser)
    add_sampling_options(parser, {"limit": "all", "seed": "0", "batch_size": "64"})
    add_judge_options(parser)
    parser.add_argument("--run_code", action="store_true", help="let protocols run the code that models write")
    parser.add_argument("--sandbox", metavar="NAME", help="where that code runs")
    parser.add_argument("--i_know_what_i_run", action="store_true", help="with --sandbox none: it keeps nothing in")
    add_explore(parser, "questions of each protocol")
    add_plan_options(parser)
    parser.add_argument("--out", default=EVALUATION, metavar="DIR", help=f"table and pictures (default: {EVALUATION})")
    add_endpoint_options(parser)
    add_device(parser)
    return parser
