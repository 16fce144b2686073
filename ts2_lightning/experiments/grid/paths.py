"""Paths in a grid file, as one writes them in the working directory."""

import os
from pathlib import Path


def nearer(path: str | Path) -> str:
    """A path from the working directory where it lies below it, else the whole."""
    whole, here = os.path.abspath(path), os.getcwd()
    return os.path.relpath(whole, here) if os.path.commonpath([whole, here]) == here else whole


def beside(file: str, name: str) -> str:
    """A path that is relative to a file, from the working directory."""
    return nearer(Path(file).parent / Path(name).expanduser())
