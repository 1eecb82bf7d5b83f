"""Files that hold one secret: mode 0600, written whole or not at all, with the kind and a checksum inside.

    {"format": "bcami/secret/1", "kind": "consensus", "secret": "<hex>", "checksum": "<hex>"}

The checksum finds damage; it is no defence against somebody who can write the file. No message quotes the contents.
"""

import contextlib
import hmac
import json
import os
import stat
from hashlib import sha256
from pathlib import Path
from typing import Final

from bcami.errors import EnvironmentFault, InputError
from bcami.model.signing import prefixed

FORMAT: Final = "bcami/secret/1"
FILE_BYTES_MAX: Final = 16 * 1024


def write_secret(path: Path, kind: str, secret: bytes, *, replace: bool = False) -> None:
    """Store a secret durably. Raises InputError when the file exists and `replace` is not set."""
    record = {"format": FORMAT, "kind": kind, "secret": secret.hex(), "checksum": _checksum(kind, secret)}
    write_private(path, json.dumps(record, indent=1).encode() + b"\n", replace=replace)


def read_secret(path: Path, kind: str) -> bytes:
    """Return the secret of a file that `write_secret` made.

    Raises InputError when the file is missing, damaged or of another kind, EnvironmentFault when others may read it.
    """
    record = _parse(path, _read_private(path))
    if record["kind"] != kind:
        raise InputError(
            f"the key file holds a {record['kind']!r} key, not a {kind!r} key",
            where=str(path),
            likely="two key files were swapped",
            do="put each key file back in its place",
        )
    try:
        secret = bytes.fromhex(record["secret"])
    except ValueError:
        raise _damaged(path, "its secret is not hexadecimal") from None
    if not hmac.compare_digest(_checksum(kind, secret).encode(), record["checksum"].encode()):
        raise _damaged(path, "its checksum does not match")
    return secret


def write_private(path: Path, data: bytes, *, replace: bool = False) -> None:
    """Write a file of mode 0600 so that, after a crash, it is there whole or not at all.

    Raises InputError when it exists and `replace` is not set, EnvironmentFault when the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        _write_durably(temporary, data)
        if replace:
            temporary.replace(path)
        else:
            os.link(temporary, path)  # fails when the name is taken; a rename would overwrite a key
        _sync_folder(path.parent)
    except FileExistsError:
        raise InputError(
            "the key file exists already and is not overwritten",
            where=str(path),
            do="move the old key away first if it is really to be replaced",
        ) from None
    except OSError as error:
        raise EnvironmentFault(
            f"the key file cannot be written: {error.strerror}", where=str(path), do="check the folder and the disk"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write_durably(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)  # left behind by a crash of a process with this id
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_private(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_IMODE(status.st_mode) & 0o077:
                raise EnvironmentFault(
                    f"others may read this key file (mode {stat.S_IMODE(status.st_mode):04o})",
                    where=str(path),
                    likely="it was copied without its permissions",
                    do=f"chmod 600 {path}; if others had access to this machine, make a new key",
                )
            return file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise InputError(
            f"the key file cannot be read: {error.strerror}",
            where=str(path),
            likely="the network home is another one, or was not initialised",
            do="check --home, or restore the file from its backup",
        ) from None


def _parse(path: Path, data: bytes) -> dict[str, str]:
    if len(data) > FILE_BYTES_MAX:
        raise _damaged(path, f"it is longer than {FILE_BYTES_MAX} bytes")
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        raise _damaged(path, "it is not JSON") from None
    names = ("format", "kind", "secret", "checksum")
    if not isinstance(record, dict) or not all(isinstance(record.get(name), str) for name in names):
        raise _damaged(path, f"it needs the entries {', '.join(names)}")
    if record["format"] != FORMAT:
        raise _damaged(path, f"its format is not {FORMAT}")
    return record


def _damaged(path: Path, why: str) -> InputError:
    return InputError(
        f"the key file is damaged: {why}",
        where=str(path),
        likely="it was edited, truncated or hit by a disk error",
        do="restore it from its backup",
    )


def damaged_key(path: Path) -> InputError:
    """Return the error for a file whose checksum is right and whose content is no key."""
    return _damaged(path, "its secret is no private key of secp256k1")


def _checksum(kind: str, secret: bytes) -> str:
    return sha256(b"bcami/secret/1" + prefixed(kind.encode()) + prefixed(secret)).hexdigest()
