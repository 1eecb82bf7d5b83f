"""One meter: its keys, its session and its unsettled reports (design D7, D9; protocol 2, 3).

A meter does no I/O. What it wants to be durable it returns as `Write`s, and the rule for whoever drives it is one:
*make them durable before anything that rests on them leaves* (a contribution request on a Draft, a register on a
Prepared, a sealed report on its record). Taking up the stored records again then continues with the same bytes.

Sequence numbers (protocol 3.1, 3.4):
* A number is reserved durably before it is sealed under. After a restart a meter goes on above all that it reserved, so
  a number that was sealed and whose bytes were lost is never sealed again (a GCM nonce would repeat).
* A number stays in flight until its report has a receipt or is abandoned. A meter seals only below oldest + W.
* A meter whose session record is missing or damaged has no session: it opens a new one.

Old keys are destroyed when the new session is opened: in memory by overwriting, in the store by deletion.
"""

import struct
from collections.abc import Iterable
from typing import Final, Self

from bcami.ami.outbox import FACTORY, ISSUANCES, PROGRESS, REPORTS, RESERVED, SESSIONS, Write
from bcami.ami.records import (
    FACTORY_CODEC,
    PROGRESS_CODEC,
    REPORT_CODEC,
    SESSION_CODEC,
    FactoryRecord,
    Progress,
    ReportRecord,
    SessionRecord,
)
from bcami.client.issuance import ISSUANCE_CODEC, Draft, IssuanceRecord, Party, Prepared, Share, draw, prepare_meter
from bcami.client.periods import MdmsPeriod
from bcami.codec import encode
from bcami.crypto.hpke import KemSecretKey, SealingContext
from bcami.crypto.keys import SecretKey
from bcami.model.reasons import Reason
from bcami.model.registration import usage_aad
from bcami.model.signing import u64
from bcami.model.transaction import Transaction, argument_digest, transaction_id

RESERVED_AHEAD: Final = 64
"""Numbers reserved at a time, or a quarter of a small window: so many are lost at most when a meter stops."""
_RESERVED: Final = struct.Struct(">QQ")


class SealedReport:
    """A sealed and signed report on its way."""

    __slots__ = ("attempts", "encoded", "intended_ms", "meter", "report", "sequence", "session", "transaction_id")

    def __init__(
        self,
        meter: "Meter",
        session: int,
        sequence: int,
        encoded: bytes,
        transaction_id: bytes,
        report: bytes,
        intended_ms: int,
        attempts: int,
    ) -> None:
        self.meter = meter
        self.session = session
        self.sequence = sequence
        self.encoded = encoded
        """The transaction, byte by byte as it is sent."""
        self.transaction_id = transaction_id
        self.report = report
        """The plaintext: sealed bytes alone cannot be sealed again."""
        self.intended_ms = intended_ms
        """When it was to be sent, Unix milliseconds."""
        self.attempts = attempts
        """How often these readings were sealed before under a number that came to nothing."""

    @property
    def key(self) -> bytes:
        return self.meter.party.hid + u64(self.session) + u64(self.sequence)


class OpenSession:
    """A session with its keys in memory."""

    __slots__ = ("context", "kem", "key", "next_sequence", "number", "period", "reserved")

    def __init__(self, record: SessionRecord, reserved: int, next_sequence: int) -> None:
        self.number = record.number
        self.period = record.period
        self.key = SecretKey.from_scalar_bytes(record.key)
        self.kem = KemSecretKey.from_scalar_bytes(record.kem_secret)
        self.context = SealingContext.from_secret_bytes(record.context)
        self.reserved = reserved
        """Highest number that is durably reserved."""
        self.next_sequence = next_sequence

    def __repr__(self) -> str:
        return f"OpenSession({self.number}, period {self.period}, next {self.next_sequence})"


class Meter:
    """A meter that knows what a meter would know."""

    __slots__ = (
        "issuance",
        "meter_id",
        "outstanding",
        "party",
        "progress",
        "reserved_ahead",
        "session",
        "stopped",
        "window",
    )

    def __init__(self, meter_id: str, party: Party, progress: Progress) -> None:
        self.meter_id = meter_id
        self.party = party
        self.progress = progress
        self.session: OpenSession | None = None
        self.issuance: IssuanceRecord | None = None
        """A registration under way."""
        self.outstanding: dict[int, SealedReport] = {}
        """By sequence, ascending: sealed in the open session, without a receipt and not abandoned."""
        self.stopped: Reason | None = None
        """Why this meter can do nothing more; its reports stay in the store."""
        self.window: int = party.roster.genesis.parameters.replay_window
        self.reserved_ahead = min(RESERVED_AHEAD, self.window // 4)

    def __repr__(self) -> str:
        return f"Meter({self.party.hid.hex()[:16]}…, {self.session})"

    # What is stored.

    @classmethod
    def restore(
        cls,
        factory: FactoryRecord,
        party: Party,
        progress: bytes | None,
        issuance: bytes | None,
        session: bytes | None,
        reserved: bytes | None,
    ) -> Self:
        """Return the meter as its records have it; None stands for a record that is missing or doubtful."""
        meter = cls(factory.meter_id, party, Progress() if progress is None else PROGRESS_CODEC.decode(progress))
        if issuance is not None:
            meter.issuance = ISSUANCE_CODEC.decode(issuance)
        if session is not None and reserved is not None:
            record = SESSION_CODEC.decode(session)
            number, last = _RESERVED.unpack(reserved)
            if number == record.number:
                meter.session = OpenSession(record, reserved=last, next_sequence=last + 1)
        return meter

    def first_writes(self, factory: FactoryRecord) -> list[Write]:
        """Return what the factory stores of a new meter."""
        hid = self.party.hid
        return [
            Write(FACTORY, hid, FACTORY_CODEC.encode(factory)),
            Write(PROGRESS, hid, PROGRESS_CODEC.encode(self.progress)),
        ]

    def enrolled(self) -> list[Write]:
        """Note that the chain knows this meter."""
        self.progress = Progress(is_enrolled=True, session_high=self.progress.session_high)
        return [Write(PROGRESS, self.party.hid, PROGRESS_CODEC.encode(self.progress))]

    # Registration.

    def begin_session(self, randomness: bytes, chain_session: int = 0) -> list[Write]:
        """Draw a new draft, for a number above every one used here and the one that the chain shows (protocol 2.3)."""
        number = max(self.progress.session_high, chain_session) + 1
        self.progress = Progress(is_enrolled=self.progress.is_enrolled, session_high=number)
        self.issuance = draw(self.party, number, randomness)
        return [
            Write(PROGRESS, self.party.hid, PROGRESS_CODEC.encode(self.progress)),
            self.issuance_write(self.issuance),
        ]

    def prepare(
        self, draft: Draft, shares: Iterable[Share], period: MdmsPeriod, randomness: bytes, timestamp_ms: int
    ) -> Prepared:
        """Combine the key and sign `register`; the result is to be durable before it leaves."""
        return prepare_meter(self.party, draft, list(shares), period, randomness, timestamp_ms)

    def issuance_write(self, record: IssuanceRecord) -> Write:
        self.issuance = record
        return Write(ISSUANCES, self.party.hid, ISSUANCE_CODEC.encode(record))

    def open_session(self, prepared: Prepared) -> tuple[list[Write], list[SealedReport]]:
        """Take up a session whose registration has its receipt, and destroy the old key.

        Returns the writes, and the reports of the old session: they have no receipt, so they are to be sealed again
        (protocol 2.6).
        """
        hid = self.party.hid
        record = SessionRecord(prepared.session, prepared.period, prepared.key, prepared.kem_secret, prepared.context)
        unsettled = list(self.outstanding.values())
        if self.session is not None:
            self.session.key.destroy()
            self.session.kem.destroy()
        self.outstanding = {}
        self.issuance = None
        self.session = OpenSession(record, reserved=self.reserved_ahead, next_sequence=1)
        writes = [
            Write(SESSIONS, hid, SESSION_CODEC.encode(record)),
            Write(RESERVED, hid, _RESERVED.pack(record.number, self.reserved_ahead)),
            Write(ISSUANCES, hid, None),
        ]
        return writes, unsettled

    # Reports.

    @property
    def has_room(self) -> bool:
        """Tell whether a report can be sealed now: a session, a reserved number, and the window (protocol 3.4)."""
        session = self.session
        if session is None or session.next_sequence > session.reserved:
            return False
        return not self.outstanding or session.next_sequence < next(iter(self.outstanding)) + self.window

    def reservation(self) -> Write | None:
        """Return the write that reserves more numbers, when they run low; `reserved` is told when it is durable."""
        session = self.session
        if session is None or session.reserved - session.next_sequence >= self.reserved_ahead // 2:
            return None
        last = session.next_sequence + self.reserved_ahead - 1
        return Write(RESERVED, self.party.hid, _RESERVED.pack(session.number, last))

    def reserved(self, write: Write) -> None:
        """Take up numbers whose reservation is durable now."""
        number, last = _RESERVED.unpack(write.value or b"")
        if self.session is not None and self.session.number == number:
            self.session.reserved = max(self.session.reserved, last)

    def seal(self, report: bytes, intended_ms: int, timestamp_ms: int, attempts: int = 0) -> SealedReport:
        """Seal and sign a report under the next number; only while `has_room`. Its write is `report_write`."""
        session, party = self.session, self.party
        if session is None or not self.has_room:
            raise ValueError("a meter seals only with a session, a reserved number and room in the window")
        roster = party.roster
        sequence = session.next_sequence
        session.next_sequence = sequence + 1
        aad = usage_aad(roster.chain, party.hid, session.number, sequence, timestamp_ms)
        argument = session.context.seal(sequence, aad, report)
        head = ("usage", "report", party.hid, session.number, sequence, timestamp_ms)
        hashed = argument_digest(argument)
        tx_id = transaction_id(Transaction(*head, hashed, argument, ()), roster.chain, roster.epoch)
        encoded = encode(Transaction(*head, hashed, argument, (session.key.sign(tx_id),)))
        sealed = SealedReport(self, session.number, sequence, encoded, tx_id, report, intended_ms, attempts)
        self.outstanding[sequence] = sealed
        return sealed

    def resume_report(self, sequence: int, record: ReportRecord, tx: Transaction) -> SealedReport:
        """Take up a stored report: the same bytes go out again."""
        roster = self.party.roster
        tx_id = transaction_id(tx, roster.chain, roster.epoch)
        sealed = SealedReport(
            self, tx.session, sequence, record.transaction, tx_id, record.report, record.intended_ms, 0
        )
        if self.session is not None and self.session.number == tx.session:
            self.outstanding[sequence] = sealed
        return sealed

    def is_live(self, sealed: SealedReport) -> bool:
        """Tell whether the report still counts on this number: it was neither settled nor sealed again."""
        return self.outstanding.get(sealed.sequence) is sealed

    def forget(self, sealed: SealedReport) -> Write:
        """Give up the number: it has its receipt, or it is abandoned and its readings go under a new one."""
        if self.is_live(sealed):
            del self.outstanding[sealed.sequence]
        return Write(REPORTS, sealed.key, None)


def report_write(sealed: SealedReport) -> Write:
    """Return the write that must be durable before the report is sent."""
    record = ReportRecord(sealed.encoded, sealed.report, sealed.intended_ms)
    return Write(REPORTS, sealed.key, REPORT_CODEC.encode(record))
