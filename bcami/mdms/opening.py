"""Opens sealed reports and turns many of them into columns at once.

One HPKE context serves all reports of a session (design D8). Contexts are derived from the session's encapsulation in
the store and the period's private key, kept in memory for the sessions in use, and never stored.
"""

import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from bcami.crypto.hpke import KemSecretKey, OpenError, OpeningContext, setup_receiver
from bcami.mdms.records import (
    MINUTE_S,
    START_S_MAX,
    PeriodRow,
    ReadingColumns,
    ReportFault,
    SessionRow,
    UnreadableReport,
)
from bcami.model.registration import usage_aad, usage_info
from bcami.model.report import READING_BYTES, READINGS_MAX
from bcami.model.transaction import Transaction

CONTEXTS_MAX: Final = 16_384
"""Sessions whose context is kept: about 8 MB. One that fell out costs one key agreement when it is used again."""
_HEAD: Final = struct.Struct(">HH")


class ReportOpener:
    """Opens the reports of sessions whose period's private key is here."""

    def __init__(self, chain: bytes, private_key: Callable[[int], KemSecretKey | None]) -> None:
        """`private_key` returns the KEM key of a period, None when it is not here."""
        self._chain = chain
        self._private_key = private_key
        self._contexts: OrderedDict[tuple[bytes, int], tuple[int, OpeningContext]] = OrderedDict()

    def open(self, tx: Transaction, session: SessionRow, period: PeriodRow | None) -> bytes | ReportFault:
        """Return the plaintext of a usage transaction's argument."""
        held = self._contexts.get((tx.signer, tx.session))
        if held is None:
            context = self._set_up(session, period)
            if isinstance(context, ReportFault):
                return context
        else:
            context = held[1]
        aad = usage_aad(self._chain, tx.signer, tx.session, tx.sequence, tx.timestamp_ms)
        try:
            return context.open(tx.sequence, aad, tx.argument)
        except OpenError:
            return ReportFault.NOT_AUTHENTIC

    def forget_period(self, number: int) -> None:
        """Drop every context of a period, so that its reports cannot be opened any more."""
        for key in [key for key, (period, _) in self._contexts.items() if period == number]:
            del self._contexts[key]

    def _set_up(self, session: SessionRow, period: PeriodRow | None) -> OpeningContext | ReportFault:
        secret = None if period is None else self._private_key(period.number)
        if period is None or secret is None:
            return ReportFault.PERIOD_KEY_MISSING
        try:
            info = usage_info(self._chain, session.hid, session.number, period.key_id)
            context = setup_receiver(session.encapsulation, secret, info)
        except OpenError:
            return ReportFault.BAD_ENCAPSULATION
        self._contexts[session.hid, session.number] = (period.number, context)
        if len(self._contexts) > CONTEXTS_MAX:
            self._contexts.popitem(last=False)
        return context


class _Opened(NamedTuple):
    origin: UnreadableReport
    meter: int
    height: int
    place: int
    interval_s: int
    readings: int


class ReportColumns:
    """Collects opened reports; `finish` returns their readings as columns and those that make no sense."""

    def __init__(self) -> None:
        self._reports: list[_Opened] = []
        self._bodies: list[bytes] = []

    def add(self, meter: int, origin: UnreadableReport) -> ReportFault | None:
        """Take a report of `bcami.model.report` in; return the fault when its length is not that of one.

        `origin` says where it stands and holds it as its content; it is the record of it if it makes no sense.
        """
        plaintext = origin.content
        if len(plaintext) < _HEAD.size:
            return ReportFault.MALFORMED_REPORT
        readings, interval_s = _HEAD.unpack_from(plaintext)
        if len(plaintext) != _HEAD.size + readings * READING_BYTES or not 1 <= readings <= READINGS_MAX:
            return ReportFault.MALFORMED_REPORT
        if not interval_s or interval_s % MINUTE_S:
            return ReportFault.OFF_GRID
        self._reports.append(_Opened(origin, meter, origin.height, origin.place, interval_s, readings))
        self._bodies.append(plaintext[_HEAD.size :])
        return None

    def finish(self) -> tuple[ReadingColumns, list[UnreadableReport]]:
        """Return all readings in chain order, and the reports that hold an impossible time."""
        if not self._reports:
            return ReadingColumns.empty(), []
        values = np.frombuffer(b"".join(self._bodies), ">i8").astype(np.int64).reshape(-1, 2)
        facts = np.array([report[1:] for report in self._reports], np.int64)
        report = np.repeat(np.arange(len(facts)), facts[:, 4])
        meter, height, place, interval_s = (facts[report, column] for column in range(4))
        start_s = values[:, 0]
        columns = ReadingColumns(meter, start_s, values[:, 1], interval_s, height, place)
        outside = (start_s < 0) | (start_s > START_S_MAX)
        off_grid = start_s % interval_s != 0
        if not (outside.any() or off_grid.any()):
            return columns, []
        bad = np.zeros(len(facts), np.bool_)
        bad[report[outside | off_grid]] = True
        ranges = set(report[outside].tolist())
        faults = [
            self._reports[place].origin._replace(
                fault=ReportFault.TIME_OUT_OF_RANGE if place in ranges else ReportFault.OFF_GRID
            )
            for place in np.flatnonzero(bad).tolist()
        ]
        return columns.take(~bad[report]), faults
