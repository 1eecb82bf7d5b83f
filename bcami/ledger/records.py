"""How one record looks on disk: value, then eight bytes of BLAKE3 over table, key and value.

The checksum finds a flip of any byte, in the key as well as in the value, and a record that stands in a wrong table.
It is no protection against somebody who can compute it: against that stand the hashes and certificates of the chain.
"""

import struct
from typing import Final, TypeVar

import msgspec
from blake3 import blake3

from bcami.errors import EnvironmentFault
from bcami.model.block import BlockCertificate, Header, Outcome
from bcami.model.chain import BlockBundle, StateEntry, StateVersion, StoredBatch, TransactionPlace
from bcami.model.consensus import Proposal
from bcami.model.ids import U32

T = TypeVar("T")

CHECKSUM_BYTES: Final = 8
ID_BYTES: Final = 16
"""Bytes of a transaction id in its index: two ids that share them take 2^64 hashes to find, of one's own only."""
PLACE_BYTES: Final = 12
KEY_BYTES_MAX: Final = 511
"""LMDB's limit."""
NO_PLACE: Final = bytes(PLACE_BYTES)

_U64: Final = struct.Struct(">Q")
_PLACE: Final = struct.Struct(">QI")
_BATCH_KEY: Final = struct.Struct(">QH")
_LENGTHS: Final = tuple(length.to_bytes(2, "big") for length in range(512))


class DamagedRecordError(EnvironmentFault):
    """A stored record is not what was written."""

    def __init__(self, table: str, key: bytes, reason: str) -> None:
        super().__init__(
            f"a record of table {table!r} is damaged: {reason}",
            where=f"key {key.hex()}",
            likely="the disk or another program changed the store",
            do="stop the node and rebuild its ledger from its peers",
        )
        self.table = table
        self.key = key
        self.reason = reason


class Table:
    """A table's name and the checksum of its records."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._prefix = b"bcami/record/1/" + name.encode() + b"\x00"

    def checksum(self, key: bytes, value: bytes) -> bytes:
        return blake3(b"".join((self._prefix, _LENGTHS[len(key)], key, value))).digest(CHECKSUM_BYTES)

    def seal(self, key: bytes, value: bytes) -> bytes:
        """Return the stored form of a value."""
        return value + blake3(b"".join((self._prefix, _LENGTHS[len(key)], key, value))).digest(CHECKSUM_BYTES)

    def unseal(self, key: bytes, stored: bytes) -> bytes:
        """Return the value. Raises DamagedRecordError when the checksum does not fit."""
        if len(stored) < CHECKSUM_BYTES:
            raise DamagedRecordError(self.name, key, "shorter than its checksum")
        value = stored[:-CHECKSUM_BYTES]
        if self.checksum(key, value) != stored[-CHECKSUM_BYTES:]:
            raise DamagedRecordError(self.name, key, "checksum does not match")
        return value


META: Final = Table("meta")
"""Name to value: what holds for the ledger as a whole."""
HEADERS: Final = Table("headers")
"""Height to Header."""
BLOCKS: Final = Table("blocks")
"""Height to BlockBody."""
BATCHES: Final = Table("batches")
"""Height and place in `executed` to StoredBatch."""
CERTIFICATES: Final = Table("certificates")
"""Height to BlockCertificate."""
STATE: Final = Table("state")
"""State key to height and value."""
HISTORY: Final = Table("history")
"""State key and height to the height of the version before, and the value written."""
TRANSACTIONS: Final = Table("transactions")
"""First bytes of a transaction id to the place of its first outcome; the newest are pending (see `index`)."""
SIGNERS: Final = Table("signers")
"""Signer to the place of its newest transaction."""
LINKS: Final = Table("links")
"""Height to the place of the same signer's transaction before, for each outcome: the chain that `by_signer` walks."""
UNDO: Final = Table("undo")
"""Height above the newest certificate to what the keys that the block wrote held before it."""
STAGED: Final = Table("staged")
"""Parts of a snapshot on their way: `b` and height to BlockBundle, `s` and state key to height and value."""
PROMISES: Final = Table("promises")

LEDGER_TABLES: Final = (
    META,
    HEADERS,
    BLOCKS,
    BATCHES,
    CERTIFICATES,
    STATE,
    HISTORY,
    TRANSACTIONS,
    SIGNERS,
    LINKS,
    UNDO,
    STAGED,
)

META_FORMAT: Final = b"format"
META_CHAIN: Final = b"chain"
META_HEAD: Final = b"head"
META_LTHASH: Final = b"lthash"
META_CERTIFIED: Final = b"certified"
META_PRUNED: Final = b"pruned"
META_FOLDED: Final = b"folded"
"""For each slice of the transaction index the height up to which the table has it."""
META_COUNTS: Final = b"counts"
META_OWNER: Final = b"owner"
META_SNAPSHOT: Final = b"snapshot"
"""Height of the snapshot that was installed last."""
LEDGER_FORMAT: Final = b"bcami ledger 2"
PROMISES_FORMAT: Final = b"bcami promises 1"


def height_key(height: int) -> bytes:
    return _U64.pack(height)


def height_of(key: bytes) -> int:
    """Return the height that a key or value of at least eight bytes starts with."""
    return int.from_bytes(key[:8], "big")


def batch_key(height: int, place: int) -> bytes:
    return _BATCH_KEY.pack(height, place)


def pack_place(height: int, index: int) -> bytes:
    return _PLACE.pack(height, index)


def unpack_place(data: bytes) -> TransactionPlace:
    return TransactionPlace(*_PLACE.unpack(data))


def pack_state(value: bytes, height: int) -> bytes:
    return _U64.pack(height) + value


def unpack_state(data: bytes) -> StateEntry:
    return StateEntry(data[8:], height_of(data))


def history_prefix(key: bytes) -> bytes:
    return _LENGTHS[len(key)] + key


def staged_block_key(height: int) -> bytes:
    return b"b" + height_key(height)


def staged_state_key(key: bytes) -> bytes:
    return b"s" + key


def pack_version(previous: int, value: bytes | None) -> bytes:
    return _U64.pack(previous) + (b"\x00" if value is None else b"\x01" + value)


def unpack_version(height: int, data: bytes) -> tuple[int, StateVersion]:
    """Return the height of the version before (0: none) and the version."""
    return height_of(data), StateVersion(height, data[9:] if data[8:9] == b"\x01" else None)


class BlockBody(msgspec.Struct, frozen=True, array_like=True):
    """A ChainBlock without its header."""

    proposal: Proposal
    executed: tuple[U32, ...]
    outcomes: tuple[Outcome, ...]


HEADER_DECODER: Final[msgspec.msgpack.Decoder[Header]] = msgspec.msgpack.Decoder(Header)
BODY_DECODER: Final[msgspec.msgpack.Decoder[BlockBody]] = msgspec.msgpack.Decoder(BlockBody)
BUNDLE_DECODER: Final[msgspec.msgpack.Decoder[BlockBundle]] = msgspec.msgpack.Decoder(BlockBundle)
UNDO_DECODER: Final[msgspec.msgpack.Decoder[list[tuple[bytes, StateEntry | None]]]] = msgspec.msgpack.Decoder(
    list[tuple[bytes, StateEntry | None]]
)
BATCH_DECODER: Final[msgspec.msgpack.Decoder[StoredBatch]] = msgspec.msgpack.Decoder(StoredBatch)
CERTIFICATE_DECODER: Final[msgspec.msgpack.Decoder[BlockCertificate]] = msgspec.msgpack.Decoder(BlockCertificate)


def decoded(table: Table, key: bytes, value: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T:
    """Return the record. Raises DamagedRecordError when the bytes are none of this type."""
    try:
        return decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedRecordError(table.name, key, f"not a record of this table: {error}") from None
