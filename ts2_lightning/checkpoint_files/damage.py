"""Whether a checkpoint's bytes are still those that were written: bits rot, and copies go wrong, at the same size.

A file of `torch.save` is a zip archive, which has a CRC-32 of each of its entries, though torch never checks them. Of
a directory the manifest has an XXH3 of each block of 64 MiB, which takes a third of the time. Checking means to read
everything once, which several threads do, and several ranks together: each takes its share of the parts.
"""

import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
import xxhash

from ts2_lightning.checkpoint_files.disk import files_in, read_manifest

BLOCK = 64 * 2**20
"""Bytes of a file that have a checksum together."""

Checksum = Callable[[Iterator[memoryview]], int]
"""A function from bytes, piece by piece, to their checksum."""

_BUFFER = 2**19  # stays in a core's own cache
_THREADS = 8
_ENCRYPTED, _FOLDER = 0x2041, 0x10  # flags and attributes of a zip archive's entry
_ENTRY = struct.Struct("<4s22xHH")  # of a zip archive: the signature, and the lengths of name and extra field


class FilePart(NamedTuple):
    """A stretch of a file, and the checksum of its bytes.

    Attributes:
        file: file that it is part of.
        start: number of its first byte.
        length: number of its bytes.
        checksum: checksum of the bytes when they were written.
        add_up: function that computes the checksum.
    """

    file: Path
    start: int
    length: int
    checksum: int
    add_up: "Checksum"

    def damage(self) -> str | None:
        """The damage in one line; None if there is none."""
        try:
            differs = self.add_up(_bytes(self.file, self.start, self.length)) != self.checksum
        except OSError as error:
            return f"{self.file.name} cannot be read ({error.strerror})"
        where = f"between bytes {self.start} and {self.start + self.length}"
        return f"{self.file.name} is not as it was written ({where})" if differs else None


def damage_of(checkpoint: Path, share: int = 0, shares: int = 1) -> str | None:
    """The damage of a checkpoint's bytes, as far as its checksums show it.

    Args:
        checkpoint: complete checkpoint, a file or a directory. Directories of other programs, and those whose manifest
            has no checksums, pass.
        share: number of the share of the parts to check, from 0.
        shares: number of shares into which the parts are divided.

    Returns:
        One line about the first damaged part of the share; None if all are whole.
    """
    try:
        parts = [*islice(_parts(checkpoint), share, None, shares)]
    except (OSError, zipfile.BadZipFile, struct.error, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:150]
        return f"{checkpoint.name}: its table of contents is not as it was written ({reason})"
    with ThreadPoolExecutor(_threads()) as threads:
        return next(filter(None, threads.map(FilePart.damage, parts)), None)


def block_checksums(checkpoint: Path, rank: int = 0, ranks: int = 1) -> dict[str, list[int]]:
    """The XXH3 of each block of the files that one rank has written into a checkpoint's directory.

    Args:
        checkpoint: directory to which all ranks have written. A file has its checksums inside: the result is empty.
        rank: number of the rank.
        ranks: number of ranks.
    """
    if not checkpoint.is_dir():
        return {}
    files = [file for file in files_in(checkpoint) if _writer(file) % ranks == rank]
    with ThreadPoolExecutor(_threads()) as threads:
        return {str(file.relative_to(checkpoint)): [*threads.map(_block, _blocks(file))] for file in files}


def _parts(checkpoint: Path) -> Iterator[FilePart]:
    if not checkpoint.is_dir():
        yield from _entries(checkpoint)
        return
    checksums = (read_manifest(checkpoint) or {}).get("xxh3_64", {})
    for name, values in checksums.items():
        for (file, start, length), checksum in zip(_blocks(checkpoint / name), values, strict=True):
            yield FilePart(file, start, length, checksum, _xxh3)


def _entries(archive: Path) -> Iterator[FilePart]:
    """The entries of a zip archive, which torch does not compress; torch itself has to understand where they are."""
    torch.PyTorchFileReader(str(archive))
    with zipfile.ZipFile(archive) as contents, archive.open("rb") as file:
        for entry in contents.infolist():
            file.seek(entry.header_offset)
            signature, name_length, extra_length = _ENTRY.unpack(file.read(_ENTRY.size))
            name = file.read(name_length)
            odd = (
                entry.compress_type != zipfile.ZIP_STORED
                or entry.flag_bits & _ENCRYPTED
                or entry.external_attr & _FOLDER
            )
            if signature != b"PK\x03\x04" or name != entry.orig_filename.encode() or odd:
                raise zipfile.BadZipFile(f"{entry.filename} does not begin as torch.save writes it")
            yield FilePart(archive, file.tell() + extra_length, entry.file_size, entry.CRC, _crc32)


def _blocks(file: Path) -> Iterator[tuple[Path, int, int]]:
    size = file.stat().st_size
    return ((file, start, min(BLOCK, size - start)) for start in range(0, size, BLOCK))


def _block(block: tuple[Path, int, int]) -> int:
    return _xxh3(_bytes(*block))


def _bytes(path: Path, start: int, length: int) -> Iterator[memoryview]:
    """A stretch of a file, piece by piece in the same memory; less of it, where the file ends before."""
    buffer = memoryview(bytearray(min(_BUFFER, length)))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while length > 0 and (count := file.readinto(buffer[:length])):
            yield buffer[:count]
            length -= count


def _crc32(pieces: Iterator[memoryview]) -> int:
    value = 0
    for piece in pieces:
        value = zlib.crc32(piece, value)
    return value


def _xxh3(pieces: Iterator[memoryview]) -> int:
    value = xxhash.xxh3_64()
    for piece in pieces:
        value.update(piece)
    return value.intdigest()


def _writer(file: Path) -> int:
    """The rank that wrote a file, and so has it in its memory still; rank 0 where the name does not say."""
    match = re.search(r"^__(\d+)_\d+\.distcp$|zero_pp_rank_(\d+)_", file.name)
    return int(match[1] or match[2]) if match else 0


def _threads() -> int:
    return min(_THREADS, os.cpu_count() or 1)
