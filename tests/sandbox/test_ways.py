"""The ways to start servers: what each command line has, and that programs run behind it."""

import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from tests.sandbox.attacks import ENVIRONMENT
from tests.sandbox.support import SETTINGS
from ts2_lightning.sandbox import Program, Sandbox, SandboxSettings, run_programs, ways
from ts2_lightning.types import UserError

BASICS = [
    Program("right", "assert 1 + 1 == 2"),
    Program("wrong", "assert 1 + 1 == 3"),
    Program("long", "while 1: pass", 0.3),
]
OUTCOMES = {"right": "passed", "wrong": "failed", "long": "timeout"}


def outcomes(settings: SandboxSettings) -> dict[str, str]:
    return {verdict.key: verdict.outcome for verdict in run_programs(BASICS, settings)}


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"run_code": False}, "--run_code is needed to run programs that a model wrote; "),
        ({"run_code": False, "sandbox": "none", "i_know_what_i_run": True}, "--run_code is needed"),
        ({"sandbox": "none"}, "--sandbox none runs programs .* with all your rights; .* --i_know_what_i_run"),
    ],
)
def test_nothing_runs_that_was_not_asked_for(changes: dict, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    settings = replace(SETTINGS, **changes)
    for run in (settings.check, lambda: Sandbox(settings), lambda: list(run_programs(BASICS, settings))):
        with pytest.raises(UserError, match=wrong):
            run()


@pytest.mark.parametrize("way", ["", "Auto", "docker", "docker:", "bwrap:x", "none:", "podman:x", "auto:1"])
def test_other_ways_are_refused(way: str) -> None:
    with pytest.raises(UserError, match="--sandbox must be one of auto, bwrap, docker:IMAGE, none, got"):
        SandboxSettings(sandbox=way)


def test_none_is_limits_and_time_alone() -> None:
    settings = replace(SETTINGS, sandbox="none", i_know_what_i_run=True)
    with Sandbox(settings) as sandbox:
        assert sandbox.layers == ("limits",)
        assert {verdict.key: verdict.outcome for verdict in sandbox.run(BASICS)} == OUTCOMES
        programs = [
            Program("socket", "import socket; socket.socket().close()"),
            Program("memory", "bytearray(1 << 30)"),
            Program("child", "import os\nif os.fork() == 0:\n  while True: pass\nos.wait()", 0.5),
            Program("environment", "import os; assert 'HOME' not in os.environ"),
        ]
        verdicts = {verdict.key: f"{verdict.outcome} {verdict.reason}" for verdict in sandbox.run(programs)}
        assert verdicts == {
            "socket": "passed ", "memory": "failed MemoryError", "child": "timeout ", "environment": "passed "
        }  # fmt: skip
        (server,) = psutil.Process().children()
        assert server.children(recursive=True) == []  # the child's child went with it


def test_bwrap_is_told_to_keep_all_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
    line = ways.command_line(replace(SETTINGS, sandbox="bwrap"))
    assert line[0] == "/usr/bin/bwrap"
    before, after = line[: line.index("--")], line[line.index("--") + 1 :]
    assert {"--unshare-all", "--die-with-parent", "--new-session", "--remount-ro"} <= {*before}
    assert before[before.index("--cap-drop") + 1] == "ALL"
    assert not {"--bind", "--bind-try", "--dev-bind", "--share-net"} & {*before}
    places = [before[index + 1] for index, word in enumerate(before) if word == "--ro-bind-try"]
    assert not {"/", "/home", "/root", "/etc", "/tmp", "/var", os.path.expanduser("~")} & {*places}
    assert any(Path(after[0]).is_relative_to(place) for place in places), "the interpreter is to be seen in there"
    assert after[1:4] == ["-s", "-S", "-c"]


@pytest.mark.parametrize("packages", [(), ("numpy",)])
def test_bwrap(packages: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TS2_SECRET", "secret")
    if shutil.which("bwrap") is None:
        pytest.skip("needs bubblewrap, which is not installed")
    settings = replace(SETTINGS, sandbox="bwrap", packages=packages)
    try:
        sandbox = Sandbox(settings)
    except UserError as error:
        pytest.skip(f"bubblewrap cannot work on this machine: {error}")
    with sandbox:
        assert sandbox.layers[0] == "bwrap"
        numpy = Program("numpy", "import numpy; assert numpy.ones(3).sum() == 3")
        programs = [numpy, Program("environment", ENVIRONMENT), *BASICS]
        found = {verdict.key: verdict.outcome for verdict in sandbox.run(programs)}
        assert found == {**OUTCOMES, "numpy": "passed" if packages else "failed", "environment": "passed"}


FAKE_DOCKER = """#!{python}
import json, os, sys
json.dump(sys.argv, open({log!r}, "w"))
words = sys.argv[sys.argv.index("--entrypoint"):]
if words[2] == "missing":
    sys.exit("docker: Error response from daemon: pull access denied for missing.")
environment = dict(word.split("=", 1) for flag, word in zip(sys.argv, sys.argv[1:]) if flag == "--env")
os.execve({python!r}, [{python!r}, *words[3:]], environment)
"""


@pytest.fixture
def fake_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `docker` that starts the container's command on this machine. Its arguments go to the file that is returned."""
    log, program = tmp_path / "arguments.json", tmp_path / "docker"
    program.write_text(FAKE_DOCKER.format(python=os.path.realpath(sys.executable), log=str(log)))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return log


def test_docker(fake_docker: Path) -> None:
    settings = replace(SETTINGS, sandbox="docker:python:3.11-slim")
    with Sandbox(settings) as sandbox:
        assert sandbox.layers[0] == "docker python:3.11-slim"
        assert {"limits", "seccomp"} <= {*sandbox.layers}
        programs = [*BASICS, Program("environment", ENVIRONMENT)]
        found = {verdict.key: verdict.outcome for verdict in sandbox.run(programs)}
        assert found == {**OUTCOMES, "environment": "passed"}
    _, *words = json.loads(fake_docker.read_text())
    options = dict(pairwise(words))
    memory = SETTINGS.memory + (512 << 20)
    assert words[0] == "run"
    assert {"--rm", "-i", "--read-only"} <= {*words}
    assert options["--network"] == options["--log-driver"] == "none"
    assert (options["--memory"], options["--memory-swap"]) == (str(memory), str(memory))
    assert int(options["--pids-limit"]) <= 256
    assert (options["--cap-drop"], options["--security-opt"]) == ("ALL", "no-new-privileges")
    assert options["--user"] == "65534:65534"
    assert not {"-v", "--volume", "--mount", "--privileged", "-t", "--env-file"} & {*words}
    assert words[words.index("--entrypoint") + 1 :][:5] == ["python3", "python:3.11-slim", "-s", "-S", "-c"]


def test_what_a_clusters_interpreter_needs_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing else is; and libraries there can be read, for modules that are imported later."""
    (tmp_path / "lib.txt").write_text("library")
    (tmp_path.parent / "secret.txt").write_text("secret")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path}:relative:")
    monkeypatch.setenv("TS2_SECRET", "secret")
    programs = [
        Program("inside", f"assert open({str(tmp_path / 'lib.txt')!r}).read() == 'library'"),
        Program("beside", f"open({str(tmp_path.parent / 'secret.txt')!r})"),
        Program("environment", ENVIRONMENT + "\nassert 'LD_LIBRARY_PATH' in os.environ"),
    ]
    with Sandbox(SETTINGS) as sandbox:
        if "landlock" not in " ".join(sandbox.layers):
            pytest.skip("needs Landlock")
        found = {verdict.key: f"{verdict.outcome} {verdict.reason}" for verdict in sandbox.run(programs)}
    assert found == {"inside": "passed ", "beside": "failed PermissionError", "environment": "passed "}


def test_docker_without_the_image(fake_docker: Path) -> None:
    with pytest.raises(UserError) as caught:
        Sandbox(replace(SETTINGS, sandbox="docker:missing"))
    line = str(caught.value)
    assert "--sandbox docker:missing does not work here: docker: Error response from daemon: pull access denied" in line
    assert "--sandbox bwrap" in line
    assert "--sandbox docker:IMAGE" not in line


@pytest.mark.parametrize(("way", "name"), [("bwrap", "bubblewrap"), ("docker:x", "Docker")])
def test_a_way_that_is_not_installed(way: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(UserError, match=f"{name} is not installed"):
        Sandbox(replace(SETTINGS, sandbox=way))


def test_packages() -> None:
    with Sandbox(replace(SETTINGS, packages=("numpy", "json"), memory=1 << 30)) as sandbox:
        programs = [
            Program("array", "import numpy as np; assert np.allclose(np.linalg.inv(np.eye(3)), np.eye(3))"),
            Program("later part", "import numpy.polynomial"),
            Program("neighbour", "import pandas"),
            Program("write", "import numpy; open(numpy.__file__, 'a')"),
        ]
        found = {verdict.key: f"{verdict.outcome} {verdict.reason}" for verdict in sandbox.run(programs)}
    assert found == {
        "array": "passed ", "later part": "passed ", "neighbour": "failed ModuleNotFoundError",
        "write": "failed PermissionError",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["no_such_package", "../x", "os.path", ""])
def test_packages_that_are_not_there(name: str) -> None:
    with pytest.raises(UserError, match=r"--packages .*: not installed here"):
        Sandbox(replace(SETTINGS, packages=(name,)))


def test_an_interpreter_that_is_not_there() -> None:
    with pytest.raises(UserError, match="--python /nowhere/python: no interpreter"):
        Sandbox(replace(SETTINGS, python="/nowhere/python"))


def test_an_interpreter_that_is_none() -> None:
    with pytest.raises(UserError, match="--sandbox auto does not work here: "):
        Sandbox(replace(SETTINGS, python=shutil.which("false")))


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"workers": 0}, "--workers must be a whole number of at least 1 or null, got 0"),
        ({"memory": 1}, "--memory must be a whole number of at least 67108864, got 1"),
        ({"memory": 1e9}, "--memory must be a whole number"),
    ],
)
def test_settings_out_of_range(changes: dict, wrong: str) -> None:
    with pytest.raises(UserError, match=wrong):
        replace(SETTINGS, **changes)
