"""The lines of `configs/cluster`: each is parsed, and each way to start is rehearsed with two processes on the CPU."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from socket import socket
from typing import Any

import pytest
import yaml

from tests.e2e.command_line import CONFIGS, ROOT, CommandLine, column, empty_working_directory, make_blank
from ts2_lightning.data.plan import Shape

SHAPES = {"1x4": (1, 4), "1x8": (1, 8), "4x8": (4, 8)}
REHEARSALS = {"1x4": "zero2", "1x8": "fsdp2", "4x8": "zero3"}


def lines_of(shape: str) -> dict[str, list[str]]:
    """`sbatch` and `torchrun` with their words, from the comment of a shape's file."""
    text = (CONFIGS / "cluster" / f"{shape}.yaml").read_text(encoding="utf-8")
    comment = "\n".join(line[1:].strip() for line in text.splitlines() if line.startswith("#"))
    commands = re.findall(r"^(?:sbatch|torchrun)(?:.*\\\n)+.*$", comment, flags=re.MULTILINE)
    words = [shlex.split(command.replace("\\\n", " ")) for command in commands]
    return {command[0]: command for command in words}


def options(words: list[str]) -> dict[str, str]:
    """The options that a launcher is given as `--name=value`."""
    return dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--") and "=" in word)


def of_fit(words: list[str]) -> list[str]:
    """What of a line goes to `fit`."""
    return words[words.index("-c") :]


@pytest.fixture
def ts2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[CommandLine]:
    """The command line, where the configurations' own paths hold."""
    with empty_working_directory(ROOT, tmp_path / "cache"):
        yield CommandLine(capfd, make_blank(tmp_path / "blank"))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_lines_say_what_the_configuration_says(shape: str, ts2: CommandLine) -> None:
    nodes, devices = SHAPES[shape]
    lines = lines_of(shape)
    sbatch, torchrun = options(lines["sbatch"]), options(lines["torchrun"])
    assert (sbatch["nodes"], sbatch["ntasks-per-node"], sbatch["gpus-per-node"]) == (str(nodes), *2 * (str(devices),))
    assert (torchrun.get("nnodes", "1"), torchrun["nproc-per-node"]) == (str(nodes), str(devices))
    assert "configs/cluster/fit.slurm" in lines["sbatch"]
    assert of_fit(lines["sbatch"]) == of_fit(lines["torchrun"])

    answer = ts2("fit", *of_fit(lines["sbatch"]), "--print_config")
    assert answer.status == 0, answer.err
    config: dict[str, Any] = yaml.safe_load(answer.out)
    trainer, data = config["trainer"], config["data"]
    assert (trainer["num_nodes"], trainer["devices"], trainer["accelerator"]) == (nodes, devices, "gpu")
    assert (trainer["precision"], trainer["max_epochs"], data["batch_size"]) == ("bf16-mixed", 3, 128)
    assert config["model"]["loss"]["class_path"].endswith(".TS2Loss")
    world = Shape(data["batch_size"], data["micro_batch_size"], nodes * devices)
    assert world.accumulation * min(world.micro_batch_size * world.world_size, 128) == 128


SRUN = """#!{python}
import os, subprocess, sys

nodes, tasks = int(os.environ["SLURM_NNODES"]), int(os.environ["SLURM_NTASKS_PER_NODE"])
options = ["--kill-on-bad-exit=1", "--cpus-per-task=" + os.environ["SLURM_CPUS_PER_TASK"]]
assert sys.argv[1:3] == options
command = sys.argv[3:]
running = []
for rank in range(nodes * tasks):
    place = {{"SLURM_PROCID": rank, "SLURM_NODEID": rank // tasks, "SLURM_LOCALID": rank % tasks, "SLURM_STEP_ID": 0}}
    surroundings = os.environ | {{name: str(value) for name, value in place.items()}}
    running.append(subprocess.Popen(command, env=surroundings))
sys.exit(max(process.wait() for process in running))
"""


class Rehearsal:
    """Runs a line of `configs/cluster` with a toy model, toy rows and a strategy's rehearsal.

    Args:
        directory: for the model, the cache and the runs.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        blank = str(make_blank(directory / "blank"))
        toy = {
            "model.lm.path": blank, "model.lm.init": "random", "model.lm.dtype": "float32",
            "model.lm.attn_implementation": "auto", "model.schedule.warmup_steps": 0,
            "data.train": "toyworld:train?seed=0", "data.validation": "null", "data.tokenizer": blank,
            "data.template": "auto", "data.format": "auto", "data.limit_train": 16, "data.batch_size": 8,
            "data.micro_batch_size": 2, "trainer.max_epochs": 1, "trainer.precision": "32-true",
            "trainer.log_every_n_steps": 1, "trainer.enable_progress_bar": "false",
            "runs_dir": str(directory / "runs"),
        }  # fmt: skip
        self.overrides = [f"--{key}={value}" for key, value in toy.items()]
        hidden = ("SLURM_", "TORCHELASTIC_", "TS2_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(hidden)} | {
            "PATH": f"{directory}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TS2_CACHE_DIR": str(directory / "cache"),
            "OMP_NUM_THREADS": "1",
            "VIRTUAL_ENV": sys.prefix,
        }

    def options(self, files: list[str], name: str, rehearsal: str | None, nodes: int, devices: int) -> list[str]:
        """What `fit` is given: the line's own files, then what makes them small."""
        overlay = [] if rehearsal is None else ["-c", f"configs/strategy/rehearsal/{rehearsal}.yaml"]
        single = ["--trainer.strategy=auto", "--trainer.accelerator=cpu"] if rehearsal is None else []
        place = [f"--trainer.num_nodes={nodes}", f"--trainer.devices={devices}", f"--name={name}"]
        return [*files, *overlay, *self.overrides, *single, *place]

    def slurm(self, shape: str, nodes: int, tasks: int) -> dict[int, float]:
        """As `sbatch` would start it; `srun` is a stand-in that starts all tasks here."""
        srun = self.directory / "bin" / "srun"
        srun.parent.mkdir(exist_ok=True)
        srun.write_text(SRUN.format(python=sys.executable))
        srun.chmod(0o755)
        name = f"slurm-{shape}"
        given = self.options(of_fit(lines_of(shape)["sbatch"]), name, REHEARSALS[shape], nodes, tasks)
        job = {
            "SLURM_JOB_ID": str(10_000 + nodes), "SLURM_JOB_NAME": "ts2", "SLURM_NNODES": str(nodes),
            "SLURM_NTASKS": str(nodes * tasks), "SLURM_NTASKS_PER_NODE": str(tasks), "SLURM_NODELIST": "127.0.0.1",
            "SLURM_CPUS_PER_TASK": "1",
        }  # fmt: skip
        script = str(CONFIGS / "cluster" / "fit.slurm")
        self._wait([subprocess.Popen(["bash", script, *given], **self._how(job))])
        return self.objectives(name)

    def torchrun(self, shape: str, agents: int, processes: int) -> dict[int, float]:
        """The `torchrun` line, once per node; all nodes are this machine."""
        name = f"torchrun-{shape}"
        words = lines_of(shape)["torchrun"]
        given = self.options(of_fit(words), name, REHEARSALS[shape], agents, processes)
        with socket() as free:
            free.bind(("127.0.0.1", 0))
            endpoint = f"127.0.0.1:{free.getsockname()[1]}"
        small = {"nnodes": agents, "nproc-per-node": processes, "rdzv-endpoint": endpoint, "local-addr": "127.0.0.1"}
        launcher = options(words[: words.index("cli.py")]) | {key: str(value) for key, value in small.items()}
        line = ["torchrun", *(f"--{key}={value}" for key, value in launcher.items()), "cli.py", "fit", *given]
        if agents == 1:
            line.insert(1, "--rdzv-backend=c10d")
        self._wait([subprocess.Popen(line, **self._how({})) for _ in range(agents)])
        return self.objectives(name)

    def alone(self) -> dict[int, float]:
        """The same in one process, with no strategy."""
        given = self.options(of_fit(lines_of("1x4")["sbatch"]), "alone", None, 1, 1)
        self._wait([subprocess.Popen([sys.executable, "cli.py", "fit", *given], **self._how({}))])
        return self.objectives("alone")

    def objectives(self, name: str) -> dict[int, float]:
        """The objective of every step of a run."""
        return column(self.directory / "runs" / name / "1", "train/objective")

    def _how(self, more: dict[str, str]) -> dict[str, Any]:
        return {
            "cwd": ROOT, "env": self.environment | more, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT,
            "text": True,
        }  # fmt: skip

    @staticmethod
    def _wait(processes: "list[subprocess.Popen[str]]") -> None:
        said = [process.communicate(timeout=300)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)[-4000:]


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    return Rehearsal(tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="module")
def alone(rehearsal: Rehearsal) -> dict[int, float]:
    objectives = rehearsal.alone()
    assert list(objectives) == [1, 2]
    return objectives


@pytest.mark.parametrize(
    ("launcher", "shape", "nodes", "devices"),
    [
        pytest.param("slurm", "1x4", 1, 2, marks=pytest.mark.slow),
        pytest.param("torchrun", "4x8", 2, 1, marks=pytest.mark.slow),
        pytest.param("slurm", "4x8", 2, 1, marks=pytest.mark.long),
        pytest.param("torchrun", "1x8", 1, 2, marks=pytest.mark.long),
    ],
)
def test_a_line_is_rehearsed(
    launcher: str, shape: str, nodes: int, devices: int, rehearsal: Rehearsal, alone: dict[int, float]
) -> None:
    """Two nodes are two agents of torchrun, or two tasks with nodes of their own. The numbers are one process's."""
    assert getattr(rehearsal, launcher)(shape, nodes, devices) == pytest.approx(alone, rel=1e-5)
