"""What the MDMS's HTTP endpoints work with."""

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bcami.crypto.hid import hid
from bcami.mdms.backup import make_backup
from bcami.mdms.export import write_parquet
from bcami.mdms.keyring import PeriodKeyring
from bcami.mdms.kms_service import KmsService
from bcami.mdms.kms_store import KMS_KEY_NAME
from bcami.mdms.metrics import MdmsMetrics
from bcami.mdms.records import START_S_MAX, BackupRow
from bcami.mdms.store import MdmsStore, ReadingQueries
from bcami.model.ids import HASH_BYTES


@dataclass(frozen=True, slots=True)
class MdmsService:
    """One MDMS as its endpoints see it."""

    pid: int
    url: str
    folder: Path
    """HOME/mdms; relative paths of exports and backups are below it."""
    store: MdmsStore
    queries: ReadingQueries
    keyring: PeriodKeyring
    metrics: MdmsMetrics
    network_key: bytes
    operator_token: str
    now_ms: Callable[[], int]
    released_height: Callable[[], int]
    following: Callable[[], bool]
    """False when following the chain ended with an error."""
    kms: KmsService | None = None

    def __repr__(self) -> str:
        return f"MdmsService({self.url})"

    def is_operator(self, authorization: str | None) -> bool:
        """Tell whether an Authorization header shows the operator's token."""
        shown = (authorization or "").removeprefix("Bearer ")
        return hmac.compare_digest(shown.encode(), self.operator_token.encode())

    def status(self) -> dict[str, Any]:
        cursor, counts = self.store.cursor, self.store.counts
        return {
            "pid": self.pid,
            "url": self.url,
            "height": cursor.height,
            "block_hash": cursor.header_hash.hex(),
            "released_height": max(cursor.height, self.released_height()),
            "acknowledged_height": self.store.acknowledged_height,
            "following": self.following(),
            "period": self.keyring.current(),
            "meters": counts.meters,
            "readings": counts.readings,
            "repeated_equal": counts.repeated_equal,
            "repeated_different": counts.repeated_different,
            "undecryptable": counts.unreadable,
        }

    def hid_of(self, name: str) -> bytes:
        """Return the HID of a meter id, or of its own hexadecimal form."""
        try:
            given = bytes.fromhex(name)
        except ValueError:
            given = b""
        return given if len(given) == HASH_BYTES else hid(self.network_key, name)

    def names_of(self, hids: list[bytes]) -> dict[bytes, str]:
        """Return the meter ids of those that the directory names."""
        return self.queries.names_of(hids)

    def add_to_directory(self, meter_ids: list[str]) -> int:
        """Name meters; return how many names were new."""
        return self.store.add_to_directory([(hid(self.network_key, name), name) for name in meter_ids])

    def export(self, path: Path) -> tuple[Path, int]:
        """Write all readings with their flags; return the file and how many there are."""
        target = self.folder / path
        batches = self.queries.sorted_readings(None, 0, START_S_MAX + 1, flags=True)
        return target, write_parquet(batches, target)

    def backup(self, path: Path) -> BackupRow:
        kms = None if self.kms is None else self.kms.store
        key = None if kms is None else self.folder / KMS_KEY_NAME
        return make_backup(self.store, self.keyring, self.folder / path, self.now_ms(), kms=kms, kms_key=key)
