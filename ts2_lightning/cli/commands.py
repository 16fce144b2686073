"""Every command: its name, where it lives, and one line of help. To add a command, add a line to `COMMANDS`."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        target: `module:function`, imported when the command runs. The function takes the options as a list of
            strings and returns the exit status, or None for 0.
        help: Line of `--help`.
        named: Whether the function takes the command's name before the options (one function for several commands).
    """

    target: str
    help: str
    named: bool = False

    def run(self, name: str, options: list[str]) -> int:
        """Imports the command and runs it."""
        module, function = self.target.split(":")
        with nullcontext() if module in sys.modules else _no_garbage_collection():
            run = getattr(import_module(module), function)
        status: int | None = run(name, options) if self.named else run(options)
        return 0 if status is None else int(status)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Pauses the collection of garbage while modules are imported; later collections leave out what imports made.

    Imports make hundreds of thousands of objects that stay; to look through them again and again takes a third of a
    start.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.freeze()
            gc.enable()


_TRAINER = "ts2_lightning.cli.lightning_cli:run_command"

COMMANDS: dict[str, Command] = {
    "quickstart": Command(
        "ts2_lightning.cli.quickstart:run", "the whole story on a toy world, in minutes, without a download"
    ),
    "fit": Command("ts2_lightning.cli.fit:run", "fine-tune a language model"),
    "validate": Command(_TRAINER, "the metrics of a model or a checkpoint on the validation rows", named=True),
    "test": Command(_TRAINER, "the same on the test rows", named=True),
    "predict": Command(_TRAINER, "per-token statistics of given rows", named=True),
    "data": Command(
        "ts2_lightning.cli.inspect_data:run",
        "the rows of a configuration: statistics, cost, samples",
    ),
    "configs": Command("ts2_lightning.cli.configs:run", "the configurations of the package: listed, shown, copied"),
    "plan": Command("ts2_lightning.cli.plan:run", "memory per GPU and time per step, from a configuration alone"),
    "export": Command("ts2_lightning.cli.export:run", "a checkpoint as a directory that transformers and vLLM load"),
    "export-responses": Command(
        "ts2_lightning.cli.export_responses:run", "sampled responses as files that other evaluation tools read"
    ),
    "probe": Command("ts2_lightning.cli.probe:run", "what trained models think, side by side, in numbers and pictures"),
    "ablate": Command("ts2_lightning.cli.ablate:run", "a grid of runs, its measures and its report, from one file"),
    "measure": Command("ts2_lightning.cli.measure:run", "the measures of runs and models, written beside them"),
    "generate": Command("ts2_lightning.cli.generate:run", "responses of a model to prompts, shared by any processes"),
    "evaluate": Command(
        "ts2_lightning.cli.evaluate:run", "the papers' protocols: what models answer, and how right it is"
    ),
    "compare": Command(
        "ts2_lightning.cli.compare:run", "how models differ, question by question, from what is measured on disk"
    ),
    "judge": Command(
        "ts2_lightning.cli.judge:run",
        "what a judge is worth: its verdicts beside labels of people",
    ),
    "protocols": Command(
        "ts2_lightning.cli.protocols:run", "the protocols: prompt, samples, data, cost and paper of each"
    ),
    "report": Command("ts2_lightning.cli.report:run", "runs side by side: tables over seeds, and pictures"),
    "losses": Command("ts2_lightning.cli.catalogue:run", "the objectives: formula, defaults and paper of each"),
}
