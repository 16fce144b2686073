"""The ways to start a server: the command line of each, and what it is told first."""

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from ts2_lightning.sandbox.programs import SandboxSettings
from ts2_lightning.types import UserError

ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "PATH": "/usr/bin:/bin",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",  # sets have the same order in every server
    "PYTHONUTF8": "1",
    "MALLOC_ARENA_MAX": "2",  # of address space, each arena takes 64 MiB
    "OPENBLAS_NUM_THREADS": "1",  # a process with threads must not fork
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
"""What every server has as its environment."""

_PASSED_ON = ("LD_LIBRARY_PATH", "PYTHONHOME")
"""Variables without which an interpreter of a cluster's module system may not start."""

_BOOT = """\
import sys
sys.path[:] = [place for place in sys.path if place]
import json, os, types
requests = os.fdopen(os.dup(0), "rb")
start = json.loads(requests.readline())
for name, source in start["modules"]:
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)
sys.modules[start["modules"][-1][0]].serve(start["settings"], requests)
"""
_PACKAGES = ("ts2_lightning", "ts2_lightning.sandbox", "ts2_lightning.sandbox.inside")
_MODULES = ("system_calls", "seccomp", "landlock", "confinement", "server")  # each after those that it imports
_BESIDE_PROGRAMS = 512 << 20  # bytes of a container for the server


def environment(settings: SandboxSettings) -> dict[str, str]:
    """The environment of the process that is started: nothing of the user's that a program could see.

    Args:
        settings: settings of the sandbox.
    """
    if settings.way == "docker":  # the client's, which nothing in the container sees
        return dict(os.environ)
    return {**ENVIRONMENT, **{name: os.environ[name] for name in _PASSED_ON if name in os.environ}}


def interpreter(settings: SandboxSettings) -> str:
    """The interpreter itself, not the link to it in a virtual environment.

    Args:
        settings: settings of the sandbox.

    Raises:
        UserError: there is none at that place.
    """
    path = settings.python or sys.executable
    if not path or not os.access(path, os.X_OK):
        raise UserError(f"--python {path}: no interpreter that can be started")
    return os.path.realpath(path)


def command_line(settings: SandboxSettings) -> list[str]:
    """The command line that starts a server.

    Args:
        settings: settings of the sandbox.

    Raises:
        UserError: a program that this way needs is not installed.
    """
    if settings.way == "docker":
        return _docker(settings)
    command = [interpreter(settings), "-s", "-S", "-c", _BOOT]
    return [*_bwrap(settings), *command] if settings.way == "bwrap" else command


def _bwrap(settings: SandboxSettings) -> list[str]:
    python = interpreter(settings)
    prefix = Path(python).parents[1]
    places = ["/usr", "/lib", "/lib64", "/etc/ld.so.cache", *map(str, package_places(settings))]
    if Path("/usr") not in (prefix, *prefix.parents):
        places.append(str(prefix))
    binds = [word for place in places for word in ("--ro-bind-try", place, place)]
    return [
        _installed(settings, "bubblewrap", "bwrap"), "--unshare-all", "--die-with-parent", "--new-session",
        "--cap-drop", "ALL", *binds, "--proc", "/proc", "--dev", "/dev", "--remount-ro", "/", "--chdir", "/", "--",
    ]  # fmt: skip


def _docker(settings: SandboxSettings) -> list[str]:
    program = _installed(settings, "Docker", "docker", "podman")
    memory = str(settings.memory + _BESIDE_PROGRAMS)
    variables = [word for name, value in ENVIRONMENT.items() for word in ("--env", f"{name}={value}")]
    return [
        program, "run", "--rm", "-i", "--network", "none", "--read-only", "--memory", memory, "--memory-swap", memory,
        "--pids-limit", "256", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", "65534:65534",
        "--log-driver", "none", "--workdir", "/", *variables, "--entrypoint", "python3", settings.image,
        "-s", "-S", "-c", _BOOT,
    ]  # fmt: skip


def _installed(settings: SandboxSettings, name: str, *programs: str) -> str:
    for program in programs:
        if path := shutil.which(program):
            return path
    raise settings.refusal(f"{name} is not installed ({programs[0]} is not on the PATH)")


def package_places(settings: SandboxSettings) -> list[Path]:
    """The directories of the packages that programs may import, and of the libraries that came with them.

    Args:
        settings: settings of the sandbox.

    Raises:
        UserError: a package that is not installed.
    """
    places = []
    for name in settings.packages:
        if name in sys.stdlib_module_names:
            continue
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or spec.origin is None:
            raise UserError(f"--packages {name}: not installed here")
        home = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
        places += [home, *home.parent.glob(f"{name}.libs")]
    return places


def first_line(settings: SandboxSettings) -> bytes:
    """What a server is told first: its own sources, and its settings.

    Args:
        settings: settings of the sandbox.
    """
    inside = Path(__file__).parent / "inside"
    modules = [(name, "") for name in _PACKAGES]
    modules += [(f"{_PACKAGES[-1]}.{name}", (inside / f"{name}.py").read_text(encoding="utf-8")) for name in _MODULES]
    places = [] if settings.way == "docker" else package_places(settings)
    told: dict[str, Any] = {
        "confined": settings.way != "none",
        "namespaces": settings.way == "auto",
        "memory": settings.memory,
        "modules": settings.packages,
        "directories": sorted({str(place.parent) for place in places}),
        "readable": [str(place) for place in places],
        "keep_texts": settings.keep_texts,
    }
    return json.dumps({"modules": modules, "settings": told}).encode() + b"\n"
