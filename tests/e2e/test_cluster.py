"""The lines of `configs/cluster`: each is parsed, and each way to start is rehearsed with two processes on the CPU."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from socket import socket
from typing import Any

import pytest
import yaml

from tests.e2e import stand_in_slurm
from tests.e2e.command_line import CONFIGS, ROOT, CommandLine, column, empty_working_directory, make_blank
from tests.support.namespaces import Node, two_nodes
from ts2_lightning.cli import main
from ts2_lightning.data.batch_plan import StepShape
from ts2_lightning.planning import WARNING_SECONDS
from ts2_lightning.runs.state import read_state

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

    answer = ts2("fit", *of_fit(lines["sbatch"]), "--print_config").done()
    config: dict[str, Any] = yaml.safe_load(answer.out)
    trainer, data = config["trainer"], config["data"]
    assert (trainer["num_nodes"], trainer["devices"], trainer["accelerator"]) == (nodes, devices, "gpu")
    assert (trainer["precision"], trainer["max_epochs"], data["batch_size"]) == ("bf16-mixed", 3, 128)
    assert config["model"]["loss"]["class_path"].endswith(".TS2Loss")
    world = StepShape(data["batch_size"], data["micro_batch_size"], nodes * devices)
    assert world.accumulation * min(world.micro_batch_size * world.world_size, 128) == 128


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
            "STAND_IN_SLURM": str(directory),
        }
        stand_in_slurm.install(directory / "bin")

    def options(self, files: list[str], name: str, rehearsal: str | None, nodes: int, devices: int) -> list[str]:
        """What `fit` is given: the line's own files, then what makes them small."""
        overlay = [] if rehearsal is None else ["-c", f"configs/strategy/rehearsal/{rehearsal}.yaml"]
        single = ["--trainer.strategy=auto", "--trainer.accelerator=cpu"] if rehearsal is None else []
        place = [f"--trainer.num_nodes={nodes}", f"--trainer.devices={devices}", f"--name={name}"]
        return [*files, *overlay, *self.overrides, *single, *place]

    def slurm(self, shape: str, nodes: int, tasks: int) -> dict[int, float]:
        """As `sbatch` would start it; `srun` is a stand-in that starts all tasks here."""
        name = f"slurm-{shape}"
        self._wait([self.job(name, shape, nodes, tasks)])
        assert (self.directory / "srun.txt").read_text() == "--kill-on-bad-exit=1 --cpus-per-task=1"
        return self.objectives(name)

    def job(
        self, name: str, shape: str, nodes: int, tasks: int, *options: str, **variables: object
    ) -> "subprocess.Popen[str]":
        """What SLURM starts as a job, or starts again."""
        given = self.options(of_fit(lines_of(shape)["sbatch"]), name, REHEARSALS[shape], nodes, tasks)
        place = {
            "SLURM_JOB_ID": 10_000 + nodes, "SLURM_JOB_NAME": "ts2", "SLURM_NNODES": nodes,
            "SLURM_NTASKS": nodes * tasks, "SLURM_NTASKS_PER_NODE": tasks, "SLURM_NODELIST": "127.0.0.1",
            "SLURM_CPUS_PER_TASK": 1, **variables,
        }  # fmt: skip
        how = self._how({name: str(value) for name, value in place.items()})
        return subprocess.Popen(["bash", str(CONFIGS / "cluster" / "fit.slurm"), *given, *options], **how)

    def torchrun(self, shape: str, agents: int, processes: int) -> dict[int, float]:
        """The `torchrun` line, once per node; all nodes are this machine."""
        name = f"torchrun-{shape}"
        given = self.options(of_fit(lines_of(shape)["torchrun"]), name, REHEARSALS[shape], agents, processes)
        with socket() as free:
            free.bind(("127.0.0.1", 0))
            endpoint = f"127.0.0.1:{free.getsockname()[1]}"
        small = {"nnodes": agents, "nproc-per-node": processes, "rdzv-endpoint": endpoint, "local-addr": "127.0.0.1"}
        line = self._torchrun_line(shape, small, given)
        if agents == 1:
            line.insert(1, "--rdzv-backend=c10d")
        self._wait([subprocess.Popen(line, **self._how({})) for _ in range(agents)])
        return self.objectives(name)

    def nodes(self, nodes: list[Node]) -> dict[int, float]:
        """The `torchrun` line on nodes with a network between them, a process on each, sharded inside the nodes."""
        given = self.options(of_fit(lines_of("4x8")["torchrun"]), "nodes", "fsdp2_hybrid", len(nodes), 1)
        lines = []
        for node in nodes:
            # The name of this machine says nothing of the addresses of its namespaces.
            place = {"local-addr": node.address, "rdzv-conf": f"is_host={node is nodes[0]}".lower()}
            place["rdzv-endpoint"] = f"{nodes[0].address}:29500"
            small = {"nnodes": len(nodes), "nproc-per-node": 1, **place}
            lines.append(self._torchrun_line("4x8", small, [*given, "--trainer.strategy.shard_size=node"]))
        self._wait(
            [
                subprocess.Popen([*node.enter, *line], **self._how({"GLOO_SOCKET_IFNAME": node.card}))
                for node, line in zip(nodes, lines, strict=True)
            ]
        )
        return self.objectives("nodes")

    @staticmethod
    def _torchrun_line(shape: str, small: Mapping[str, object], given: list[str]) -> list[str]:
        words = lines_of(shape)["torchrun"]
        launcher = options(words[: words.index("cli.py")]) | {key: str(value) for key, value in small.items()}
        return ["torchrun", *(f"--{key}={value}" for key, value in launcher.items()), "cli.py", "fit", *given]

    def alone(self, *options: str) -> dict[int, float]:
        """The same in this process, with no strategy."""
        given = self.options(of_fit(lines_of("1x4")["sbatch"]), "alone", None, 1, 1)
        with empty_working_directory(ROOT, self.directory / "cache"):
            assert main(["fit", *given, *options]) == 0
        return self.objectives("alone")

    def objectives(self, name: str) -> dict[int, float]:
        """The objective of every step of a run."""
        return column(self.directory / "runs" / name / "1", "train/objective")

    def step(self, name: str) -> int:
        """How many steps of a run are done."""
        return int((read_state(self.directory / "runs" / name / "1") or {"step": 0})["step"])

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


@pytest.mark.slow
def test_two_nodes_with_a_network_between_them(rehearsal: Rehearsal, alone: dict[int, float]) -> None:
    """Nodes that see nothing of each other but one network card, as two machines do. The numbers are one process's."""
    with two_nodes() as nodes:
        assert rehearsal.nodes(nodes) == pytest.approx(alone, rel=1e-5)


STEPS = 60
LONGER = (f"--data.limit_train={8 * STEPS}", "--trainer.callbacks+=Checkpoints")


@pytest.mark.slow
def test_a_job_that_is_preempted_and_later_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preempted job saves in its grace time and runs again; one that is cancelled saves, ends and stays so, until
    somebody resumes it. In the end it is the run that nobody has stopped.
    """
    rehearsal, job = Rehearsal(tmp_path), "10001"
    monkeypatch.setenv("STAND_IN_SLURM", str(tmp_path))

    def stopped(trouble: Callable[[], None], steps: int, *options: str, **variables: object) -> str:
        stand_in_slurm.write_job(job, state=["RUNNING"], preempted=False)
        before = rehearsal.step("preempted")
        process = rehearsal.job("preempted", "1x8", 1, 2, *LONGER, *options, **variables)
        while rehearsal.step("preempted") < before + steps:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        trouble()
        said = process.communicate(timeout=120)[0]
        assert process.returncode, said  # which it is does not matter: what is left of a job is killed by SIGTERM
        assert before + steps <= rehearsal.step("preempted") < STEPS, said
        return said

    said = stopped(lambda: stand_in_slurm.preempt(job, "CANCEL", grace=True), 3)
    run = "preempted/1"
    assert "stopped by SIGTERM: SLURM has queued the job again, and it will go on by itself in " in said
    assert (stand_in_slurm.read_job(job)["state"][0], stand_in_slurm.read_job(job)["restarts"]) == ("PENDING", 1)
    said = stopped(lambda: stand_in_slurm.scancel(job), 3, SLURM_RESTART_COUNT=1)
    assert f"{run}/checkpoints/last.ckpt; resume with: " in said
    assert (stand_in_slurm.read_job(job)["state"][0], stand_in_slurm.read_job(job)["restarts"]) == ("CANCELLED", 1)
    rehearsal._wait([rehearsal.job("preempted", "1x8", 1, 2, *LONGER, "--ckpt_path=last", SLURM_JOB_ID=10_002)])
    assert [place.name for place in (tmp_path / "runs" / "preempted").iterdir()] == ["1"]
    objectives = rehearsal.objectives("preempted")
    assert list(objectives) == list(range(1, STEPS + 1))
    assert objectives == pytest.approx(rehearsal.alone(*LONGER), rel=1e-4)


def test_the_time_to_save_can_be_set() -> None:
    """The script has a default, which sbatch takes from its command line or from SBATCH_SIGNAL if they are there."""
    script = (CONFIGS / "cluster" / "fit.slurm").read_text(encoding="utf-8")
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, flags=re.MULTILINE))
    assert options["signal"] == f"USR1@{WARNING_SECONDS}"
    assert options["mem"] == "0"
    assert "requeue" in options
