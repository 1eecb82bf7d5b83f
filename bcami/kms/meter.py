"""A meter's side of the KMS as a step machine: values in, a `Step` out (see the package's docstring).

    start            after each start: all keys are dropped and new ones asked for, so that nothing that was accepted
                     before, and nothing recorded, is accepted again, whatever backup the store came from
    epoch_opened     the chain has a transaction of the MDMS that opened an epoch (checked by its receipt)
    session_opened   the meter has a new session, and so a new KEM key
    receive(bytes)   what came from the MDMS
    request          a message of Table 1 for the MDMS
    tick             repeats what was not answered

The record is one: `Step.writes` holds it whenever it changed, under the meter's HID. Beside it stands what was accepted
in the same step, until the driver has handed it over: what counters and ids will refuse from now on is not lost.
"""

from collections.abc import Sequence
from typing import Final, assert_never

from msgspec.structs import replace

from bcami.crypto.hpke import KemSecretKey
from bcami.crypto.signatures import Signer
from bcami.errors import MalformedError
from bcami.kms.bootstrap import make_request, open_bootstrap
from bcami.kms.draw import KeyStream
from bcami.kms.keying import Place, leaf_key
from bcami.kms.member import follow, taken_up
from bcami.kms.messages import (
    DOWN_CODEC,
    DOWN_CONTENTS,
    IDS_MAX,
    KEY_BYTES,
    TABLE_1,
    UP_CONTENTS,
    Acknowledge,
    Answer,
    Bootstrap,
    CatchUp,
    Confirm,
    Delivery,
    Direction,
    Dismissed,
    DownContents,
    Envelope,
    GroupKeys,
    Mode,
    Rekey,
    Request,
    UpContents,
    UpPayload,
    mode_of,
)
from bcami.kms.profile import Profile, Scope
from bcami.kms.records import (
    METER_KEYS,
    OUTBOX_MAX,
    RECEIVED,
    Membership,
    MeterKeysRecord,
    Outgoing,
    Received,
    Step,
    ToMdms,
    accepted,
)
from bcami.kms.standing import take
from bcami.model.reasons import Reason
from bcami.model.signing import u64

METER_TABLE: Final = b"kms"
"""HID → MeterKeysRecord."""
METER_INBOX: Final = b"kms_inbox"
"""HID, epoch, number → Received: accepted, and not yet handed to the application, whose driver deletes it."""
RETRY_MS: Final = 2_000
ASK_LIMIT_MS: Final = 64_000
"""What has no answer is repeated after 2 s, then each time twice as late up to this: many meters ask at once."""
UNANSWERED_MAX: Final = 4
"""Confirmations without an answer, each after twice the time, after which a meter asks for new keys: after a minute.

An MDMS that has thousands to answer is not asked for more than it is asked already.
"""


class MeterKeys:
    """See the module."""

    __slots__ = (
        "_asked",
        "_hid",
        "_is_started",
        "_kem",
        "_network",
        "_next_ms",
        "_profile",
        "_record",
        "_scope",
        "_session",
        "_session_key",
        "_unanswered",
        "answers",
    )

    def __init__(
        self,
        scope: Scope,
        profile: Profile,
        hid: bytes,
        session: int,
        session_key: Signer,
        kem: KemSecretKey,
        record: MeterKeysRecord | None = None,
    ) -> None:
        """`session_key` and `kem` are the session's; `record` is what was stored, if anything.

        Nothing is sent under keys of a record, whoever asks for it: `start` drops them.
        """
        self._scope = scope
        self._profile = profile
        self._hid = hid
        self._session = session
        self._session_key = session_key
        self._kem = kem
        self._network = scope.chain + u64(scope.epoch) + scope.mdms
        self._record = record or MeterKeysRecord()
        self._is_started = record is None
        self._next_ms = 0
        """When a bootstrap request or a confirmation is repeated."""
        self._unanswered = 0
        """Confirmations in a row without an answer."""
        self._asked = 0
        """Times that the present request was sent."""
        self.answers: dict[bytes, Reason] = {}
        """Of requests since the start."""

    @property
    def record(self) -> MeterKeysRecord:
        return self._record

    @property
    def groups(self) -> dict[int, int]:
        """Return the groups that the meter is in, with the version of each one's keys."""
        return {held.group: held.version for held in self._record.memberships}

    @property
    def is_confirmed(self) -> bool:
        """Tell whether the MDMS uses this meter's keys."""
        return self._record.confirmed

    # Starts, epochs, sessions.

    def start(self, now_ms: int, entropy: bytes) -> Step:
        """Begin after a start of the meter."""
        step = Step()
        self._is_started = True
        if self._record.epoch:
            self._ask(step, self._record.epoch, self._record.kms_key, now_ms, entropy)
        return step

    def epoch_opened(self, epoch: int, kms_key: bytes, now_ms: int, entropy: bytes) -> Step:
        """Move to a higher epoch: the keys of the old one are gone."""
        step = Step()
        if epoch < self._record.epoch or (epoch == self._record.epoch and kms_key != self._record.kms_key):
            step.refuse(Reason.EPOCH_NOT_ABOVE, self._hid)
        elif epoch > self._record.epoch:
            self._ask(step, epoch, kms_key, now_ms, entropy)
        return step

    def session_opened(self, session: int, session_key: Signer, kem: KemSecretKey, now_ms: int, entropy: bytes) -> Step:
        """Use a new session's keys: the old KEM key is gone, and what it protected is replaced."""
        self._session, self._session_key, self._kem = session, session_key, kem
        return self.start(now_ms, entropy)

    def _ask(self, step: Step, epoch: int, kms_key: bytes, now_ms: int, entropy: bytes) -> None:
        old = self._record
        self._is_started = True
        nonce = KeyStream(entropy).block()
        self._keep(
            step,
            MeterKeysRecord(
                epoch=epoch,
                kms_key=kms_key,
                nonce=nonce,
                asked_ms=max(now_ms, old.asked_ms + 1),
                outbox=tuple(replace(item, next_ms=0) for item in old.outbox),
                taken=old.taken,
                taken_floor=old.taken_floor,
                standing=old.standing,
                standing_floor=old.standing_floor,
            ),
        )
        self._unanswered = self._asked = 0
        self._send_request(step, now_ms)

    def _send_request(self, step: Step, now_ms: int) -> None:
        self._next_ms = now_ms + min(ASK_LIMIT_MS, RETRY_MS << min(self._asked, 16))
        self._asked += 1
        record = self._record
        request = make_request(
            self._scope,
            self._hid,
            self._session,
            record.epoch,
            record.asked_ms,
            record.nonce,
            self._session_key,
        )
        step.sends.append(ToMdms(request))

    # What the MDMS sends.

    def receive(self, data: bytes, now_ms: int) -> Step:
        """Take one message in; a refusal is in the step's events."""
        step = Step()
        try:
            message = DOWN_CODEC.decode(data)
        except MalformedError:
            step.refuse(Reason.MALFORMED, self._hid)
            return step
        match message:
            case Bootstrap():
                refused = self._bootstrap(step, message, now_ms)
            case Rekey():
                refused = self._rekey(step, message, now_ms)
            case Envelope():
                refused = self._open(step, message, now_ms)
            case _:
                assert_never(message)
        if refused is not None:
            step.refuse(refused, self._hid)
        return step

    def _bootstrap(self, step: Step, message: Bootstrap, now_ms: int) -> Reason | None:
        record = self._record
        if message.hid != self._hid or message.session != self._session:
            return Reason.UNASKED
        if message.epoch != record.epoch:
            return Reason.WRONG_KMS_EPOCH
        if not record.nonce or message.nonce != record.nonce:
            return Reason.UNASKED
        contents = open_bootstrap(self._scope, message, record.kms_key, self._kem)
        if isinstance(contents, Reason):
            return contents
        channel = self._profile.unicast(contents.user_key, contents.count, message.epoch, message.generation)
        memberships = tuple(taken_up(self._profile, keys, message.epoch) for keys in contents.groups)
        self._record = replace(
            record, generation=message.generation, confirmed=False, nonce=b"", unicast=channel, memberships=memberships
        )
        self._confirm(step, now_ms)
        for item in self._record.outbox:
            self._send_outgoing(step, item, now_ms)
        return None

    def _rekey(self, step: Step, rekey: Rekey, now_ms: int) -> Reason | None:
        held = self._membership(rekey.group)
        record = self._record
        if held is None or record.unicast is None:
            return Reason.NOT_A_MEMBER
        if rekey.epoch != record.epoch:
            return Reason.WRONG_KMS_EPOCH
        refused = self._profile.check_rekey(rekey, record.kms_key)
        if refused is not None:
            return refused
        if rekey.version <= held.version:  # newcomers, and who caught up meanwhile, are there already
            return None if rekey.version == held.version else Reason.REPLAY
        place = Place(self._network, rekey.epoch, rekey.group)
        after = follow(self._profile, place, held, rekey, leaf_key(place, record.unicast.key))
        if isinstance(after, Reason):
            self._catch_up(step, now_ms)
            return after
        self._hold(step, after)
        return None

    def _open(self, step: Step, envelope: Envelope, now_ms: int) -> Reason | None:
        if envelope.direction is not Direction.DOWN and self._profile.is_guarded:
            return Reason.WRONG_MODE
        if envelope.mode is Mode.UNICAST:
            return self._open_unicast(step, envelope, now_ms)
        if envelope.mode is not mode_of(int.from_bytes(envelope.party, "big")):
            return Reason.WRONG_MODE
        held = self._membership(int.from_bytes(envelope.party, "big"))
        if held is None:
            return Reason.NOT_A_MEMBER
        opened = self._profile.open_shared(held.channel, envelope, self._record.kms_key)
        if isinstance(opened, Reason):
            if opened is Reason.OUT_OF_STEP and envelope.version > held.version:
                self._catch_up(step, now_ms)
            return opened
        self._hold(step, replace(held, channel=opened.channel))
        try:
            contents = DOWN_CONTENTS.decode(opened.contents)
        except MalformedError:
            return Reason.MALFORMED
        if not isinstance(contents, Delivery):
            return Reason.WRONG_MODE
        is_its_own = contents.group == held.group and envelope.mode in TABLE_1[type(contents.payload)].modes
        if self._profile.is_guarded and not is_its_own:
            return Reason.WRONG_MODE
        self._deliver_all(step, (contents,), now_ms)
        return None

    def _open_unicast(self, step: Step, envelope: Envelope, now_ms: int) -> Reason | None:
        if envelope.party != self._hid:
            return Reason.UNKNOWN_HID
        if self._record.unicast is None:
            return Reason.WRONG_KMS_EPOCH
        opened = self._profile.open(self._record.unicast, envelope)
        if isinstance(opened, Reason):
            return opened
        self._keep(step, replace(self._record, unicast=opened.channel))
        try:
            contents = DOWN_CONTENTS.decode(opened.contents)
        except MalformedError:
            return Reason.MALFORMED
        return self._take(step, contents, now_ms)

    def _take(self, step: Step, contents: DownContents, now_ms: int) -> Reason | None:
        match contents:
            case Delivery():
                self._deliver_all(step, (contents,), now_ms)
            case GroupKeys():
                return self._granted(step, contents)
            case Dismissed():
                return self._dismissed(step, contents)
            case CatchUp():
                self._caught_up(step, contents, now_ms)
            case Answer():
                self.answers[contents.id] = contents.reason
                rest = tuple(item for item in self._record.outbox if item.id != contents.id)
                self._keep(step, replace(self._record, outbox=rest))
            case _:
                assert_never(contents)
        return None

    def _caught_up(self, step: Step, lacked: CatchUp, now_ms: int) -> None:
        self._unanswered = 0
        self._keep(step, replace(self._record, confirmed=True))
        refused = [self._granted(step, keys) for keys in lacked.grants]
        refused += [self._dismissed(step, dismissed) for dismissed in lacked.dismissed]
        for reason in refused:
            if reason is not None:
                step.refuse(reason, self._hid)
        self._deliver_all(step, lacked.deliveries, now_ms)

    def _granted(self, step: Step, keys: GroupKeys) -> Reason | None:
        held = self._membership(keys.group)
        if held is not None and keys.version <= held.version:
            return Reason.STALE
        if keys.version <= dict(self._record.gone).get(keys.group, 0):
            return Reason.STALE
        self._hold(step, taken_up(self._profile, keys, self._record.epoch))
        return None

    def _dismissed(self, step: Step, dismissed: Dismissed) -> Reason | None:
        held = self._membership(dismissed.group)
        if held is not None and held.version >= dismissed.version:
            return Reason.STALE
        kept = tuple(item for item in self._record.memberships if item.group != dismissed.group)
        gone = tuple(item for item in self._record.gone if item[0] != dismissed.group)
        gone = (*gone, (dismissed.group, dismissed.version))[-IDS_MAX:]
        self._keep(step, replace(self._record, memberships=kept, gone=gone))
        return None

    def _deliver_all(self, step: Step, deliveries: Sequence[Delivery], now_ms: int) -> None:
        """Take messages of the MDMS once each, and acknowledge them as often as they come."""
        taken, too_old = [], []
        for delivery in deliveries:
            refused = self._deliver(step, delivery, now_ms)
            if refused is not None:
                step.refuse(refused, self._hid)
            if refused in (None, Reason.DUPLICATE):
                taken.append((delivery.id, now_ms))
            elif refused is Reason.SEQUENCE_TOO_OLD:
                too_old.append(delivery.id)
        if taken or too_old:
            self._seal(step, Acknowledge(tuple(taken), tuple(too_old)), answers=True)

    def _deliver(self, step: Step, delivery: Delivery, now_ms: int) -> Reason | None:
        """Take a message of the MDMS, or return why not."""
        if self._profile.is_guarded:
            record = take(self._record, delivery, now_ms)
            if isinstance(record, Reason):
                return record
            self._keep(step, record)
        in_time = now_ms - delivery.sent_ms <= TABLE_1[type(delivery.payload)].deadline_ms
        identity = u64(delivery.id.epoch) + u64(delivery.id.number)
        received = Received(self._hid, identity, delivery.payload, delivery.sent_ms, now_ms, in_time)
        step.put(METER_INBOX, self._hid + identity, RECEIVED, received)
        step.events.append(accepted(received))
        return None

    # What the meter sends.

    def request(self, payload: UpPayload, now_ms: int, entropy: bytes) -> tuple[bytes, Step]:
        """Send a message of Table 1 as soon as there are keys, until it is answered; returns its id."""
        step = Step()
        identity = KeyStream(entropy).block()[:KEY_BYTES]
        if len(self._record.outbox) >= OUTBOX_MAX:
            step.refuse(Reason.QUEUE_FULL, self._hid)
            return identity, step
        contents = UP_CONTENTS.encode(Request(identity, now_ms, payload))
        item = Outgoing(identity, now_ms, contents, 0)
        self._keep(step, replace(self._record, outbox=(*self._record.outbox, item)))
        if self._record.unicast is not None:
            self._send_outgoing(step, item, now_ms)
        return identity, step

    def tick(self, now_ms: int, entropy: bytes) -> Step:
        """Repeat what was not answered."""
        step = Step()
        record = self._record
        if record.nonce:
            if now_ms >= self._next_ms:  # later than whatever the MDMS has seen of this meter
                self._keep(step, replace(record, asked_ms=max(now_ms, record.asked_ms + 1)))
                self._send_request(step, now_ms)
            return step
        if record.unicast is None:
            return step
        if not record.confirmed and now_ms >= self._next_ms:
            self._unanswered += 1
            if self._unanswered > UNANSWERED_MAX:  # the MDMS has not, or has no more, the keys that this meter has
                self._ask(step, record.epoch, record.kms_key, now_ms, entropy)
                return step
            self._confirm(step, now_ms)
        for item in record.outbox:
            if now_ms >= item.next_ms:
                self._send_outgoing(step, item, now_ms)
        return step

    def refresh(self) -> Step:
        """Carry out k ← H(k) for all keys, as Tables 2 to 4 have it; nothing in the profile `hardened`."""
        step = Step()
        record = self._record
        after = None if record.unicast is None else self._profile.refreshed(record.unicast)
        if after is not None:
            held = tuple(
                replace(item, channel=self._profile.refreshed(item.channel) or item.channel)
                for item in record.memberships
            )
            self._keep(step, replace(record, unicast=after, memberships=held))
        return step

    def check_in(self, now_ms: int) -> Step:
        """Tell the MDMS which keys the meter holds, again and again until it sends what is missing."""
        step = Step()
        if self._record.unicast is not None:
            self._record = replace(self._record, confirmed=False)
            self._confirm(step, now_ms)
        return step

    def _catch_up(self, step: Step, now_ms: int) -> None:
        """Ask for what was missed, not more often than it is repeated."""
        if self._record.confirmed or now_ms >= self._next_ms:
            self._record = replace(self._record, confirmed=False)
            self._confirm(step, now_ms)

    def _confirm(self, step: Step, now_ms: int) -> None:
        self._next_ms = now_ms + (RETRY_MS << self._unanswered)
        self._seal(step, Confirm(tuple(self.groups.items())))

    def _send_outgoing(self, step: Step, item: Outgoing, now_ms: int) -> None:
        age_ms = max(RETRY_MS, now_ms - item.sent_ms)  # so each time twice as late, about
        later = replace(item, next_ms=now_ms + min(ASK_LIMIT_MS, age_ms))
        outbox = tuple(later if other.id == item.id else other for other in self._record.outbox)
        self._record = replace(self._record, outbox=outbox)
        self._protect(step, item.contents, answers=False)

    def _seal(self, step: Step, contents: UpContents, *, answers: bool = False) -> None:
        self._protect(step, UP_CONTENTS.encode(contents), answers=answers)

    def _protect(self, step: Step, contents: bytes, *, answers: bool) -> None:
        channel = self._record.unicast
        if channel is None or not self._is_started:
            return
        after, envelope = self._profile.protect(channel, Direction.UP, self._hid, contents, answers=answers)
        self._keep(step, replace(self._record, unicast=after))
        step.sends.append(ToMdms(envelope))
        step.encryptions += 1

    # The record.

    def _membership(self, group: int) -> Membership | None:
        return next((held for held in self._record.memberships if held.group == group), None)

    def _hold(self, step: Step, membership: Membership) -> None:
        others = tuple(held for held in self._record.memberships if held.group != membership.group)
        self._keep(step, replace(self._record, memberships=(*others, membership)))

    def _keep(self, step: Step, record: MeterKeysRecord) -> None:
        """Take up a record, and have it written: only the last one of a step."""
        self._record = record
        step.writes[:] = [write for write in step.writes if write.table != METER_TABLE]
        step.put(METER_TABLE, self._hid, METER_KEYS, record)
