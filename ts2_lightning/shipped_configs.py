"""The configurations that the package brings: where they lie, and which of them a name means that is no file."""

import posixpath
from pathlib import Path

from ts2_lightning.suggestions import nearest

FOLDER = "configs"
"""Name of their directory, with which names of them may begin."""

_PACKAGE = Path(__file__).parent
_YAML = (".yaml", ".yml")


def shipped_config(name: str = "") -> Path:
    """The path of a shipped configuration such as `experiment/quickstart.yaml`, or of a directory of them.

    In a checkout they lie beside the package, in an installed wheel inside it.
    """
    beside, inside = _PACKAGE.parent / FOLDER / name, _PACKAGE / FOLDER / name
    return inside if inside.exists() else beside


def shipped_names() -> list[str]:
    """The names of all shipped files, from their directory on; experiments come first."""
    root = shipped_config()
    names = sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())
    return sorted(names, key=lambda name: not name.startswith("experiment/"))


def meant_config(name: str) -> Path | None:
    """The shipped configuration that a path names, which is no file where it was named; None if there is none.

    Args:
        name: path as it was written. It may begin with `configs/`, as from the root of a checkout, or with `../`, as
            from one of the shipped files; an absolute one means none of them.

    Example:
        >>> for name in ("configs/loss/ts2.yaml", "loss/ts2.yaml", "../../loss/ts2.yaml"):
        ...     print(meant_config(name) == shipped_config("loss/ts2.yaml"))
        True
        True
        True
        >>> print(meant_config("mine/loss/ts2.yaml"), meant_config("/configs/loss/ts2.yaml"))
        None None
    """
    if not name.endswith(_YAML) or Path(name).is_absolute():
        return None
    file = shipped_config(_plain(name))
    return file if file.is_file() else None


def nearest_config(name: str) -> str | None:
    """The name of the shipped configuration that a wrong name is nearest to, as one gives it; None if none is near.

    Example:
        >>> nearest_config("configs/experiment/caht.yaml"), nearest_config("chat.yaml")
        ('configs/experiment/chat.yaml', 'configs/experiment/chat.yaml')
    """
    if not name.endswith(_YAML):
        return None
    word = posixpath.splitext(_plain(name))[0]
    stems = {posixpath.splitext(shipped)[0]: shipped for shipped in shipped_names() if shipped.endswith(_YAML)}
    by_last_part = {stem.rpartition("/")[2]: stem for stem in reversed(stems)}
    last_part = None if "/" in word else nearest(word, by_last_part)
    stem = by_last_part[last_part] if last_part else nearest(word, stems)
    return f"{FOLDER}/{stems[stem]}" if stem else None


def _plain(name: str) -> str:
    """A name from the directory of the shipped files on."""
    parts = posixpath.normpath(Path(name).as_posix()).split("/")
    while parts and parts[0] == "..":
        parts.pop(0)
    return "/".join(parts[1:] if parts[:1] == [FOLDER] else parts)
