"""The meters of the MDMS, and its unicast channel with each of them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from bcami.crypto.signatures import Signer
from bcami.kms.bootstrap import check_request, make_bootstrap
from bcami.kms.draw import KeyStream
from bcami.kms.keying import Place, leaf_key
from bcami.kms.messages import (
    DOWN_CONTENTS,
    Bootstrap,
    BootstrapRequest,
    Direction,
    DownContents,
    Envelope,
    GroupKeys,
    RequestId,
)
from bcami.kms.profile import Opened, Profile, Scope
from bcami.kms.records import METER, METERS, RECENT_MAX, Channel, MeterRecord, Pending, Step, ToMeter
from bcami.model.reasons import Reason


class Identity(NamedTuple):
    """What the chain tells of a meter with an open session."""

    hid: bytes
    session: int
    public_key: bytes
    kem_key: bytes


class Roll:
    """All meters by HID and by number."""

    def __init__(self, scope: Scope, profile: Profile) -> None:
        self._scope = scope
        self._profile = profile
        self._by_hid: dict[bytes, MeterRecord] = {}
        self._hids: dict[int, bytes] = {}
        self._answers: dict[bytes, Bootstrap] = {}
        """Last bootstrap of each meter that has not confirmed it: the same request gets the same answer."""
        self.next_number = 1

    def restore(self, records: Iterable[MeterRecord], next_number: int) -> None:
        for record in records:
            self._by_hid[record.hid] = record
            self._hids[record.number] = record.hid
        self.next_number = next_number

    def __len__(self) -> int:
        return sum(not record.removed for record in self._by_hid.values())

    def __iter__(self) -> Iterator[MeterRecord]:
        return iter(self._by_hid.values())

    def get(self, hid: bytes) -> MeterRecord | None:
        return self._by_hid.get(hid)

    def numbered(self, number: int) -> MeterRecord:
        return self._by_hid[self._hids[number]]

    def numbered_by(self, hid: bytes) -> int:
        """Return the number of a known meter."""
        return self._by_hid[hid].number

    def find(self, hid: bytes) -> MeterRecord | Reason:
        """Return a meter that may be talked to."""
        record = self._by_hid.get(hid)
        if record is None:
            return Reason.UNKNOWN_HID
        return Reason.REVOKED_HID if record.removed else record

    def save(self, step: Step, record: MeterRecord) -> MeterRecord:
        self._by_hid[record.hid] = record
        self._hids[record.number] = record.hid
        step.put(METERS, record.hid, METER, record)
        return record

    def enrol(self, step: Step, identity: Identity) -> int | None:
        """Take up a meter, or a known meter's new session; return the number of a new one."""
        known = self._by_hid.get(identity.hid)
        if known is None:
            number = self.next_number
            self.next_number += 1
            self.save(step, MeterRecord(number, *identity))
            return number
        if not known.removed and identity.session > known.session:
            _, session, public_key, kem_key = identity
            self.save(step, replace(known, session=session, public_key=public_key, kem_key=kem_key, asked_ms=0))
        return None

    def remove(self, step: Step, record: MeterRecord) -> None:
        """Forget a meter's keys for good; its number stays taken."""
        self._answers.pop(record.hid, None)
        self.save(step, replace(record, removed=True, channel=None, pending=None))

    def forget_keys(self, step: Step) -> None:
        """Forget every user key: an epoch begins."""
        self._answers.clear()
        for record in list(self._by_hid.values()):
            if record.channel is not None or record.pending is not None or record.generation:
                self.save(step, replace(record, generation=0, asked_ms=0, channel=None, pending=None))

    def leaf_key(self, place: Place, number: int) -> bytes | None:
        """Return the key of a meter's leaf in a hierarchy."""
        channel = channel_of(self.numbered(number))
        return None if channel is None else leaf_key(place, channel.key)

    # Bootstrap.

    def bootstrap(
        self,
        step: Step,
        request: BootstrapRequest,
        epoch: int,
        groups: Sequence[GroupKeys],
        draw: KeyStream,
        signer: Signer,
    ) -> None:
        """Answer a checked request with new keys; those in use stay until the meter confirms."""
        record = self._by_hid[request.hid]
        answer = self._answers.get(request.hid)
        if answer is None or answer.nonce != request.nonce:
            generation = record.generation + 1
            key = draw.key()
            count = b"" if self._profile.is_guarded else draw.key()
            answer = make_bootstrap(
                self._scope, request, record.kem_key, generation, key, count, groups, draw.block(), signer
            )
            pending = Pending(generation, self._profile.unicast(key, count, epoch, generation))
            self.save(step, replace(record, generation=generation, asked_ms=request.asked_ms, pending=pending))
            self._answers[request.hid] = answer
            step.encryptions += 1
        step.sends.append(ToMeter(request.hid, answer))

    def is_answered(self, request: BootstrapRequest) -> bool:
        """Tell whether this request has an answer, of which the meter has not said yet that it came."""
        answer = self._answers.get(request.hid)
        return answer is not None and answer.nonce == request.nonce

    def check(self, request: BootstrapRequest, epoch: int, now_ms: int) -> Reason | None:
        """Return why a request is not answered; the last one is, again, until its keys are confirmed."""
        record = self._by_hid.get(request.hid)
        if record is None:
            return Reason.UNKNOWN_HID
        refused = check_request(self._scope, request, record, epoch, now_ms)
        if refused is None and request.asked_ms <= record.asked_ms and not self.is_answered(request):
            return Reason.REPLAY
        return refused

    def refresh(self, step: Step) -> None:
        """Carry out the periodic refresh that both ends make alone (profile `paper`)."""
        for record in list(self._by_hid.values()):
            after = None if record.channel is None else self._profile.refreshed(record.channel)
            if after is not None:
                self.save(step, replace(record, channel=after))

    # Unicast.

    def send(self, step: Step, hid: bytes, contents: DownContents, *, answers: bool = False) -> bool:
        """Send to one meter; False while it has no confirmed keys."""
        record = self._by_hid[hid]
        if record.channel is None:
            return False
        plain = DOWN_CONTENTS.encode(contents)
        channel, envelope = self._profile.protect(record.channel, Direction.DOWN, hid, plain, answers=answers)
        self.save(step, replace(record, channel=channel))
        step.sends.append(ToMeter(hid, envelope))
        step.encryptions += 1
        return True

    def open(self, step: Step, envelope: Envelope) -> bytes | Reason:
        """Return what a meter's envelope carries. One under new keys confirms these."""
        found = self.find(envelope.party)
        if isinstance(found, Reason):
            return found
        record = found
        refused = Reason.WRONG_KMS_EPOCH
        if record.pending is not None:
            opened = self._profile.open(record.pending.channel, envelope)
            if isinstance(opened, Opened):
                self._answers.pop(record.hid, None)
                self.save(step, replace(record, channel=opened.channel, pending=None))
                return opened.contents
            refused = opened
        if record.channel is not None:
            opened = self._profile.open(record.channel, envelope)
            if isinstance(opened, Opened):
                self.save(step, replace(record, channel=opened.channel))
                return opened.contents
            if refused in (Reason.WRONG_KMS_EPOCH, Reason.OUT_OF_STEP):
                refused = opened
        return refused

    def answered(self, hid: bytes, request: RequestId) -> Reason | None:
        """Return the answer that a request had, None when it is new."""
        return dict(self._by_hid[hid].recent).get(request)

    def note_answer(self, step: Step, hid: bytes, request: RequestId, reason: Reason) -> None:
        record = self._by_hid[hid]
        self.save(step, replace(record, recent=(*record.recent, (request, reason))[-RECENT_MAX:]))


def channel_of(record: MeterRecord) -> Channel | None:
    """Return the keys in use, else those on their way."""
    if record.channel is not None:
        return record.channel
    return None if record.pending is None else record.pending.channel
