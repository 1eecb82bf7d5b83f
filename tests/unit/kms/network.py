"""An MDMS and its meters around a network that keeps everything it ever carried, and obeys the test."""

from collections.abc import Callable, Iterable
from hashlib import sha256

from bcami.codec import encode
from bcami.crypto.hpke import KemSecretKey
from bcami.crypto.keys import SecretKey
from bcami.kms import (
    Accepted,
    Delivered,
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
from bcami.kms.messages import DownMessage, DownPayload, UpMessage, UpPayload
from bcami.kms.records import METER_KEYS
from bcami.model.reasons import Reason

SCOPE = Scope(sha256(b"chain").digest(), 0, sha256(b"mdms").digest())
START_MS = 1_700_000_000_000


def make_profile(name: str) -> Profile:
    return HardenedProfile(SCOPE) if name == "hardened" else PaperProfile(lambda hid: sha256(hid).digest()[:16])


class Entropy:
    """32 bytes that never come twice."""

    def __init__(self, label: str) -> None:
        self._label = label.encode()
        self._count = 0

    def __call__(self) -> bytes:
        self._count += 1
        return sha256(self._label + self._count.to_bytes(8, "big")).digest()


class Store:
    """Tables in memory. A snapshot is a backup."""

    def __init__(self) -> None:
        self.tables: dict[bytes, dict[bytes, bytes]] = {}

    def apply(self, writes: Iterable[Write]) -> None:
        for table, key, value in writes:
            if value is None:
                self.tables.get(table, {}).pop(key, None)
            else:
                self.tables.setdefault(table, {})[key] = value

    def rows(self, table: bytes) -> list[tuple[bytes, bytes]]:
        return sorted(self.tables.get(table, {}).items())

    def snapshot(self) -> dict[bytes, dict[bytes, bytes]]:
        return {name: dict(rows) for name, rows in self.tables.items()}


class MeterHost:
    """A meter with its store."""

    def __init__(self, name: str, profile: Callable[[], Profile], entropy: Entropy) -> None:
        self.name = name
        self.hid = sha256(b"hid" + name.encode()).digest()
        self.session = 1
        self.key = SecretKey.generate(sha256(b"key" + name.encode()).digest())
        self.kem = KemSecretKey.generate(sha256(b"kem" + name.encode()).digest())
        self.store = Store()
        self._profile = profile
        self._entropy = entropy
        self.accepted: list[Accepted] = []
        self.refused: list[Reason] = []
        self.started = 0
        self.keys = self._made()

    def _made(self) -> MeterKeys:
        stored = dict(self.store.rows(b"kms")).get(self.hid)
        record = None if stored is None else METER_KEYS.decode(stored)
        return MeterKeys(SCOPE, self._profile(), self.hid, self.session, self.key, self.kem, record)

    @property
    def identity(self) -> Identity:
        return Identity(self.hid, self.session, self.key.public_key, self.kem.public_key)

    def restart(self, now_ms: int) -> Step:
        self.keys = self._made()
        return self.keys.start(now_ms, self._entropy())


class Network:
    """Carries everything at once unless `held` says to keep it back."""

    def __init__(
        self,
        meters: int = 3,
        profile: str = "hardened",
        degree: int = 4,
        *,
        changes_wait: bool = False,
        start: bool = True,
    ) -> None:
        self.entropy = Entropy("network")
        self.now_ms = START_MS
        self.height = 0
        self._profile = lambda: make_profile(profile)
        self._degree = degree
        self._changes_wait = changes_wait
        self.store = Store()
        self.server = self._made()
        self.signer = SecretKey.generate(self.entropy())
        self.meters = [MeterHost(f"m{index}", self._profile, self.entropy) for index in range(1, meters + 1)]
        self.by_hid = {meter.hid: meter for meter in self.meters}
        self.up: list[bytes] = []
        """On its way to the MDMS."""
        self.down: list[tuple[MeterHost, bytes]] = []
        self.seen_up: list[bytes] = []
        self.seen_down: list[bytes] = []
        """Everything that was ever on the wire."""
        self.first_seen: dict[bytes, int] = {}
        """When each message was made; a machine takes none that is older than its last start."""
        self.server_start = 0
        self.accepted: list[Accepted] = []
        self.delivered: list[Delivered] = []
        self.refused: list[Reason] = []
        self.costs: Step = Step()
        if start:
            self.do(self.server.enrol([meter.identity for meter in self.meters], self.now_ms, self.entropy()))
            self.open_epoch()
            self.flow()

    def add_meter(self) -> MeterHost:
        """Return one more meter, which the MDMS does not know yet."""
        meter = MeterHost(f"m{len(self.meters) + 1}", self._profile, self.entropy)
        self.meters.append(meter)
        self.by_hid[meter.hid] = meter
        return meter

    def _made(self) -> KeyServer:
        server = KeyServer(SCOPE, self._profile(), degree=self._degree, changes_wait=self._changes_wait)
        server.restore(self.store.rows)
        return server

    # The MDMS.

    def do(self, step: Step) -> Step:
        """Carry out a step of the MDMS."""
        self.store.apply(step.writes)
        for send in step.sends:
            match send:
                case ToMeter(hid, message):
                    self._to(self.by_hid[hid], message)
                case ToGroup(group, message):
                    self._made_down(encode(message))
                    for hid in self.server.groups.audience(group):
                        self._to(self.by_hid[hid], message)
                case ToMdms():
                    raise AssertionError("the MDMS does not talk to itself")
        for event in step.events:
            match event:
                case Accepted():
                    self.accepted.append(event)
                case Delivered():
                    self.delivered.append(event)
                case Refused(reason, _):
                    self.refused.append(reason)
        return step

    def _to(self, meter: MeterHost, message: DownMessage) -> None:
        data = encode(message)
        self._made_down(data)
        self.down.append((meter, data))

    def _made_down(self, data: bytes) -> None:
        self.seen_down.append(data)
        self.first_seen.setdefault(data, len(self.first_seen))

    def open_epoch(self) -> None:
        """Have the MDMS open an epoch, and every meter hear of it with a receipt."""
        self.height += 1
        self.signer = SecretKey.generate(self.entropy())
        self.do(self.server.open_epoch(self.height, self.signer, self.now_ms, self.entropy()))
        for meter in self.meters:
            self.tell_epoch(meter)

    def tell_epoch(self, meter: MeterHost) -> None:
        self.by(meter, meter.keys.epoch_opened(self.height, self.signer.public_key, self.now_ms, self.entropy()))

    def restart_server(self, backup: dict[bytes, dict[bytes, bytes]] | None = None) -> None:
        if backup is not None:
            self.store.tables = {name: dict(rows) for name, rows in backup.items()}
        self.server = self._made()
        self.server_start = len(self.first_seen)
        self.open_epoch()

    def send(self, payload: DownPayload, **target: object) -> Step:
        return self.do(self.server.send(payload, self.now_ms, **target))

    def publish(self, project: int, excludes: tuple[int, ...] = ()) -> None:
        self.do(self.server.publish(project, f"project {project}", excludes, self.now_ms, self.entropy()))
        self.flow()

    def remove(self, meter: MeterHost) -> Step:
        return self.do(self.server.remove(meter.hid, self.now_ms, self.entropy()))

    def receive(self, data: bytes) -> Step:
        """Put bytes before the MDMS."""
        step = self.do(self.server.receive(data, self.now_ms, self.entropy()))
        if any(isinstance(event, Accepted | Delivered) for event in step.events):
            assert self.first_seen[data] >= self.server_start, "taken from before the MDMS's start"
        return step

    # Meters.

    def by(self, meter: MeterHost, step: Step) -> Step:
        """Carry out a step of a meter."""
        meter.store.apply(step.writes)
        for send in step.sends:
            assert isinstance(send, ToMdms)
            self._up(send.message)
        for event in step.events:
            match event:
                case Accepted():
                    meter.accepted.append(event)
                case Refused(reason, _):
                    meter.refused.append(reason)
        return step

    def _up(self, message: UpMessage) -> None:
        data = encode(message)
        self.seen_up.append(data)
        self.first_seen.setdefault(data, len(self.first_seen))
        self.up.append(data)

    def give(self, meter: MeterHost, data: bytes) -> Step:
        """Put bytes before a meter."""
        step = self.by(meter, meter.keys.receive(data, self.now_ms))
        if any(isinstance(event, Accepted) for event in step.events):
            assert self.first_seen.get(data, meter.started) >= meter.started, "taken from before the meter's start"
        return step

    def ask(self, meter: MeterHost, payload: UpPayload) -> bytes:
        identity, step = meter.keys.request(payload, self.now_ms, self.entropy())
        self.by(meter, step)
        return identity

    def restart_meter(self, meter: MeterHost, backup: dict[bytes, dict[bytes, bytes]] | None = None) -> None:
        if backup is not None:
            meter.store.tables = {name: dict(rows) for name, rows in backup.items()}
        meter.started = len(self.first_seen)
        self.by(meter, meter.restart(self.now_ms))

    # Time.

    def flow(self, limit: int = 10_000) -> None:
        """Deliver everything that is on its way, and what comes of it."""
        while self.up or self.down:
            limit -= 1
            assert limit, "the two ends keep each other busy"
            if self.up:
                self.receive(self.up.pop(0))
            else:
                self.give(*self.down.pop(0))

    def wait(self, ms: int = 10_000) -> None:
        """Let time pass, and everybody repeat what is due."""
        self.now_ms += ms
        self.do(self.server.tick(self.now_ms))
        for meter in self.meters:
            self.by(meter, meter.keys.tick(self.now_ms, self.entropy()))

    def settle(self, rounds: int = 4) -> None:
        """Let an undisturbed network bring both ends together."""
        for _ in range(rounds):
            self.flow()
            self.wait()
        self.flow()
