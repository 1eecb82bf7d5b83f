"""Opening LMDB with the settings that a node relies on, and its errors in the user's words.

`sync` and `metasync` stay on: a commit that returned is on disk. `meminit` stays on too: without it LMDB writes
stale heap memory, where secrets may lie, into its file. `readahead` is off, because index lookups are random. The map
is large and sparse: it takes addresses, not space, and saves the resizing that open readers do not survive.
"""

import ctypes
import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import lmdb

from bcami.errors import EnvironmentFault

MAP_BYTES: Final = 256 * 1024**3
READERS_MAX: Final = 256
DATA_FILE: Final = "data.mdb"
WRITER_LOCK: Final = "writer.lock"
DAMAGE: Final = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.NotFoundError,
)
"""What LMDB says of a file that is not as it wrote it."""
_MADV_DONTNEED: Final = 4


@contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """Turn what LMDB and the disk say into an EnvironmentFault that names the store."""
    try:
        yield
    except (lmdb.Error, OSError) as error:
        raise fault_of(error, path) from error


def fault_of(error: Exception, path: Path) -> EnvironmentFault:
    """Return the fault of a store, in the user's words, for what LMDB or the disk said."""
    if isinstance(error, lmdb.MapFullError):
        return EnvironmentFault(
            "the store has reached its map size",
            where=str(path),
            likely="more data than the map size that the node was started with",
            do="start the node with a larger map size, or prune released payloads",
        )
    if isinstance(error, DAMAGE):
        return EnvironmentFault(
            f"the store is damaged: {error}",
            where=str(path),
            likely="the disk or another program changed the file",
            do="audit the store, then rebuild it from the node's peers",
        )
    what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return _disk_fault(path, what)


def _disk_fault(path: Path, what: str) -> EnvironmentFault:
    full = "No space left" in what or os.strerror(errno.ENOSPC) in what
    return EnvironmentFault(
        f"the store cannot be read or written: {what}",
        where=str(path),
        likely="the disk is full" if full else "the disk, its permissions, or a directory that is gone",
        do="make room on the disk" if full else "check the disk and the permissions of the directory",
    )


class WriterLock:
    """Held by the one process that writes a store; the kernel drops it when that process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        path = folder / WRITER_LOCK
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._file, 32).decode("ascii", "replace").strip()
            os.close(self._file)
            if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
                raise
            raise EnvironmentFault(
                "the store is in use by another process" + (f", pid {holder}" if holder else ""),
                where=str(folder),
                likely="the node is already running",
                do="stop it first, or open the store read-only",
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        os.close(self._file)


def open_environment(folder: Path, tables: int, *, write: bool, map_bytes: int = MAP_BYTES) -> Any:
    """Open (and, to write, create) the environment in a folder.

    Raises EnvironmentFault when it is missing, damaged, or the disk refuses.
    """
    if not write and not (folder / DATA_FILE).is_file():
        raise EnvironmentFault("there is no store", where=str(folder), do="start the node once, or name another home")
    with disk_faults(folder):
        if write:
            folder.mkdir(parents=True, exist_ok=True)
        return lmdb.open(
            str(folder),
            map_size=map_bytes,
            max_dbs=tables + 1,
            max_readers=READERS_MAX,
            max_spare_txns=16,
            readonly=not write,
            create=write,
            readahead=False,
            mode=0o600,
        )


class MappedFile:
    """Gives mapped pages of a store back to the page cache, so that resident memory does not grow with the file.

    A clean page of a shared file mapping that is dropped is read again from the page cache on its next use. Where the
    kernel's map list is not there (not Linux), this does nothing.
    """

    def __init__(self, folder: Path) -> None:
        self._place = _find_mapping(folder / DATA_FILE)
        self._madvise: Any = ctypes.CDLL(None, use_errno=True).madvise if self._place else None

    def release(self) -> None:
        """Drop the resident pages of the mapping."""
        if self._place is not None and self._madvise is not None:
            start, length = self._place
            self._madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), ctypes.c_int(_MADV_DONTNEED))


def _find_mapping(path: Path) -> tuple[int, int] | None:
    if not sys.platform.startswith("linux"):
        return None
    inode = path.stat().st_ino
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[4] == str(inode) and fields[5].endswith(DATA_FILE):
            start, end = (int(part, 16) for part in fields[0].split("-"))
            return start, end - start
    return None
