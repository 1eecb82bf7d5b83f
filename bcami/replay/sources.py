"""Finds the data files under a path and opens them: a folder, a file, .gz or .zip (told by content, not by name).

A folder is searched recursively, in natural order of its names (block_2 before block_10). One layout is read:
half-hourly if any file has it, else hhblock, else UKPN; `--layout` overrides. Every other file is ignored and named
with why. What a compressed file cannot deliver to its end is an InputError that names file and line, since half a
data set that looks whole is worse than none.
"""

import gzip
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import IO, Final, cast

from bcami.errors import InputError
from bcami.replay.layouts import Columns, Layout, NotReadable, recognise
from bcami.units import KIB

HEADER_BYTES_MAX: Final = 64 * KIB
"""A header line longer than this belongs to no layout; hhblock's has about 300 bytes."""

DAMAGED: Final = (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError)
"""What the standard library raises on archives that are cut off, altered, encrypted or of an unknown method."""


class Packing(Enum):
    PLAIN = "plain"
    GZIP = "gzip"
    ZIP = "zip"


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of readings (a member of a .zip counts as one)."""

    path: Path
    member: str
    """Name inside a .zip; empty otherwise."""
    packing: Packing
    columns: Columns
    name: str
    """How messages and the rejects file call it: the path below the folder that was given."""
    bytes_packed: int
    """Size on disk: what progress is measured by."""


@dataclass(frozen=True, slots=True)
class Ignored:
    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Source:
    """What will be read, in this order."""

    path: Path
    layout: Layout
    files: tuple[DataFile, ...]
    ignored: tuple[Ignored, ...]

    @property
    def bytes_packed(self) -> int:
        return sum(file.bytes_packed for file in self.files)


@dataclass(frozen=True, slots=True)
class _Candidate:
    path: Path
    member: str
    packing: Packing
    name: str
    bytes_packed: int


def discover(path: Path, layout: Layout | None = None) -> Source:
    """Return the data files under a path.

    Raises InputError when there are none, or when the one file given is not readable, with what is wrong with it.
    """
    if not path.exists():
        raise InputError(f"there is nothing at {path}", where=str(path), do="give a data file or a folder of them")
    folder = path.is_dir()
    readable: list[DataFile] = []
    ignored: list[Ignored] = []
    near: list[tuple[_Candidate, NotReadable]] = []
    for item in _walk(path) if folder else _expand(path, path.name, strict=True):
        if isinstance(item, Ignored):
            ignored.append(item)
            continue
        columns = _peek(item, layout)
        if isinstance(columns, Columns):
            readable.append(DataFile(item.path, item.member, item.packing, columns, item.name, item.bytes_packed))
        else:
            ignored.append(Ignored(item.name, columns.what))
            if columns.near or not folder:
                near.append((item, columns))
    if not readable:
        raise _nothing(path, near, ignored)
    chosen = next(candidate for candidate in Layout if any(file.columns.layout is candidate for file in readable))
    for file in readable:
        if file.columns.layout is not chosen:
            why = f"{file.columns.layout} layout, while {chosen} is read (--layout {file.columns.layout} reads it)"
            ignored.append(Ignored(file.name, why))
    files = tuple(file for file in readable if file.columns.layout is chosen)
    return Source(path, chosen, files, tuple(ignored))


@contextmanager
def open_data(file: DataFile | _Candidate) -> Iterator[IO[bytes]]:
    """Open a data file for reading its unpacked bytes. Raises InputError when it cannot be opened."""
    try:
        match file.packing:
            case Packing.PLAIN:
                with file.path.open("rb") as stream:
                    yield stream
            case Packing.GZIP:
                with gzip.open(file.path, "rb") as unpacked:
                    yield cast("IO[bytes]", unpacked)
            case Packing.ZIP:
                with zipfile.ZipFile(file.path) as archive, archive.open(file.member) as inner:
                    yield inner
    except DAMAGED as error:
        raise damaged(file.name, error) from error
    except OSError as error:
        raise unreadable(file.name, error) from error


def damaged(name: str, error: Exception, line: int | None = None) -> InputError:
    """Return the error for an archive that breaks off or is altered, after `line` whole lines."""
    cut_off = isinstance(error, EOFError)
    reached = "" if line is None else f" after line {line:,}"
    return InputError(
        f"the compressed file {'breaks off' if cut_off else 'is damaged'}{reached}: {error}",
        where=name if line is None else f"{name}, line {line + 1}",
        likely="the download was interrupted" if cut_off else "the file was altered, or its archive is not supported",
        do="fetch the file again, or move it out of the folder",
    )


def unreadable(name: str, error: OSError) -> InputError:
    return InputError(
        f"the file cannot be read: {error.strerror or error}", where=name, do="check its permissions and the disk"
    )


def _walk(folder: Path) -> Iterator[_Candidate | Ignored]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted((name for name in folders if not _is_hidden(name)), key=_natural)
        for name in sorted(names, key=_natural):
            path = Path(parent, name)
            shown = path.relative_to(folder).as_posix()
            if _is_hidden(name):
                yield Ignored(shown, "a hidden file")
            elif not path.is_file():
                yield Ignored(shown, "no regular file")
            else:
                yield from _expand(path, shown, strict=False)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return tuple((0, int(part), part) if part[0] in "0123456789" else (1, 0, part) for part in parts)


def _expand(path: Path, name: str, *, strict: bool) -> Iterator[_Candidate | Ignored]:
    """Yield the file, or the members of a .zip. When not strict a .zip without CSV files is ignored, not an error."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise unreadable(name, error) from error
    if magic.startswith(b"\x1f\x8b"):
        yield _Candidate(path, "", Packing.GZIP, name, size)
    elif magic in (b"PK\x03\x04", b"PK\x05\x06"):
        yield from _members(path, name, strict=strict)
    else:
        yield _Candidate(path, "", Packing.PLAIN, name, size)


def _members(path: Path, name: str, *, strict: bool) -> Iterator[_Candidate | Ignored]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = sorted(archive.infolist(), key=lambda info: _natural(info.filename))
    except (*DAMAGED, OSError) as error:
        raise damaged(name, error if isinstance(error, Exception) else EOFError()) from error
    members = [info for info in infos if not info.is_dir() and info.filename.lower().endswith((".csv", ".txt"))]
    if not members and not strict:
        yield Ignored(name, "an archive without CSV files")
        return
    if not members:
        raise InputError(
            "the archive holds no CSV file", where=name, do="give the archive of the data set, or its files"
        )
    for info in infos:
        shown = f"{name}/{info.filename}"
        if info.is_dir():
            continue
        if any(_is_hidden(part) for part in info.filename.split("/")):
            yield Ignored(shown, "a hidden file")
        elif info not in members:
            yield Ignored(shown, "no CSV file")
        elif info.flag_bits & 1:
            raise InputError("the archive is encrypted", where=shown, do="unpack it first")
        else:
            yield _Candidate(path, info.filename, Packing.ZIP, shown, info.compress_size)


def _peek(item: _Candidate, layout: Layout | None) -> Columns | NotReadable:
    with open_data(item) as stream:
        try:
            head = stream.read(HEADER_BYTES_MAX)
        except DAMAGED as error:
            raise damaged(item.name, error, 0) from error
    if not head.strip():
        return NotReadable("the file is empty", "fetch the file again", near=True)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or head[:2].count(0) == 1:
        return NotReadable("wrong encoding: UTF-16 text", "save the file as UTF-8", near=True)
    if b"\0" in head:
        return NotReadable("a binary file, no CSV text", "give the CSV file")
    line = head.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].rstrip(b"\r")
    if b"\r" in line:
        return NotReadable("its lines end with CR alone", "save the file with LF or CRLF line ends", near=True)
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"wrong encoding: byte 0x{line[error.start]:02x} in the header is no UTF-8"
        return NotReadable(what, "save the file as UTF-8", near=True)
    return recognise(text, layout)


def _nothing(path: Path, near: list[tuple[_Candidate, NotReadable]], ignored: list[Ignored]) -> InputError:
    if near:
        item, problem = near[0]
        return InputError(problem.what, where=f"{item.name}, line 1", do=problem.do)
    shown = "; ".join(f"{item.name}: {item.why}" for item in ignored[:5])
    rest = f" and {len(ignored) - 5} more" if len(ignored) > 5 else ""
    return InputError(
        "no file with half-hourly readings in this folder",
        where=str(path),
        likely=f"ignored {shown}{rest}" if ignored else "the folder is empty",
        do="give the folder with halfhourly_dataset, hhblock_dataset or the UK Power Networks files",
    )
