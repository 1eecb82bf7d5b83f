"""The durable vote records (protocol 5.2), and what is restored from them.

    vote/accepted/<height><view>   pre-prepare with its proposal, and the own PREPARE on it
    vote/prepared/<height><view>   the strong − 1 prepares that make it prepared, and the own COMMIT
    vote/checkpoint/<height>       the own CHECKPOINT
    vote/view_change               the newest own VIEW-CHANGE: never act in a lower view again
    vote/new_view                  the NEW-VIEW of the view entered last
    vote/floor                     certificate of the highest height whose votes were given up, written with their
                                   deletion: without one of the two, a VIEW-CHANGE after a loss of power would prove
                                   nothing of a height that was certified (protocol 5.2). And no vote is made before
                                   the ledger stands there again, when it was lost and is rebuilt (protocol 6.3)

Heights and views are 8 bytes big-endian. Records of a height go only when the height is below min(certified, durably
executed).
"""

from collections.abc import Iterable
from typing import Annotated, Final

import msgspec

from bcami.codec import Codec, encode
from bcami.model.block import BlockCertificate
from bcami.model.consensus import Checkpoint, Commit, NewView, PhaseVote, Prepare, PrePrepare, ViewChange
from bcami.model.ids import REPLICAS_MAX
from bcami.model.signing import u64
from bcami.pbft.effects import Forget, Outbox, Persist
from bcami.units import MIB

RECORD_BYTES_MAX: Final = 16 * MIB

ACCEPTED: Final = b"vote/accepted/"
PREPARED: Final = b"vote/prepared/"
CHECKPOINT: Final = b"vote/checkpoint/"
VIEW_CHANGE: Final = b"vote/view_change"
NEW_VIEW: Final = b"vote/new_view"
FLOOR: Final = b"vote/floor"


class AcceptedRecord(msgspec.Struct, frozen=True, array_like=True):
    pre_prepare: PrePrepare
    prepare: Prepare | None
    """None at the primary, which sends no PREPARE, and where the proposal was learnt without voting for it."""


class PreparedRecord(msgspec.Struct, frozen=True, array_like=True):
    prepares: Annotated[tuple[PhaseVote, ...], msgspec.Meta(max_length=REPLICAS_MAX)]
    commit: Commit | None
    """None when the replica had left the view before it was prepared."""


_ACCEPTED_CODEC: Final[Codec[AcceptedRecord]] = Codec(AcceptedRecord, RECORD_BYTES_MAX)
_PREPARED_CODEC: Final[Codec[PreparedRecord]] = Codec(PreparedRecord, RECORD_BYTES_MAX)
_CHECKPOINT_CODEC: Final[Codec[Checkpoint]] = Codec(Checkpoint, RECORD_BYTES_MAX)
_VIEW_CHANGE_CODEC: Final[Codec[ViewChange]] = Codec(ViewChange, RECORD_BYTES_MAX)
_FLOOR_CODEC: Final[Codec[BlockCertificate]] = Codec(BlockCertificate, RECORD_BYTES_MAX)
_NEW_VIEW_CODEC: Final[Codec[NewView]] = Codec(NewView, RECORD_BYTES_MAX)


class Restored(msgspec.Struct, frozen=True):
    """What a node found on its disk when it started."""

    records: Iterable[tuple[bytes, bytes]]
    """What earlier `Persist` effects stored and `Forget` did not remove; other keys are ignored."""
    executed: int
    """Highest height durable in the ledger."""
    stable: BlockCertificate | None
    """Certificate of the highest executed height that has one."""
    lanes: tuple[int, ...]
    """Last executed batch number of each collector."""
    headers: tuple[tuple[int, bytes], ...] = ()
    """(height, header hash) above the stable one: a crash may have come between the block and its CHECKPOINT."""
    is_amnesiac: bool = False
    """The records are lost: the replica follows what others decide and certify, and never says anything of its own."""


EMPTY: Final = ()


def fresh(replicas: int) -> Restored:
    """Return what a node of a new chain starts from."""
    return Restored(EMPTY, 0, None, (0,) * replicas)


class VoteRecords(msgspec.Struct, frozen=True):
    """The records, decoded."""

    accepted: dict[tuple[int, int], AcceptedRecord]
    """By (height, view)."""
    prepared: dict[tuple[int, int], PreparedRecord]
    checkpoints: dict[int, Checkpoint]
    view_change: ViewChange | None
    new_view: NewView | None
    floor: BlockCertificate | None = None


def restored_with(floor: BlockCertificate | None, restored: Restored) -> Restored:
    """Return what was restored, with the certificate of the floor where the ledger has none so high."""
    known = 0 if restored.stable is None else restored.stable.height
    if floor is None or not known < floor.height <= restored.executed:
        return restored
    return msgspec.structs.replace(restored, stable=floor)


def votes_in(certificate: BlockCertificate | None) -> list[Checkpoint]:
    """Return the CHECKPOINTs that a certificate is made of; the own one may be the only copy that is left."""
    if certificate is None:
        return []
    epoch, height, hash_of = certificate.epoch, certificate.height, certificate.header_hash
    return [Checkpoint(epoch, height, hash_of, vote.replica, vote.signature) for vote in certificate.votes]


def read_records(records: Iterable[tuple[bytes, bytes]]) -> VoteRecords:
    """Decode vote records.

    Raises MalformedError when one is damaged: a replica that may have forgotten a vote must not vote (protocol 6.3).
    """
    accepted: dict[tuple[int, int], AcceptedRecord] = {}
    prepared: dict[tuple[int, int], PreparedRecord] = {}
    checkpoints: dict[int, Checkpoint] = {}
    view_change: ViewChange | None = None
    new_view: NewView | None = None
    floor: BlockCertificate | None = None
    for key, value in records:
        if key.startswith(ACCEPTED):
            accepted[_place(key, ACCEPTED)] = _ACCEPTED_CODEC.decode(value)
        elif key.startswith(PREPARED):
            prepared[_place(key, PREPARED)] = _PREPARED_CODEC.decode(value)
        elif key.startswith(CHECKPOINT):
            vote = _CHECKPOINT_CODEC.decode(value)
            checkpoints[vote.height] = vote
        elif key == VIEW_CHANGE:
            view_change = _VIEW_CHANGE_CODEC.decode(value)
        elif key == NEW_VIEW:
            new_view = _NEW_VIEW_CODEC.decode(value)
        elif key == FLOOR:
            floor = _FLOOR_CODEC.decode(value)
    return VoteRecords(accepted, prepared, checkpoints, view_change, new_view, floor)


def _place(key: bytes, prefix: bytes) -> tuple[int, int]:
    rest = key[len(prefix) :]
    return int.from_bytes(rest[:8], "big"), int.from_bytes(rest[8:], "big")


class VoteLog:
    """Asks for the durable records of own votes, and for their removal when the low watermark passes them."""

    def __init__(self, out: Outbox, restored: VoteRecords) -> None:
        self._out = out
        self._keys: dict[int, dict[bytes, None]] = {}
        self._stable: BlockCertificate | None = None
        self._floor = 0 if restored.floor is None else restored.floor.height
        for height, view in restored.accepted:
            self._remember(height, ACCEPTED + u64(height) + u64(view))
        for height, view in restored.prepared:
            self._remember(height, PREPARED + u64(height) + u64(view))
        for height in restored.checkpoints:
            self._remember(height, CHECKPOINT + u64(height))

    def accepted(self, pre_prepare: PrePrepare, prepare: Prepare | None) -> None:
        key = ACCEPTED + u64(pre_prepare.height) + u64(pre_prepare.view)
        self._put(pre_prepare.height, key, encode(AcceptedRecord(pre_prepare, prepare)))

    def prepared(self, pre_prepare: PrePrepare, prepares: tuple[PhaseVote, ...], commit: Commit | None) -> None:
        key = PREPARED + u64(pre_prepare.height) + u64(pre_prepare.view)
        self._put(pre_prepare.height, key, encode(PreparedRecord(prepares, commit)))

    def checkpoint(self, vote: Checkpoint) -> None:
        self._put(vote.height, CHECKPOINT + u64(vote.height), encode(vote))

    def view_change(self, change: ViewChange) -> None:
        self._raise_floor()
        self._out.add(Persist(VIEW_CHANGE, encode(change)))

    def new_view(self, new_view: NewView) -> None:
        self._out.add(Persist(NEW_VIEW, encode(new_view)))

    def forget_up_to(self, stable: BlockCertificate) -> None:
        """Give up the records of heights that are certified and durably executed (protocol 5.2).

        The ledger may not have the certificate yet, and its own write is not ordered with this one.
        """
        self._stable = stable
        keys = [key for height in sorted(self._keys) if height <= stable.height for key in self._keys.pop(height)]
        if keys:
            self._raise_floor()
            self._out.add(Forget(tuple(keys)))

    def _raise_floor(self) -> None:
        """Write the floor when the low watermark has risen over it, by catch-up perhaps, without a vote given up.

        Before any vote above: a vote that is within the window of a ledger that is lost is outside of the window of
        the one that is being rebuilt, and a VIEW-CHANGE that proves it is refused by all.
        """
        if self._stable is not None and self._stable.height > self._floor:
            self._floor = self._stable.height
            self._out.add(Persist(FLOOR, encode(self._stable)))

    def _put(self, height: int, key: bytes, value: bytes) -> None:
        self._raise_floor()
        self._remember(height, key)
        self._out.add(Persist(key, value))

    def _remember(self, height: int, key: bytes) -> None:
        self._keys.setdefault(height, {})[key] = None
