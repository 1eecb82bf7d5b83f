"""Follows verified blocks: what they say of meters, sessions and periods, and the readings in their usage reports.

The contracts' state is derived from transactions whose outcome is `valid`, and from nothing else. One `Intake` gathers
consecutive blocks into a unit of work; it looks up in the store and in what it gathered itself, and changes neither
the store nor anything that outlives it except the cache of HPKE contexts.
"""

from typing import Any, Final, assert_never

from bcami.codec import Codec
from bcami.crypto.roster import Roster
from bcami.crypto.verification import executed_transactions, is_pruned
from bcami.errors import MalformedError
from bcami.mdms.opening import ReportColumns, ReportOpener
from bcami.mdms.records import (
    AcknowledgementRow,
    Cursor,
    MeterRow,
    PeriodRow,
    ReportFault,
    SessionRow,
    UnitOfWork,
    UnreadableReport,
)
from bcami.mdms.store import MdmsStore
from bcami.model.block import header_hash
from bcami.model.chain import BlockBundle
from bcami.model.reasons import Reason
from bcami.model.registration import (
    AcknowledgeArgument,
    EnrolArgument,
    MdmsRegisterArgument,
    RegisterArgument,
    RevokeArgument,
    period_key_id,
)
from bcami.model.transaction import ARGUMENT_BYTES_MAX, Transaction

_USAGE: Final = "usage"
_Argument = EnrolArgument | RevokeArgument | RegisterArgument | MdmsRegisterArgument | AcknowledgeArgument
_CODECS: Final[dict[tuple[str, str], Codec[Any]]] = {
    ("registration", "enrol"): Codec(EnrolArgument, ARGUMENT_BYTES_MAX),
    ("registration", "revoke"): Codec(RevokeArgument, ARGUMENT_BYTES_MAX),
    ("registration", "register"): Codec(RegisterArgument, ARGUMENT_BYTES_MAX),
    ("mdms", "register"): Codec(MdmsRegisterArgument, ARGUMENT_BYTES_MAX),
    ("mdms", "acknowledge"): Codec(AcknowledgeArgument, ARGUMENT_BYTES_MAX),
}


class BlockUnusableError(Exception):
    """A certified block cannot be followed in the form in which a node gave it."""

    def __init__(self, height: int, what: str, *, pruned: bool = False) -> None:
        super().__init__(f"block {height}: {what}")
        self.height = height
        self.pruned = pruned
        """True when only usage payloads are missing, which is what pruning does (protocol 7.2)."""


class Intake:
    """Gathers blocks that follow the store's cursor; each must have been verified before."""

    def __init__(self, roster: Roster, store: MdmsStore, opener: ReportOpener) -> None:
        self._roster = roster
        self._store = store
        self._opener = opener
        self._unit = UnitOfWork(store.cursor, store.cursor)
        self._columns = ReportColumns()
        self._meters: dict[bytes, int] = {}
        self._sessions: dict[tuple[bytes, int], SessionRow] = {}
        self._periods: dict[int, PeriodRow] = {}

    @property
    def cursor(self) -> Cursor:
        """Where the unit of work will leave the store."""
        return self._unit.after

    def take(self, bundle: BlockBundle, *, accept_pruned: bool = False) -> None:
        """Add a verified block. Raises BlockUnusableError and changes nothing when a payload is missing or wrong."""
        header = bundle.block.header
        assert header.height == self.cursor.height + 1
        executed = [tx for _, _, tx in executed_transactions(bundle.block, bundle.batches, self._roster.quorum)]
        _require_whole(header.height, executed, accept_pruned=accept_pruned)
        outcomes = bundle.block.outcomes
        usage_height = self.cursor.usage_height
        arguments: dict[int, _Argument | None] = {}
        for place, tx in enumerate(executed):
            if tx.contract == _USAGE:
                usage_height = header.height
            elif outcomes[place].reason is Reason.VALID:
                arguments[place] = _decode(tx, header.height)
        for place, tx in enumerate(executed):
            if outcomes[place].reason is not Reason.VALID:
                continue
            if tx.contract == _USAGE:
                self._take_usage(tx, outcomes[place].transaction_id, header.height, place)
            else:
                self._take_other(tx, arguments[place], header.height, header.time_ms)
        self._unit.after = Cursor(header.height, header_hash(header), header.time_ms, usage_height)
        self._unit.blocks += 1

    def finish(self) -> UnitOfWork:
        """Return the unit of work over all blocks taken."""
        self._unit.readings, impossible = self._columns.finish()
        self._unit.unreadable += impossible
        return self._unit

    def _take_usage(self, tx: Transaction, tx_id: bytes, height: int, place: int) -> None:
        meter = self._meter_number(tx.signer)
        opened = self._open(tx) if meter is not None else ReportFault.UNKNOWN_HID
        fault: ReportFault | None
        if isinstance(opened, ReportFault):
            fault, content = opened, tx.argument
        else:
            fault, content = None, opened
        origin = UnreadableReport(
            height,
            place,
            tx_id,
            tx.signer,
            tx.session,
            tx.sequence,
            tx.timestamp_ms,
            fault or ReportFault.MALFORMED_REPORT,
            content,
        )
        if fault is None and meter is not None:
            fault = self._columns.add(meter, origin)
        if fault is not None:
            self._unit.unreadable.append(origin._replace(fault=fault))

    def _open(self, tx: Transaction) -> bytes | ReportFault:
        session = self._session(tx.signer, tx.session)
        if session is None:
            return ReportFault.UNKNOWN_SESSION
        if is_pruned(tx):
            return ReportFault.PRUNED
        return self._opener.open(tx, session, self._period(session.period))

    def _take_other(self, tx: Transaction, argument: _Argument | None, height: int, time_ms: int) -> None:
        match argument:
            case EnrolArgument():
                self._enrol(argument, height)
            case RevokeArgument():
                self._unit.revoked.append((argument.hid, height))
            case RegisterArgument():
                self._register(tx, argument, height)
            case MdmsRegisterArgument():
                self._open_period(tx, argument, height, time_ms)
            case AcknowledgeArgument():
                row = AcknowledgementRow(tx.session, tx.sequence, argument.height, height)
                self._unit.acknowledgements.append(row)
            case None:
                return
            case _:
                assert_never(argument)

    def _enrol(self, argument: EnrolArgument, height: int) -> None:
        if self._meter_number(argument.hid) is None:
            number = self._store.counts.meters + len(self._meters) + 1
            self._meters[argument.hid] = number
            self._unit.meters.append(MeterRow(number, argument.hid, height))

    def _register(self, tx: Transaction, argument: RegisterArgument, height: int) -> None:
        row = SessionRow(
            tx.signer,
            tx.sequence,
            argument.encapsulation,
            argument.period,
            height,
            argument.public_key,
            argument.kem_key,
        )
        self._sessions[row.hid, row.number] = row
        self._unit.sessions.append(row)

    def _open_period(self, tx: Transaction, argument: MdmsRegisterArgument, height: int, time_ms: int) -> None:
        key_id = period_key_id(argument.kem_key)
        row = PeriodRow(tx.sequence, key_id, argument.kem_key, argument.public_key, time_ms, 0, height, erased=False)
        self._periods[row.number] = row
        self._unit.periods.append(row)

    def _meter_number(self, hid: bytes) -> int | None:
        number = self._store.meter_number(hid)
        return self._meters.get(hid) if number is None else number

    def _session(self, hid: bytes, number: int) -> SessionRow | None:
        session = self._store.session(hid, number)
        return self._sessions.get((hid, number)) if session is None else session

    def _period(self, number: int) -> PeriodRow | None:
        period = self._store.period(number)
        return self._periods.get(number) if period is None else period


def _decode(tx: Transaction, height: int) -> _Argument | None:
    """Return the argument of a transaction that the MDMS has a part in, None of any other."""
    codec = _CODECS.get((tx.contract, tx.function))
    if codec is None:
        return None
    try:
        argument: _Argument = codec.decode(tx.argument)
    except MalformedError as error:
        raise BlockUnusableError(height, f"{tx.contract}.{tx.function}: {error.what}") from None
    return argument


def _require_whole(height: int, executed: list[Transaction], *, accept_pruned: bool) -> None:
    """Check that every payload is there; of usage only when `accept_pruned` is not set."""
    for tx in executed:
        if not tx.argument and is_pruned(tx):
            if tx.contract != _USAGE:
                raise BlockUnusableError(height, f"{tx.contract}.{tx.function} came without its argument")
            if not accept_pruned:
                raise BlockUnusableError(height, "usage payloads are pruned", pruned=True)
