"""`configs`: the configurations that the package brings, to look at and to copy."""

import re
import shlex
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path, PurePosixPath
from textwrap import wrap

import yaml

from ts2_lightning.cli.terminal import OptionParser, page_width, put
from ts2_lightning.config_files import compose_config
from ts2_lightning.program import program
from ts2_lightning.shipped_configs import FOLDER, meant_config, nearest_config, shipped_config, shipped_names
from ts2_lightning.types import UserError

_ABOUT = """Lists the configurations that come with the package, shows one, or copies them. Every command finds them
without a copy: give their names to -c, or name them in a file of your own. A file of yours that has the same path comes
first."""

_COLUMN = 28  # where descriptions begin


def run(argv: Sequence[str]) -> int:
    """Lists, shows or copies configurations.

    Args:
        argv: the options after the command.

    Returns:
        The exit status, 0.

    Raises:
        UserError: there is none of that name, or the copy would take the place of another file.
    """
    options = _parser().parse_args(argv)
    names = named_configs(options.name) if options.name else shipped_names()
    if options.copy is not None:
        put("\n".join(copy_configs(names, Path(options.copy))))
    elif len(names) == 1:
        put(shipped_config(names[0]).read_text(encoding="utf-8").rstrip("\n"))
    else:
        put(listed(names, page_width()))
    return 0


def named_configs(name: str) -> list[str]:
    """The shipped files that a user means: one, those of a directory, or those of a stem.

    Raises:
        UserError: there are none.

    Example:
        >>> named_configs("configs/loss/ts2.yaml"), named_configs("tofu")
        (['loss/ts2.yaml'], ['grid/paper/tofu.yaml', 'grid/toyworld/tofu.yaml', 'loss/tofu.yaml'])
    """
    plain = name.removeprefix(f"{FOLDER}/").strip("/")
    names = shipped_names()
    if plain in names:
        return [plain]
    if (file := meant_config(f"{plain}.yaml")) is not None:
        return [file.relative_to(shipped_config()).as_posix()]
    same = [other for other in names if plain in (PurePosixPath(other).name, PurePosixPath(other).stem)]
    inside = [other for other in names if other.startswith(f"{plain}/")]
    if not (same or inside):
        near = nearest_config(plain if plain.endswith(".yaml") else f"{plain}.yaml")
        hint = f"; did you mean {near}?" if near else f"; {program()} configs lists them"
        raise UserError(f"configs: the package has no configuration {name!r}{hint}")
    return inside or same


def listed(names: Iterable[str], width: int) -> str:
    """A line for each file: its name, and the beginning of what it says of itself.

    Args:
        names: names from the directory of the shipped files on.
        width: columns of a line.
    """
    lines = [f"In {shipped_config()}; {program()} configs NAME shows one, --copy DIR copies."]
    for directory, files in groupby(names, lambda name: name.rpartition("/")[0]):
        lines += ["", f"{FOLDER}/{directory}"]
        for name in files:
            about = _about(shipped_config(name).read_text(encoding="utf-8"))
            file = f"  {PurePosixPath(name).name}"
            beside = wrap(about, width - _COLUMN)
            fits = beside and len(file) + 2 <= _COLUMN
            lines.append(f"{file:<{_COLUMN}}{beside.pop(0)}" if fits else file)
            lines += [" " * _COLUMN + text for text in beside]
    return "\n".join(lines)


def copy_configs(names: Iterable[str], directory: Path) -> list[str]:
    """Copies files, and the shipped ones that they name, with their directories, and says in a line each what was done.

    Nothing is written if any file would take the place of another one.

    Args:
        names: names from the directory of the shipped files on.
        directory: directory to copy to, made if need be.

    Raises:
        UserError: a file of another content is there, or it cannot be written.
    """
    places = {name: directory / name for name in _with_named(names)}
    texts = {name: shipped_config(name).read_bytes() for name in places}
    lines = []
    try:
        there = {name for name, place in places.items() if place.exists() or place.is_symlink()}
        for name in there:
            if not places[name].is_file() or places[name].read_bytes() != texts[name]:
                raise UserError(
                    f"--copy {directory}: {places[name]} is there with another content, and stays as it is; nothing "
                    "was copied: name another directory, or move that file"
                )
        for name, place in places.items():
            if name not in there:
                place.parent.mkdir(parents=True, exist_ok=True)
                with place.open("xb") as file:  # who has made it in the meantime keeps it
                    file.write(texts[name])
            lines.append(f"{place} is there already" if name in there else str(place))
    except OSError as error:
        raise UserError(f"--copy {directory}: {error.filename} cannot be written ({error.strerror})") from error
    return lines


def _with_named(names: Iterable[str]) -> list[str]:
    """Files and the shipped ones that they name, each once."""
    root = shipped_config().resolve()
    whole: dict[str, None] = {}
    remaining = list(names)
    while remaining:
        name = remaining.pop(0)
        if name in whole:
            continue
        whole[name] = None
        file = root / name
        if file.suffix == ".yaml":
            beside = (Path(file.parent, text).resolve() for text in _texts(compose_config(str(file))))
            remaining += [path.relative_to(root).as_posix() for path in beside if _is_shipped(path, root)]
    return list(whole)


def _is_shipped(path: Path, root: Path) -> bool:
    return path.is_relative_to(root) and path.suffix != "" and path.is_file()


def _texts(node: yaml.Node | None) -> Iterable[str]:
    """All scalars of a file that may name another one."""
    if isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            yield from _texts(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _texts(value)
    elif node is not None and re.fullmatch(r"[\w./-]+\.\w+", str(node.value)):
        yield str(node.value)


def _about(text: str) -> str:
    """The first sentence of the comment that a file begins with; a line for the system, `#!`, is none.

    Example:
        >>> _about("# TS2: the sparsemax loss plus\\n# suppression. Alpha as for Llama.\\n#   python cli.py fit\\na: 1")
        'TS2: the sparsemax loss plus suppression.'
    """
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("#!"):
            continue
        if not line.startswith("# ") or line.startswith("#  "):
            break
        lines.append(line[2:].strip())
    sentence = re.split(r"(?<=[a-z0-9)][.:]) (?=[A-Z])", " ".join(lines), maxsplit=1)[0]
    return sentence.removesuffix(":")


def _parser() -> OptionParser:
    parser = OptionParser("configs", f"{_ABOUT} Such as: {shlex.join([program(), 'configs', 'experiment/chat'])}.")
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="show one, such as experiment/chat; or list those of a directory, such as loss (default: all)",
    )
    parser.add_argument(
        "--copy",
        metavar="DIR",
        help="copy NAME, or all, and what they name into DIR; no file there is ever replaced",
    )
    return parser
