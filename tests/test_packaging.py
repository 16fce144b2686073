"""What is installed with the package: all that it imports, bounded from above, under one version."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ts2_lightning

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DISTRIBUTIONS = {"yaml": "pyyaml", "PIL": "pillow"}
"""Modules that are called otherwise than what is installed."""


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[><=]", line)[0].replace("-", "_").lower() for line in requirements}


def imported() -> set[str]:
    """The top-level modules that the package imports, anywhere."""
    modules = set()
    for file in (ROOT / "ts2_lightning").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.split(".")[0])
    return modules - {"ts2_lightning"} - sys.stdlib_module_names


def test_all_that_is_imported_is_named() -> None:
    named = names([*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)])
    assert {DISTRIBUTIONS.get(module, module) for module in imported()} <= named


@pytest.mark.parametrize("group", ["dependencies", *(extra for extra in EXTRAS if extra != "dev")])
def test_there_is_an_upper_bound(group: str) -> None:
    lines = PROJECT["dependencies"] if group == "dependencies" else EXTRAS[group]
    assert [line for line in lines if not re.search(r">=[\d.]+,<[\d.]+$", line)] == []


def test_bounds_hold_what_is_tested() -> None:
    """constraints.txt has the versions of CI."""
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split() if "==" in line
    )
    pinned = {name.replace("-", "_").lower(): version for name, version in pins.items()}

    def key(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version.split(".")[:3])

    extras = [line for extra, lines in EXTRAS.items() if extra != "dev" for line in lines]
    for line in [*PROJECT["dependencies"], *extras]:
        least, most = re.findall(r"[><]=?([\d.]+)", line)
        version = key(pinned[names([line]).pop()])
        assert key(least) <= version < key(most), line


def test_it_is_typed() -> None:
    assert (ROOT / "ts2_lightning" / "py.typed").is_file()


def test_the_version_has_one_home() -> None:
    """hatchling reads `ts2_lightning/__init__.py`; the command line prints it before anything heavy is imported."""
    assert PROJECT["dynamic"] == ["version"]
    assert "version" not in PROJECT
    script = (
        "import runpy, sys; sys.argv = ['cli.py', '--version']\n"
        "try: runpy.run_path('cli.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'lightning', 'jsonargparse', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"ts2_lightning {ts2_lightning.__version__}", "[]"]


def test_the_newest_version_of_the_changelog_is_the_package_s() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first, *released = re.findall(r"^## (.*)$", changelog, re.M)
    assert first == "[Unreleased]"
    parts = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - (\d{4}-\d\d-\d\d)", line) for line in released]
    assert all(parts), released
    versions = [(tuple(map(int, part.groups()[:3])), part[4]) for part in parts if part]
    assert versions == sorted(versions, reverse=True)
    assert ".".join(map(str, versions[0][0])) == ts2_lightning.__version__
    assert {*re.findall(r"^### (.*)$", changelog, re.M)} <= {
        "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security",
    }  # fmt: skip
