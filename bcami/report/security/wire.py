"""The two ends of the key management with a wire between them that keeps everything and obeys the attacker."""

from collections.abc import Callable, Iterable
from typing import Final

from bcami.codec import encode
from bcami.crypto.hpke import KemSecretKey
from bcami.crypto.keys import SecretKey
from bcami.kms import (
    Accepted,
    HardenedProfile,
    Identity,
    KeyServer,
    MeterKeys,
    PaperProfile,
    Profile,
    Refused,
    Scope,
    Step,
    ToGroup,
    ToMdms,
    ToMeter,
    Write,
)
from bcami.kms.draw import KeyStream
from bcami.kms.messages import ROOT_GROUP, ControlAction, DownPayload, EventKind, Notification, RemoteControl
from bcami.kms.records import METER_KEYS, MeterKeysRecord
from bcami.model.reasons import Reason
from bcami.report.security.grounds import START_MS, entropy

SCOPE: Final = Scope(entropy("kms chain"), 0, entropy("kms mdms"))
Rows = dict[bytes, dict[bytes, bytes]]


class Store:
    """Tables of one end; a copy of `tables` is a backup."""

    def __init__(self) -> None:
        self.tables: Rows = {}

    def apply(self, writes: Iterable[Write]) -> None:
        for table, key, value in writes:
            if value is None:
                self.tables.get(table, {}).pop(key, None)
            else:
                self.tables.setdefault(table, {})[key] = value

    def rows(self, table: bytes) -> list[tuple[bytes, bytes]]:
        return sorted(self.tables.get(table, {}).items())

    def backup(self) -> Rows:
        return {name: dict(rows) for name, rows in self.tables.items()}


class KeyHolder:
    """A meter's end."""

    def __init__(self, name: str, profile: Callable[[], Profile]) -> None:
        self.hid = entropy("kms hid", name)
        self.key = SecretKey.generate(entropy("kms key", name))
        self.kem = KemSecretKey.generate(entropy("kms kem", name))
        self.store = Store()
        self.profile = profile
        self.accepted: list[Accepted] = []
        self.refused: list[Reason] = []
        self.end = self.made()

    @property
    def stolen(self) -> MeterKeysRecord:
        """Return all that the meter stores of the key management."""
        return METER_KEYS.decode(dict(self.store.rows(b"kms"))[self.hid])

    def made(self) -> MeterKeys:
        stored = dict(self.store.rows(b"kms")).get(self.hid)
        record = None if stored is None else METER_KEYS.decode(stored)
        return MeterKeys(SCOPE, self.profile(), self.hid, 1, self.key, self.kem, record)

    @property
    def identity(self) -> Identity:
        return Identity(self.hid, 1, self.key.public_key, self.kem.public_key)


def nothing(_to: KeyHolder | None) -> bool:
    """Lose nothing."""
    return False


class Wire:
    """An MDMS and its meters in one profile."""

    def __init__(self, profile: str, meters: int = 3, seed: int = 0) -> None:
        self._draw = KeyStream(entropy("wire", profile, seed))
        self.name = profile
        self._profile: Callable[[], Profile] = (
            (lambda: HardenedProfile(SCOPE)) if profile == "hardened" else PaperProfile
        )
        self.now_ms = START_MS
        self.height = 0
        self.store = Store()
        self.server = self._made()
        self.signer = SecretKey.generate(self._draw.block())
        self.meters = [KeyHolder(f"{profile} {number}", self._profile) for number in range(meters)]
        self._by_hid = {meter.hid: meter for meter in self.meters}
        self.up: list[bytes] = []
        self.down: list[tuple[KeyHolder, bytes]] = []
        self.seen_up: list[bytes] = []
        self.seen_down: list[tuple[KeyHolder, bytes]] = []
        """Everything that was ever on the wire."""
        self.accepted: list[Accepted] = []
        self.refused: list[Reason] = []
        self.lose: Callable[[KeyHolder | None], bool] = nothing
        """Whether what goes to a meter (None: to the MDMS) is lost."""
        self.do(self.server.enrol([meter.identity for meter in self.meters], self.now_ms, self._draw.block()))
        self.open_epoch()

    def _made(self) -> KeyServer:
        server = KeyServer(SCOPE, self._profile())
        server.restore(self.store.rows)
        return server

    # The MDMS.

    def do(self, step: Step) -> None:
        """Carry out a step of the MDMS."""
        self.store.apply(step.writes)
        for send in step.sends:
            match send:
                case ToMeter(hid, message):
                    self._to([self._by_hid[hid]], encode(message))
                case ToGroup(group, message):
                    audience = [self._by_hid[hid] for hid in self.server.groups.audience(group)]
                    self._to(audience, encode(message))
                case ToMdms():
                    raise TypeError("the MDMS does not talk to itself")
        for event in step.events:
            if isinstance(event, Accepted):
                self.accepted.append(event)
            elif isinstance(event, Refused):
                self.refused.append(event.reason)

    def _to(self, meters: Iterable[KeyHolder], data: bytes) -> None:
        for meter in meters:
            self.seen_down.append((meter, data))
            if not self.lose(meter):
                self.down.append((meter, data))

    def open_epoch(self) -> None:
        """Open an epoch on the chain, of which every meter hears with a receipt."""
        self.height += 1
        self.signer = SecretKey.generate(self._draw.block())
        self.do(self.server.open_epoch(self.height, self.signer, self.now_ms, self._draw.block()))
        for meter in self.meters:
            self.by(meter, meter.end.epoch_opened(self.height, self.signer.public_key, self.now_ms, self._draw.block()))
        self.flow()

    def refresh(self) -> None:
        """Carry out the periodic refresh: k ← H(k) in the paper, a new epoch in `hardened`."""
        if self.name == "hardened":
            self.open_epoch()
            return
        self.do(self.server.refresh(self.now_ms))
        for meter in self.meters:
            self.by(meter, meter.end.refresh())

    def remove(self, meter: KeyHolder) -> None:
        self.do(self.server.remove(meter.hid, self.now_ms, self._draw.block()))
        self.flow()

    def restart_server(self, backup: Rows | None = None) -> None:
        if backup is not None:
            self.store.tables = {name: dict(rows) for name, rows in backup.items()}
        self.server = self._made()
        self.open_epoch()

    def restart_meter(self, meter: KeyHolder, backup: Rows) -> None:
        meter.store.tables = {name: dict(rows) for name, rows in backup.items()}
        meter.end = meter.made()
        self.by(meter, meter.end.start(self.now_ms, self._draw.block()))
        self.flow()

    # Messages.

    def command(self, number: int, meter: KeyHolder | None = None) -> bytes:
        """Let the MDMS limit the power of one meter, or of all, to `number` watts; return the bytes on the wire."""
        before = len(self.seen_down)
        payload = limit_to(number)
        if meter is None:
            self.do(self.server.send(payload, self.now_ms, group=ROOT_GROUP))
        else:
            self.do(self.server.send(payload, self.now_ms, hid=meter.hid))
        return self.seen_down[before][1]

    def notify(self, meter: KeyHolder, number: int) -> None:
        """Let a meter tell the MDMS of an event."""
        payload = Notification(EventKind.POWER_LOST, number)
        _, step = meter.end.request(payload, self.now_ms, self._draw.block())
        self.by(meter, step)

    def obeyed(self, meter: KeyHolder) -> list[int]:
        """Return the watts of all commands that a meter obeyed."""
        return [item.payload.limit_w for item in meter.accepted if isinstance(item.payload, RemoteControl)]

    def heard(self) -> list[int]:
        """Return the numbers of all notifications that the MDMS accepted."""
        return [item.payload.at_s for item in self.accepted if isinstance(item.payload, Notification)]

    def by(self, meter: KeyHolder, step: Step) -> list[Reason]:
        """Carry out a step of a meter; return what it refused."""
        meter.store.apply(step.writes)
        for send in step.sends:
            if isinstance(send, ToMdms):
                data = encode(send.message)
                self.seen_up.append(data)
                if not self.lose(None):
                    self.up.append(data)
        meter.accepted += [event for event in step.events if isinstance(event, Accepted)]
        meter.refused += step.refusals
        return step.refusals

    def give(self, meter: KeyHolder, data: bytes) -> list[Reason]:
        """Put bytes before a meter."""
        return self.by(meter, meter.end.receive(data, self.now_ms))

    def give_server(self, data: bytes) -> None:
        self.do(self.server.receive(data, self.now_ms, self._draw.block()))

    def flow(self) -> None:
        """Deliver everything that is on its way, and what comes of it."""
        while self.up or self.down:
            if self.up:
                self.give_server(self.up.pop(0))
            else:
                self.give(*self.down.pop(0))

    def settle(self, rounds: int = 4) -> None:
        """Let time pass and both ends repeat what was not answered."""
        for _ in range(rounds):
            self.flow()
            self.now_ms += 3_000
            self.do(self.server.tick(self.now_ms))
            for meter in self.meters:
                self.by(meter, meter.end.tick(self.now_ms, self._draw.block()))
        self.flow()


def limit_to(number: int) -> DownPayload:
    return RemoteControl(ControlAction.LIMIT, number, 0, 2**40)


__all__ = ["SCOPE", "KeyHolder", "Wire", "limit_to", "nothing"]
