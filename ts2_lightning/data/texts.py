"""Rows from files of text: one JSON object a line, or a JSON list of objects; also gzipped."""

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ts2_lightning.data.files import readable
from ts2_lightning.data.formats.base import shown
from ts2_lightning.data.rejects import Reject
from ts2_lightning.data.rows import LARGEST_ROW, SourceRow, as_row, kind_of, too_large
from ts2_lightning.types import RowError, UserError

LARGEST_DOCUMENT = 1 << 31
"""Bytes of a `.json` file, unpacked: it is read whole, and takes several times as much memory."""

_PIECE = 1 << 20  # bytes that are read at once
_GLANCE = 1 << 18  # bytes of a file of lines from which their number is estimated


def read_lines(path: Path) -> Iterator[SourceRow | Reject]:
    """The rows of JSON Lines.

    Raises:
        UserError: naming the file, if it cannot be read or ends too early.
    """
    with readable(path, _kind(path), zlib.error), _opened(path) as file:
        for number, line in enumerate(_lines(file), start=1):
            if isinstance(line, RowError) or line.strip():
                yield as_row(f"{path}:{number}", line if isinstance(line, RowError) else _parsed(line.rstrip(b"\r\n")))


def read_list(path: Path) -> Iterator[SourceRow | Reject]:
    """The rows of a list of objects.

    Raises:
        UserError: naming the file, if it is not such a list.
    """
    with readable(path, _kind(path), zlib.error), _opened(path) as file:
        value = _parsed_list(_document(path, file))
    if isinstance(value, RowError):
        raise UserError(f"{path}: {value}; mend it, or fetch or write it again")
    if not isinstance(value, list):
        raise UserError(f"{path}: a .json file must be a list of objects, got {kind_of(value)}")
    for number, item in enumerate(value, start=1):
        yield as_row(f"{path}, row {number}", item)


def count_lines(path: Path) -> int:
    """The number of lines, blank ones too."""
    with readable(path, _kind(path), zlib.error), _opened(path) as file:
        return sum(piece.count(b"\n") for piece in _pieces(file))


def about_lines(path: Path) -> float:
    """The number of lines, estimated from the beginning of the file."""
    with readable(path, _kind(path), zlib.error), open(path, "rb") as file:
        beginning = file.read(_GLANCE)
        if path.suffix != ".gz":
            lines, used = beginning.count(b"\n"), len(beginning)
        else:
            unpacking = zlib.decompressobj(wbits=31)
            lines = unpacking.decompress(beginning, LARGEST_ROW).count(b"\n")
            used = len(beginning) - len(unpacking.unused_data) - len(unpacking.unconsumed_tail)
        return lines * os.fstat(file.fileno()).st_size / max(used, 1)


def _opened(path: Path) -> Any:
    if path.suffix == ".gz" and not path.stat().st_size:
        raise EOFError("it is empty")  # of nothing gzip makes some bytes
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def _kind(path: Path) -> str:
    return "gzip" if path.suffix == ".gz" else "text"


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: file.read(_PIECE), b"")


def _lines(file: IO[bytes]) -> Iterator[bytes | RowError]:
    """The lines; a line that is too long is passed over in pieces, and gives a RowError."""
    for line in iter(lambda: file.readline(LARGEST_ROW + 1), b""):
        if len(line) <= LARGEST_ROW:
            yield line
            continue
        size = len(line)
        while not line.endswith(b"\n") and (line := file.readline(_PIECE)):
            size += len(line)
        yield too_large(size)


def _document(path: Path, file: IO[bytes]) -> bytes:
    content = bytearray()
    for piece in _pieces(file):
        content += piece
        if len(content) > LARGEST_DOCUMENT:
            raise UserError(
                f"{path}: a .json file is read whole, and this one has more than {LARGEST_DOCUMENT:,} bytes; write one "
                "object a line instead, in a .jsonl file"
            )
    return bytes(content)


# JSON -----------------------------------------------------------------------------------------------------------------


class _DoubledKeyError(RowError):
    """An object with a key twice, of which most parsers take the last in silence."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        keys = [key for key, _ in pairs]
        key = next(key for place, key in enumerate(keys) if key in keys[:place])
        super().__init__(f"malformed JSON (the key {shown(key)} comes twice in one object)", "malformed JSON")


def _strict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise _DoubledKeyError(pairs)
    return fields


def _lenient(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _DoubledKeyError:
    fields = dict(pairs)
    return fields if len(fields) == len(pairs) else _DoubledKeyError(pairs)


_STRICT = json.JSONDecoder(object_pairs_hook=_strict)
_LENIENT = json.JSONDecoder(object_pairs_hook=_lenient)


def _parsed(text: bytes, decoder: json.JSONDecoder = _STRICT) -> Any:
    """The value of a JSON text, or a RowError if it is malformed."""
    try:
        return decoder.decode(text.decode("utf-8-sig"))
    except RowError as error:
        return error
    except UnicodeDecodeError as error:
        return RowError(f"not UTF-8 (byte {error.start + 1}); convert the file", "not UTF-8")
    except RecursionError:
        return RowError("malformed JSON (nested too deeply)", "malformed JSON")
    except json.JSONDecodeError as error:
        hint = "; a file of one object a line is named .jsonl" if error.msg == "Extra data" else ""
        place = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        return RowError(f"malformed JSON ({error.msg} at {place}){hint}", "malformed JSON")
    except ValueError as error:  # an integer of thousands of digits
        return RowError(f"malformed JSON ({error})", "malformed JSON")


def _parsed_list(text: bytes) -> Any:
    """As `_parsed`, but an object with a repeated key spoils only its own item of the list."""
    value = _parsed(text)
    if not isinstance(value, _DoubledKeyError):
        return value
    value = _parsed(text, _LENIENT)
    return [_doubled_in(item) or item for item in value] if isinstance(value, list) else value


def _doubled_in(value: Any) -> _DoubledKeyError | None:
    """The first object with a key twice inside a value."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, _DoubledKeyError):
            return item
        if isinstance(item, dict | list):
            left += item.values() if isinstance(item, dict) else item
    return None
