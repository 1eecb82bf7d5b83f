"""The private keys of the MDMS's periods, in files of their own, until they are erased (protocol 2.5).

periods/00000007.key        Pr and the KEM key of period 7, from before its registration leaves until it is erased
periods/00000008.issuance   an issuance under way: resumed byte by byte after a crash (protocol 2.3)
"""

import os
from enum import Enum
from pathlib import Path
from typing import Final, assert_never

from bcami.client.issuance import ISSUANCE_CODEC, Draft, IssuanceRecord, Prepared
from bcami.crypto.hpke import KemSecretKey
from bcami.crypto.keyfile import damaged_key, read_secret, write_secret
from bcami.crypto.keys import SecretKey
from bcami.errors import MalformedError

PERIOD_KIND: Final = "mdms period"
ISSUANCE_KIND: Final = "mdms period issuance"
_SCALAR_BYTES: Final = 32


class IssuanceEnd(Enum):
    """How the registration of a period ended."""

    REGISTERED = "registered"
    REJECTED = "rejected"
    """A block says no: it can never be executed."""
    ABANDONED = "abandoned"
    """Nodes refused it before ordering: it may still be executed."""


class PeriodKeyring:
    """The folder of period keys. The one MDMS process of a home owns it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._kem: dict[int, KemSecretKey] = {}

    @property
    def folder(self) -> Path:
        return self._folder

    def kem(self, number: int) -> KemSecretKey | None:
        """Return the KEM key of a period, None when it is not here. Raises InputError when the file is damaged."""
        held = self._kem.get(number)
        if held is None:
            for path in (self._key_path(number), self._abandoned_path(number)):
                if path.exists():
                    held = self._kem[number] = KemSecretKey.from_scalar_bytes(_read(path)[_SCALAR_BYTES:])
                    break
        return held

    def signing(self, number: int) -> SecretKey | None:
        """Return Pr of a period, None when it is not here."""
        path = self._key_path(number)
        return SecretKey.from_scalar_bytes(_read(path)[:_SCALAR_BYTES]) if path.exists() else None

    def numbers(self) -> list[int]:
        """Return the periods whose keys are here, registered or under way, ascending."""
        return sorted(int(path.stem) for path in self._folder.glob("[0-9]*.key"))

    def abandoned(self) -> list[int]:
        """Return the periods whose registration was given up without an outcome, ascending."""
        return sorted(int(path.stem) for path in self._folder.glob("[0-9]*.abandoned"))

    def current(self) -> int | None:
        """Return the newest period that is not still being issued."""
        under_way = self.issuance()
        open_number = under_way.session if under_way is not None else None
        return max((number for number in self.numbers() if number != open_number), default=None)

    def issuance(self) -> IssuanceRecord | None:
        """Return the issuance that is under way."""
        for path in sorted(self._folder.glob("[0-9]*.issuance")):
            try:
                return ISSUANCE_CODEC.decode(read_secret(path, ISSUANCE_KIND))
            except MalformedError:
                raise damaged_key(path) from None
        return None

    def save_issuance(self, record: IssuanceRecord) -> None:
        """Make an issuance durable; with a whole key, the key's file first."""
        match record:
            case Prepared():
                if not self._key_path(record.session).exists():
                    write_secret(self._key_path(record.session), PERIOD_KIND, record.key + record.kem_secret)
            case Draft():
                pass
        path = self._issuance_path(record.session)
        write_secret(path, ISSUANCE_KIND, ISSUANCE_CODEC.encode(record), replace=True)

    def finish_issuance(self, number: int, end: IssuanceEnd) -> None:
        """End an issuance: the key stays if the chain registered it or still may, and is destroyed if it refused."""
        match end:
            case IssuanceEnd.REGISTERED:
                pass
            case IssuanceEnd.REJECTED:
                self.erase(number)
            case IssuanceEnd.ABANDONED:
                self._key_path(number).replace(self._abandoned_path(number))
                _sync(self._folder)
            case _:
                assert_never(end)
        _destroy(self._issuance_path(number))

    def erase(self, number: int) -> None:
        """Destroy a period's private keys, here and in the file. Nothing happens when they are gone already."""
        held = self._kem.pop(number, None)
        if held is not None:
            held.destroy()
        _destroy(self._key_path(number))
        _destroy(self._abandoned_path(number))

    def _key_path(self, number: int) -> Path:
        return self._folder / f"{number:08d}.key"

    def _issuance_path(self, number: int) -> Path:
        return self._folder / f"{number:08d}.issuance"

    def _abandoned_path(self, number: int) -> Path:
        return self._folder / f"{number:08d}.abandoned"


def _read(path: Path) -> bytes:
    secret = read_secret(path, PERIOD_KIND)
    if len(secret) != 2 * _SCALAR_BYTES:
        raise damaged_key(path)
    return secret


def _destroy(path: Path) -> None:
    """Overwrite a file and remove it, durably. What the disk itself keeps of old blocks is out of reach here."""
    try:
        with path.open("r+b") as file:
            file.write(bytes(os.fstat(file.fileno()).st_size))
            file.flush()
            os.fsync(file.fileno())
    except FileNotFoundError:
        return
    path.unlink()
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
