"""A meter through any course of sealing, settling, losing and restarting (protocol 3.1, 3.4).

No (session, number) is ever sealed twice, nothing is in flight outside the window, and what was stored comes back with
the same bytes.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bcami.ami.meter import Meter, SealedReport, report_write
from tests.chain import START_MS, entropy
from tests.unit.ami.meters import REPORT, Store, open_meter, prepare, reopen

WINDOW = 64


class MeterCourse(RuleBasedStateMachine):
    meter: Meter

    @initialize()
    def begin(self) -> None:
        self.store = Store()
        self.meter, self.factory, self.cluster = open_meter(self.store, WINDOW)
        self.used: set[tuple[int, int]] = set()
        self.bytes: dict[tuple[int, int], bytes] = {}

    @rule(count=st.integers(1, 40), stored=st.booleans())
    def seal(self, count: int, stored: bool) -> None:
        group: list[SealedReport] = []
        while self.meter.has_room and len(group) < count:
            group.append(self.meter.seal(REPORT, 0, START_MS))
            name = (group[-1].session, group[-1].sequence)
            assert name not in self.used, "sealed twice"
            self.used.add(name)
        writes = [report_write(sealed) for sealed in group]
        reservation = self.meter.reservation()
        if not stored:
            self.restart()  # a crash before the group was durable
            return
        self.store.apply([*writes, reservation] if reservation is not None else writes)
        if reservation is not None:
            self.meter.reserved(reservation)
        self.bytes.update({(sealed.session, sealed.sequence): sealed.encoded for sealed in group})

    @rule(place=st.integers(0, 1000))
    def settle_one(self, place: int) -> None:
        live = list(self.meter.outstanding.values())
        if live:
            self.store.apply([self.meter.forget(live[place % len(live)])])

    @rule()
    def settle_all(self) -> None:
        self.store.apply([self.meter.forget(sealed) for sealed in list(self.meter.outstanding.values())])

    @rule()
    def restart(self) -> None:
        self.meter = reopen(self.store, self.factory, self.cluster)
        for sealed in self.meter.outstanding.values():
            assert sealed.encoded == self.bytes[sealed.session, sealed.sequence]

    @rule()
    def new_session(self) -> None:
        self.store.apply(self.meter.begin_session(entropy("next")))
        prepared = prepare(self.meter, self.cluster)
        self.store.apply([self.meter.issuance_write(prepared)])
        writes, unsettled = self.meter.open_session(prepared)
        self.store.apply(writes + [self.meter.forget(sealed) for sealed in unsettled])

    @invariant()
    def nothing_is_in_flight_outside_the_window(self) -> None:
        numbers = sorted(self.meter.outstanding)
        assert not numbers or numbers[-1] < numbers[0] + WINDOW

    @invariant()
    def all_in_flight_is_of_the_open_session_and_reserved(self) -> None:
        session = self.meter.session
        assert session is not None
        for sequence, sealed in self.meter.outstanding.items():
            assert sealed.session == session.number
            assert sequence <= session.reserved


MeterCourse.TestCase.settings = settings(max_examples=25, stateful_step_count=25)
TestMeterCourse = MeterCourse.TestCase
