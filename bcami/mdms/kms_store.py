"""Where the MDMS keeps its symmetric keys: an LMDB environment, encrypted record by record (design D15).

    value on disk = salt (16 bytes) || AES-256-GCM(key = HKDF(store key, salt), nonce = 0, associated data = table, key)

The store key is 32 bytes in a 0600 file, or in the environment variable BCAMI_KMS_STORE_KEY (64 hexadecimal digits)
where somebody else keeps secrets. Each record has a key of its own, since each write draws a salt; a record does not
open in another's place. Names of tables, HIDs and sizes are not hidden. That a whole file is an old copy cannot be seen
here: that is why each start opens an epoch, and why the head of the audit log is on the chain.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import lmdb
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bcami.crypto import hkdf, keyfile
from bcami.errors import EnvironmentFault, InputError
from bcami.kms import Write
from bcami.kms.records import AUDIT, TABLES
from bcami.model.signing import prefixed
from bcami.units import MIB

KMS_STORE_NAME: Final = "kms"
KMS_KEY_NAME: Final = "kms.key"
"""Below HOME/mdms."""
STORE_KEY_VARIABLE: Final = "BCAMI_KMS_STORE_KEY"
STORE_KEY_BYTES: Final = 32
KEY_KIND: Final = "kms store"
MAP_BYTES: Final = 16 * 1024 * MIB
"""Address space, not disk."""
_META: Final = b"meta"
_SALT_BYTES: Final = 16
_NONCE: Final = bytes(12)


def load_store_key(path: Path, environment: Mapping[str, str] = os.environ) -> bytes:
    """Return the store key: of the environment if it is there, else of the file, which is made when it is missing.

    Raises InputError on a malformed or damaged one, EnvironmentFault when others may read the file.
    """
    given = environment.get(STORE_KEY_VARIABLE)
    if given is not None:
        try:
            key = bytes.fromhex(given)
        except ValueError:
            key = b""
        if len(key) != STORE_KEY_BYTES:
            raise InputError(
                f"{STORE_KEY_VARIABLE} holds no key",
                do=f"set it to {2 * STORE_KEY_BYTES} hexadecimal digits, or unset it to use {path}",
            )
        return key
    if not path.exists():
        keyfile.write_secret(path, KEY_KIND, os.urandom(STORE_KEY_BYTES))
    return keyfile.read_secret(path, KEY_KIND)


class KmsStore:
    """The environment. One process writes it; `apply` may run in another thread than reads."""

    def __init__(self, folder: Path, store_key: bytes, chain: bytes) -> None:
        """Open or make the store of a network.

        Raises InputError when key or network is another, EnvironmentFault when it cannot be opened.
        """
        self._folder = folder
        self._root = hkdf.extract(b"bcami/kms_store/1", store_key)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._environment = lmdb.open(
                str(folder), map_size=MAP_BYTES, max_dbs=len(TABLES) + 1, mode=0o600, metasync=True, sync=True
            )
            self._tables = {name: self._environment.open_db(name) for name in (*TABLES, _META)}
        except (OSError, lmdb.Error) as error:
            raise EnvironmentFault(
                f"the store of the MDMS's symmetric keys cannot be opened: {error}",
                where=str(folder),
                likely="another MDMS of this home is running, or the disk is full",
                do="bcami status; stop the other one, or free some space",
            ) from None
        self._check_network(chain)

    def require(self, policy: str) -> None:
        """Note what the network was made with; nothing else opens this store. Raises InputError."""
        known = dict(self._rows(_META)).get(b"policy")
        if known is None:
            self.apply([Write(_META, b"policy", policy.encode())])
        elif known != policy.encode():
            raise InputError(
                f"the MDMS's symmetric keys were made as {known.decode()}, and the network says {policy}",
                where=str(self._folder),
                likely="[kms] in network.toml was changed: it is fixed when the network is made",
                do="change it back, or make another network (bcami init)",
            )

    def _check_network(self, chain: bytes) -> None:
        known = dict(self._rows(_META)).get(b"chain")
        if known is None:
            self.apply([Write(_META, b"chain", chain)])
        elif known != chain:
            self.close()
            raise InputError(
                "the store of the MDMS's symmetric keys belongs to another network",
                where=str(self._folder),
                do="move the folder away: every meter gets new keys",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._environment.close()

    def apply(self, writes: Iterable[Write]) -> None:
        """Make all changes durable, in order, or none. The audit log only grows. Raises EnvironmentFault."""
        try:
            with self._environment.begin(write=True) as unit:
                for table, key, value in writes:
                    if table == AUDIT and (value is None or unit.get(key, db=self._tables[table]) is not None):
                        raise ValueError("the audit log is append-only")
                    if value is None:
                        unit.delete(key, db=self._tables[table])
                    else:
                        unit.put(key, self._seal(table, key, value), db=self._tables[table])
        except lmdb.Error as error:
            raise EnvironmentFault(
                f"the store of the MDMS's symmetric keys cannot be written: {error}",
                where=str(self._folder),
                likely="the disk is full",
                do="free some space and start the MDMS again",
            ) from None

    def copy_to(self, folder: Path) -> None:
        """Copy the store as it is after some step to a new folder; steps go on meanwhile. Raises OSError."""
        folder.mkdir(mode=0o700)
        try:
            self._environment.copy(str(folder), compact=True)
        except lmdb.Error as error:
            raise OSError(str(error)) from None

    def rows(self, table: bytes) -> list[tuple[bytes, bytes]]:
        """Return a table's keys and values in the order of keys: what `KeyServer.restore` takes.

        Raises InputError when a record does not open.
        """
        return list(self._rows(table))

    def _rows(self, table: bytes) -> Iterator[tuple[bytes, bytes]]:
        with self._environment.begin() as unit, unit.cursor(db=self._tables[table]) as cursor:
            for key, value in cursor:
                yield bytes(key), self._open(table, bytes(key), bytes(value))

    def _record_key(self, salt: bytes) -> AESGCM:
        return AESGCM(hkdf.expand(self._root, salt, STORE_KEY_BYTES))

    def _seal(self, table: bytes, key: bytes, value: bytes) -> bytes:
        salt = os.urandom(_SALT_BYTES)
        return salt + self._record_key(salt).encrypt(_NONCE, value, prefixed(table) + key)

    def _open(self, table: bytes, key: bytes, stored: bytes) -> bytes:
        salt, sealed = stored[:_SALT_BYTES], stored[_SALT_BYTES:]
        try:
            return self._record_key(salt).decrypt(_NONCE, sealed, prefixed(table) + key)
        except InvalidTag:
            raise InputError(
                f"a record of the MDMS's symmetric keys does not open: {table.decode()} of {key[:32].hex()}",
                where=str(self._folder),
                likely="the store key is another one, or the disk changed data",
                do=f"give the right key ({STORE_KEY_VARIABLE}, or its file), or move the folder away",
            ) from None
