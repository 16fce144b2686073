"""Tasks of lm-eval as a measure: likelihood tasks of leaderboards, and any that a user describes in YAML."""

import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, ClassVar

from ts2_lightning.evaluation.measure import ASKED, PER_ITEM, Measure, Measured
from ts2_lightning.evaluation.measures import lm_eval_worker
from ts2_lightning.evaluation.model import Model
from ts2_lightning.modules.model_files import FAILURES, check_weight_files
from ts2_lightning.ranges import COUNT, COUNT_OR_ZERO, NULL, check_numbers
from ts2_lightning.runs.stamps import digest
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError
from ts2_lightning.values import Value

_PACKAGE, _INSTALL = "lm_eval", "pip install 'ts2-lightning[lm-eval]'"
_YAML = (".yaml", ".yml")
_WORD = re.compile(r"[^\s'\",\[\]{}]+")


@dataclass(frozen=True)
class LMEval(Measure):
    """Tasks of lm-eval, EleutherAI's language model evaluation harness, on the model as it is exported.

    lm-eval runs in a process of its own. Its values are those of the softmax, whatever the decoding; a task that
    generates text decodes as it says itself.

    Attributes:
        tasks: names of tasks, groups or tags of lm-eval, or of YAML files in `include_path`, or paths of such files.
        include_path: folder of YAML files that describe tasks, which may call Python files beside them.
        limit: use the first so many rows of each task; null takes all.
        num_fewshot: answered rows in front of each question; null takes what each task says, else 0.
        batch_size: rows in one forward pass.
        add_bos_token: whether a row begins with the token that begins texts; null leaves that to the tokenizer. Models
            such as Gemma are far worse without.
        apply_chat_template: whether questions are put as chats, in the model's own template.
    """

    name: ClassVar[str] = "lm_eval"
    titles_with_name: ClassVar[bool] = True
    decoded: ClassVar[bool] = False
    values: ClassVar[tuple[Value, ...]] = (
        Value("acc", "accuracy", "share of rows answered rightly, as the task defines it", "higher", ".3f"),
        Value(
            "acc_norm", "normalised accuracy", "the same, likelihoods divided by the answers' lengths", "higher", ".3f"
        ),
        Value("exact_match", "exact match", "share of rows with the right answer", "higher", ".3f"),
        Value("f1", "F1", "", "higher", ".3f"),
        Value("mcc", "Matthews correlation", "", "higher", ".3f"),
        Value("perplexity", "perplexity", "", "lower", ".3f"),
        Value("word_perplexity", "perplexity of words", "", "lower", ".3f"),
        Value("byte_perplexity", "perplexity of bytes", "", "lower", ".3f"),
        Value("bits_per_byte", "bits a byte", "", "lower", ".3f"),
        Value("rows", "rows", "rows that were asked", None, ".0f"),
        *(
            Value(f"{name}_stderr", f"standard error of {title}", "", None, ".3f")
            for name, title in (
                ("acc", "accuracy"),
                ("acc_norm", "normalised accuracy"),
                ("exact_match", "exact match"),
            )
        ),
    )
    note: ClassVar[str] = "Values of lm-eval are called lm_eval/TASK/METRIC, or lm_eval/TASK@FILTER/METRIC."

    tasks: tuple[str, ...] = ()
    include_path: str | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int = 8
    add_bos_token: bool | None = None
    apply_chat_template: bool = False

    def check(self) -> None:
        """Raises UserError for a number out of its range, no task, or a folder that is not there."""
        check_numbers("", self, limit=(COUNT, NULL), num_fewshot=(COUNT_OR_ZERO, NULL), batch_size=COUNT)
        if not self.tasks:
            raise UserError("tasks: name one or more tasks of lm-eval, such as [arc_challenge]")
        if self.include_path is not None and not Path(self.include_path).expanduser().is_dir():
            raise UserError(f"include_path: no folder {self.include_path}")

    def plain_settings(self) -> dict[str, Any]:
        """The settings as plain values, without the number of rows at a time."""
        plain = super().plain_settings()
        del plain["batch_size"]
        return {**plain, "tasks": list(self.tasks)}

    def inputs(self, model: Model) -> Any:
        """The version of lm-eval, and the files of the user's tasks with those that they name, by their content."""
        return [_version(), sorted(digest(file.read_bytes().hex()) for file in self._files())]

    def check_model(self, model: Model) -> None:
        """Raises UserError for a task that cannot be asked: before the model is loaded, not after."""
        if (version := _version()) is None:
            raise UserError(f"lm_eval needs the package lm-eval: {_INSTALL}")
        if _numbers(version) < (0, 4, 13):
            raise UserError(f"lm_eval needs lm-eval 0.4.13 or later, got {version}: {_INSTALL}")
        try:
            check_weight_files(model.place)
        except FAILURES as error:
            raise UserError(f"{model.name}: lm-eval cannot load this model ({error})") from error
        with TemporaryDirectory() as directory:
            self._run({"what": "check"}, Path(directory) / "lm_eval.log", keep_log=False)

    def measure(self, model: Model, beside: Path) -> Measured:
        """Every metric of every task as `TASK/METRIC`, of one with a filter as `TASK@FILTER/METRIC`, and `TASK/rows`.

        Documents: `lm_eval`, its version; `tasks`, for each its version, the number of answered rows in front of a
        question, of rows asked, of rows there are, and for which metrics more is better; `per_item`, the numbers of
        single rows by their places, and `asked`, what tells these rows apart. What lm-eval says is in BESIDE.log.
        """
        wanted = {
            "what": "measure",
            "model": {
                "pretrained": model.place,
                "dtype": "float32" if model.device.startswith("cpu") else "auto",
                "trust_remote_code": False,
                "use_safetensors": True,
                **({} if self.add_bos_token is None else {"add_bos_token": self.add_bos_token}),
            },
            "device": model.device,
        }
        answer = self._run(wanted, beside.with_suffix(".log"))
        values: dict[str, float] = {}
        for task, of_task in answer["tasks"].items():
            values |= {_value_name(task, metric): value for metric, value in of_task["metrics"].items()}
            if of_task["rows"] is not None:
                values[f"{task}/rows"] = of_task["rows"]
        tasks = {
            task: {name: value for name, value in of_task.items() if name != "metrics"}
            for task, of_task in answer["tasks"].items()
        }
        per_item, asked = {}, {}
        for key, rows in answer["per_item"].items():
            task, metric = key.split("|", 1)
            per_item[name := _value_name(task, metric)] = rows
            asked[name.rpartition("/")[0]] = answer["asked"][task]
        return Measured(values, {"lm_eval": answer["lm_eval"], "tasks": tasks, PER_ITEM: per_item, ASKED: asked})

    def _files(self) -> list[Path]:
        """The files that describe the user's tasks, and those with their rows."""
        named = [Path(name) for name in self.tasks if name.endswith(_YAML)]
        inside = [] if self.include_path is None else Path(self.include_path).expanduser().rglob("*")
        described = {file.resolve() for file in [*named, *inside] if file.is_file()}
        texts = [file for file in described if file.suffix in _YAML]
        words = {word for file in texts for word in _WORD.findall(file.read_text(encoding="utf-8", errors="replace"))}
        return sorted(described | {Path(word).resolve() for word in words if _is_file(word)})

    def _run(self, wanted: Mapping[str, Any], log: Path, keep_log: bool = True) -> dict[str, Any]:
        """What the worker answers.

        Raises:
            UserError: in one line, why it has none.
        """
        folder = None if self.include_path is None else str(Path(self.include_path).expanduser())
        asked = {**self.plain_settings(), "batch_size": self.batch_size, "include_path": folder, **wanted}
        log.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory() as directory, log.open("wb") as stream:
            file = Path(directory) / "answer.json"
            status = _work(asked, file, stream)
            answer = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        if answer is None:
            said = _last_line(log)
            ended = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
            where = f"; {log} has all it said" if keep_log else ""
            raise UserError(f"lm_eval: lm-eval {ended}{f' ({said})' if said else ''}{where}")
        if "error" in answer:
            raise UserError(_refusal(answer))
        return dict(answer)


def _work(asked: Mapping[str, Any], file: Path, log: IO[bytes]) -> int:
    """Has the worker write its answer to a file. Returns its status."""
    command = [sys.executable, "-P", str(Path(lm_eval_worker.__file__)), str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT) as worker:
        assert worker.stdin is not None
        try:
            worker.stdin.write(json.dumps(asked).encode() + b"\n")
            worker.stdin.flush()  # left open: when this process is gone, the worker ends as well
            return worker.wait()
        except BaseException:
            worker.kill()
            raise


def _refusal(answer: Mapping[str, Any]) -> str:
    task, reason = answer["task"], answer.get("reason")
    if answer["error"] == "unknown":
        hint = did_you_mean(task, answer["names"]) or "; `lm-eval ls tasks` lists them"
        return f"lm_eval.tasks: no task {task!r}{hint}"
    if answer["error"] == "hub":
        return (
            f"lm_eval.tasks: the rows of {task} are on the hub, which cannot be reached ({reason}); load them once "
            "where it can be, or describe a task with rows of your own in a YAML file in include_path"
        )
    if answer["error"] == "unsafe":
        return f"lm_eval.tasks: {task} runs generated code without a sandbox; the protocol humaneval has one"
    return f"lm_eval.tasks: {task}: {reason}"


def _value_name(task: str, metric: str) -> str:
    """`TASK/METRIC`, or `TASK@FILTER/METRIC`.

    >>> _value_name("gsm8k", "exact_match,strict-match"), _value_name("arc_easy", "acc")
    ('gsm8k@strict-match/exact_match', 'arc_easy/acc')
    """
    metric, _, by_filter = metric.partition(",")
    return f"{task}{f'@{by_filter}' if by_filter else ''}/{metric}"


def _version() -> str | None:
    if importlib.util.find_spec(_PACKAGE) is None:
        return None
    return importlib.metadata.version(_PACKAGE)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except (OSError, ValueError):  # too long to be a name, say
        return False


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")
