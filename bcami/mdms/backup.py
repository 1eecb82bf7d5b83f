"""Backups: a consistent copy of the store and of the period keys, taken while the MDMS runs.

Once a period's keys are erased, the store is the only copy of its readings (design D8), so this is what stands between
a dead disk and their loss. A backup holds:

    store.duckdb     the whole store at one cursor
    periods/         every file of the period keyring, mode 0600
    kms/             the symmetric keys at one step, encrypted record by record as in the store
    kms.key          what they are encrypted under, mode 0600; not there when the key comes from the environment
    manifest.json    the cursor, and the SHA-256 of each file

To restore, stop the MDMS, put `store.duckdb`, `periods/`, `kms/` and `kms.key` back into HOME/mdms, and start it: it
goes on at the copy's cursor, and opens an epoch in which every symmetric key is new. What the copy lacks of projects,
members and deliveries is gone; `bcami kms status` and `kms audit` say that the audit log is behind its anchor.

A backup contains the keys that were not erased when it was made; who destroys old keys for good destroys old backups
too.
"""

import json
import os
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Final

from bcami.errors import EnvironmentFault, InputError
from bcami.mdms.keyring import PeriodKeyring
from bcami.mdms.kms_store import KMS_KEY_NAME, KMS_STORE_NAME, KmsStore
from bcami.mdms.records import BackupRow
from bcami.mdms.store import MdmsStore

STORE_NAME: Final = "store.duckdb"
PERIODS_NAME: Final = "periods"
MANIFEST_NAME: Final = "manifest.json"


def make_backup(
    store: MdmsStore,
    keyring: PeriodKeyring,
    folder: Path,
    now_ms: int,
    *,
    kms: KmsStore | None = None,
    kms_key: Path | None = None,
) -> BackupRow:
    """Make a backup in a new folder, durably, and record it; the folder is there whole or not at all.

    `kms_key` is the file with the key of the store of symmetric keys; left out when there is none.

    Raises InputError when the folder exists, EnvironmentFault when the disk refuses.
    """
    if folder.exists():
        raise InputError("the folder exists already", where=str(folder), do="name a new folder for each backup")
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / PERIODS_NAME).mkdir(parents=True, mode=0o700)
        partial.chmod(0o700)
        # Keys first: those that the copied store still needs cannot be erased before. Then again: new ones since.
        _copy_keys(keyring, partial / PERIODS_NAME)
        cursor = store.copy_to(partial / STORE_NAME)
        _copy_keys(keyring, partial / PERIODS_NAME)
        if kms is not None:
            kms.copy_to(partial / KMS_STORE_NAME)
        if kms_key is not None and kms_key.exists():
            _write_private(partial / KMS_KEY_NAME, kms_key.read_bytes())
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        manifest = {
            "height": cursor.height,
            "header_hash": cursor.header_hash.hex(),
            "time_ms": cursor.time_ms,
            "made_ms": now_ms,
            "files": {path.relative_to(partial).as_posix(): _seal(path) for path in files},
        }
        (partial / MANIFEST_NAME).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        folders = [path for path in partial.iterdir() if path.is_dir()]
        for path in (partial / MANIFEST_NAME, *folders, partial):
            _sync(path)
        partial.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        raise EnvironmentFault(f"the backup cannot be written: {error}", where=str(folder)) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    backup = BackupRow(cursor.height, cursor.time_ms, now_ms, str(folder))
    store.record_backup(backup)
    return backup


def check_backup(folder: Path) -> int:
    """Return the height of a backup whose files are all as they were made. Raises InputError."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_bytes())
        files, height = dict(manifest["files"]), int(manifest["height"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError("this is no whole backup", where=str(folder / MANIFEST_NAME)) from None
    for name, expected in files.items():
        path = folder / name
        if not path.is_file() or _digest(path) != expected:
            raise InputError("a file of the backup is damaged or missing", where=str(path), do="use another backup")
    return height


def _copy_keys(keyring: PeriodKeyring, target: Path) -> None:
    for path in sorted(keyring.folder.glob("[0-9]*")):
        copy = target / path.name
        if copy.exists():
            continue
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue  # erased meanwhile: the store is past its need
        _write_private(copy, data)


def _write_private(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


def _seal(path: Path) -> str:
    """Make a file durable and return its digest."""
    path.chmod(0o600)
    _sync(path)
    return _digest(path)


def _digest(path: Path) -> str:
    hashed = sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            hashed.update(part)
    return hashed.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
