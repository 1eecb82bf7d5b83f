"""The MDMS's side of the KMS as a step machine: values in, a `Step` out (see the package's docstring).

    restore(rows)          take up what a store holds; then nothing is sent until open_epoch
    open_epoch(...)        a transaction of the MDMS is in block `height`: fresh keys for everybody (protocol 8)
    enrol, remove          meters that the chain knows, or does not want any more
    receive(bytes)         what a meter sent
    publish, change        demand-response projects and their members
    send                   a message of Table 1 to one meter, to a group or to all
    tick                   repeats what was not acknowledged
    end_period             carries out the changes that wait: one rekeying per group
    refresh                the periodic refresh of the profile `paper`; `hardened` opens a new epoch instead

Every input takes the time, and 32 fresh bytes where keys may be drawn.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final, NamedTuple, assert_never

from bcami.crypto.signatures import Signer
from bcami.errors import MalformedError
from bcami.kms.allowances import CATCH_UPS_MAX, Allowances
from bcami.kms.audit import AUDIT_ENTRY, AuditLog, entry_hash
from bcami.kms.catch_up import catch_ups
from bcami.kms.deliveries import DeliveryBook, Summary, bitmap
from bcami.kms.draw import KeyStream
from bcami.kms.graph import KeyGraph, key_graph
from bcami.kms.groups import Group, GroupBook, Rows
from bcami.kms.inbox import Inbox
from bcami.kms.messages import (
    ROOT_GROUP,
    TABLE_1,
    UP_CODEC,
    UP_CONTENTS,
    Acknowledge,
    Answer,
    BootstrapRequest,
    Confirm,
    Delivery,
    DeliveryId,
    Direction,
    Dismissed,
    DownPayload,
    Envelope,
    GroupKeys,
    JoinProject,
    LeaveProject,
    Mode,
    PublishProject,
    Request,
    UpContents,
    UpMessage,
)
from bcami.kms.profile import Profile, Scope
from bcami.kms.records import (
    ABOUT,
    ABOUT_CODEC,
    ADDRESSED,
    AUDIT,
    DELIVERIES,
    DELIVERY,
    INBOX,
    METER,
    METERS,
    TAKEN,
    TAKEN_CODEC,
    AboutRecord,
    DeliveryRecord,
    GroupRecord,
    Received,
    Step,
    accepted,
)
from bcami.kms.roll import Identity, Roll
from bcami.model.reasons import Reason

FOREVER_MS: Final = 2**62
DEGREE_DEFAULT: Final = 4


class ServerCounts(NamedTuple):
    """How things stand."""

    epoch: int
    meters: int
    confirmed: int
    """Meters that have keys of this epoch."""
    groups: int
    audit_length: int
    audit_head: bytes


class KeyServer:
    """See the module."""

    def __init__(
        self, scope: Scope, profile: Profile, *, degree: int = DEGREE_DEFAULT, changes_wait: bool = False
    ) -> None:
        """`degree` 0 is the strategy `flat`. With `changes_wait`, joins and leaves wait for `end_period`."""
        self._scope = scope
        self._profile = profile
        self._changes_wait = changes_wait
        self._roll = Roll(scope, profile)
        self._groups = GroupBook(scope, profile, self._roll, degree)
        self._deliveries = DeliveryBook(self._roll)
        self._audit = AuditLog()
        self._signer: Signer | None = None
        self._epoch = 0
        self._next_delivery = 1
        self._inbox = Inbox()
        self._allowances = Allowances()

    # Start.

    def restore(self, rows: Rows) -> None:
        """Take up a store's records."""
        for _, value in rows(ABOUT):
            about = ABOUT_CODEC.decode(value)
            self._epoch, self._next_delivery = about.epoch, about.next_delivery
            self._roll.restore((METER.decode(record) for _, record in rows(METERS)), about.next_meter)
        self._groups.restore(rows, self._epoch)
        self._deliveries.restore(
            (DELIVERY.decode(record) for _, record in rows(DELIVERIES)),
            ((_delivery_id(key), int.from_bytes(key[16:], "big"), TAKEN_CODEC.decode(row)) for key, row in rows(TAKEN)),
            (
                (_delivery_id(key), int.from_bytes(key[16:], "big"), int.from_bytes(row, "big"))
                for key, row in rows(ADDRESSED)
            ),
        )
        self._inbox.restore(rows(INBOX))
        for _, value in rows(AUDIT):
            entry = AUDIT_ENTRY.decode(value)
            self._audit = AuditLog(entry.sequence, entry_hash(entry))

    def open_epoch(self, height: int, signer: Signer, now_ms: int, entropy: bytes) -> Step:
        """Begin the epoch that the chain has at this height, with `signer` as its KMS key; all old keys are gone."""
        step = Step()
        if height <= self._epoch:
            step.refuse(Reason.EPOCH_NOT_ABOVE)
            return step
        self._epoch, self._signer, self._next_delivery = height, signer, 1
        self._roll.forget_keys(step)
        for group, joined in self._groups.open_epoch(step, height, KeyStream(entropy)).items():
            self._deliveries.address(step, group, joined, now_ms)
        self._save_about(step)
        self._audit.append(step, now_ms, "epoch", str(height), signer.public_key.hex())
        return step

    def enrol(self, meters: Sequence[Identity], now_ms: int, entropy: bytes) -> Step:
        """Take up new meters, and new sessions of known ones."""
        step, draw = Step(), KeyStream(entropy)
        numbers = [number for number in (self._roll.enrol(step, meter) for meter in meters) if number is not None]
        if numbers:
            self._save_about(step)
            self._audit.append(step, now_ms, "enrol", f"{numbers[0]} to {numbers[-1]}", f"{len(numbers)} meters")
            root = self._groups.root
            if self._signer is None:
                self._groups.place_all(step, root, numbers, draw)
            else:
                root.joining.update(dict.fromkeys(numbers))
                self._groups.settle(step, root, draw, self._signer)
            self._deliveries.address(step, ROOT_GROUP, numbers, now_ms)
        return step

    def remove(self, hid: bytes, now_ms: int, entropy: bytes) -> Step:
        """Take a meter out of the system: every group that it was in gets keys that it cannot have."""
        step, draw = Step(), KeyStream(entropy)
        record = self._roll.find(hid)
        if isinstance(record, Reason):
            step.refuse(record, hid)
            return step
        self._roll.remove(step, record)
        self._deliveries.forget_meter(record.number)
        self._audit.append(step, now_ms, "remove", hid.hex())
        for group in self._groups:
            # The paper has no exit from the system: k_0 stays.
            if group.number == ROOT_GROUP and not self._profile.is_guarded:
                continue
            if self._groups.expel(step, group, record.number) and self._signer is not None:
                self._settle(step, group, now_ms, draw, self._signer)
        return step

    # What meters send.

    def receive(self, data: bytes, now_ms: int, entropy: bytes) -> Step:
        """Take one message in; a refusal is in the step's events."""
        step = Step()
        try:
            message = UP_CODEC.decode(data)
        except MalformedError:
            step.refuse(Reason.MALFORMED)
            return step
        self._receive(step, message, now_ms, KeyStream(entropy))
        return step

    def _receive(self, step: Step, message: UpMessage, now_ms: int, draw: KeyStream) -> None:
        signer = self._signer
        hid = message.hid if isinstance(message, BootstrapRequest) else message.party
        if signer is None:
            step.refuse(Reason.NOT_READY, hid)
            return
        match message:
            case BootstrapRequest():
                refused = self._roll.check(message, self._epoch, now_ms)
                is_new = refused is None and not self._roll.is_answered(message)
                if is_new and not self._allowances.bootstraps(hid, now_ms):
                    refused = Reason.RATE_LIMITED
                if refused is not None:
                    step.refuse(refused, hid)
                    return
                grants = self._groups.grants(self._roll.numbered_by(hid))
                self._roll.bootstrap(step, message, self._epoch, grants, draw, signer)
            case Envelope():
                if message.mode is not Mode.UNICAST:
                    step.refuse(Reason.MEMBER_CANNOT_SEND, hid)
                    return
                if message.direction is not Direction.UP and self._profile.is_guarded:
                    step.refuse(Reason.WRONG_MODE, hid)
                    return
                opened = self._roll.open(step, message)
                if isinstance(opened, Reason):
                    step.refuse(opened, hid)
                    return
                try:
                    contents = UP_CONTENTS.decode(opened)
                except MalformedError:
                    step.refuse(Reason.MALFORMED, hid)
                    return
                self._take(step, hid, contents, now_ms, draw, signer)
            case _:
                assert_never(message)

    def _take(self, step: Step, hid: bytes, contents: UpContents, now_ms: int, draw: KeyStream, signer: Signer) -> None:
        number = self._roll.numbered_by(hid)
        match contents:
            case Confirm() if not self._allowances.confirms(hid, now_ms):
                step.refuse(Reason.RATE_LIMITED, hid)  # the meter asks again, here and below
            case Request() if not self._allowances.requests(hid, now_ms):
                step.refuse(Reason.RATE_LIMITED, hid)
            case Confirm():
                self._catch_up(step, hid, number, dict(contents.holds), now_ms)
            case Acknowledge():
                for delivery, received_ms in contents.taken:
                    self._deliveries.taken(step, hid, number, delivery, received_ms)
                for delivery in contents.too_old:
                    self._deliveries.passed(number, delivery)
            case Request():
                self._request(step, hid, number, contents, now_ms, draw, signer)
            case _:
                assert_never(contents)

    def _catch_up(self, step: Step, hid: bytes, number: int, holds: dict[int, int], now_ms: int) -> None:
        """Send a meter all that it lacks: keys of its groups, groups that it is not in, and what waits for it."""
        lacked: list[GroupKeys | Dismissed | Delivery] = []
        for group in self._groups:
            if number in group.keying.members:
                if holds.get(group.number) != group.version:
                    lacked.append(self._groups.grant(group, number))
            elif group.number in holds:
                lacked.append(Dismissed(group.number, group.version))
        lacked += self._deliveries.waiting(number, now_ms)
        for message in islice(catch_ups(lacked), CATCH_UPS_MAX):
            self._roll.send(step, hid, message, answers=True)

    def _request(
        self, step: Step, hid: bytes, number: int, request: Request, now_ms: int, draw: KeyStream, signer: Signer
    ) -> None:
        """Carry a request out once, and answer it as often as it comes [KMS Figure 9, steps 3 to 6]."""
        reason = self._roll.answered(hid, request.id) if self._profile.is_guarded else None
        if reason is not None:
            step.refuse(Reason.DUPLICATE, hid)
            self._roll.send(step, hid, Answer(request.id, reason), answers=True)
            return
        payload = request.payload
        match payload:
            case JoinProject() | LeaveProject():
                reason = Reason.CHANGES_SPENT
                if self._allowances.changes(hid, now_ms):
                    join = isinstance(payload, JoinProject)
                    reason = self._change(step, number, payload.project, now_ms, join=join)
            case _:
                reason = Reason.VALID
        if reason is Reason.VALID:
            in_time = now_ms - request.sent_ms <= TABLE_1[type(payload)].deadline_ms
            received = Received(hid, request.id, payload, request.sent_ms, now_ms, in_time)
            step.events.append(accepted(received))
            self._inbox.put(step, received)
        else:
            step.refuse(reason, hid)
        self._roll.note_answer(step, hid, request.id, reason)
        self._roll.send(step, hid, Answer(request.id, reason), answers=True)
        self._settle_unless_waiting(step, now_ms, draw, signer)

    # Demand response.

    def publish(self, project: int, name: str, excludes: Sequence[int], now_ms: int, entropy: bytes) -> Step:
        """Open a project and tell all meters [KMS Table 1]."""
        step, draw = Step(), KeyStream(entropy)
        if self._signer is None:
            step.refuse(Reason.NOT_READY)
            return step
        refused = self._groups.publish(step, GroupRecord(project, name, tuple(excludes), now_ms), draw)
        if refused is not None:
            step.refuse(refused)
            return step
        self._audit.append(step, now_ms, "publish", f"project {project}", name)
        payload = PublishProject(project, name, tuple(excludes))
        self._send(step, payload, ROOT_GROUP, None, FOREVER_MS, now_ms, self._signer)
        return step

    def change(self, hid: bytes, project: int, now_ms: int, entropy: bytes, *, join: bool) -> Step:
        """Let a meter join or leave at the operator's word."""
        step, draw = Step(), KeyStream(entropy)
        record = self._roll.find(hid)
        if isinstance(record, Reason) or self._signer is None:
            step.refuse(record if isinstance(record, Reason) else Reason.NOT_READY, hid)
            return step
        reason = self._change(step, record.number, project, now_ms, join=join)
        if reason is not Reason.VALID:
            step.refuse(reason, hid)
            return step
        self._settle_unless_waiting(step, now_ms, draw, self._signer)
        return step

    def _change(self, step: Step, number: int, project: int, now_ms: int, *, join: bool) -> Reason:
        reason = self._groups.ask(step, project, number, join=join)
        if reason is Reason.VALID:
            hid = self._roll.numbered(number).hid
            self._audit.append(step, now_ms, "join" if join else "leave", hid.hex(), f"project {project}")
        return reason

    def _settle_unless_waiting(self, step: Step, now_ms: int, draw: KeyStream, signer: Signer) -> None:
        if not self._changes_wait:
            for group in self._groups:
                self._settle(step, group, now_ms, draw, signer)

    def _settle(self, step: Step, group: Group, now_ms: int, draw: KeyStream, signer: Signer) -> bool:
        """Carry out what waits for a group, and tell newcomers what still holds there. True when something did."""
        joined = self._groups.settle(step, group, draw, signer)
        if joined is None:
            return False
        for delivery in self._deliveries.address(step, group.number, joined, now_ms):
            for number in joined:
                self._roll.send(step, self._roll.numbered(number).hid, delivery)
        return True

    def end_period(self, now_ms: int, entropy: bytes) -> Step:
        """Carry out all changes that wait [KMS 7.1]."""
        step, draw = Step(), KeyStream(entropy)
        if self._signer is None:
            step.refuse(Reason.NOT_READY)
            return step
        for group in self._groups:
            if self._settle(step, group, now_ms, draw, self._signer):
                self._audit.append(step, now_ms, "rekey", f"group {group.number}", f"version {group.version}")
        return step

    def refresh(self, now_ms: int) -> Step:
        """Carry out k ← H(k) for all keys, as Tables 2 to 4 have it; nothing in the profile `hardened`."""
        step = Step()
        for group in self._groups:
            self._groups.refresh(step, group)
        self._roll.refresh(step)
        self._audit.append(step, now_ms, "refresh")
        return step

    # Messages.

    def send(
        self,
        payload: DownPayload,
        now_ms: int,
        *,
        group: int | None = None,
        hid: bytes | None = None,
        until_ms: int = FOREVER_MS,
    ) -> Step:
        """Send a message to one meter, or to the members of a group (0: all meters)."""
        step = Step()
        refused = self._check_send(payload, group, hid)
        if refused is not None or self._signer is None:
            step.refuse(refused or Reason.NOT_READY, hid)
            return step
        self._send(step, payload, group, hid, until_ms, now_ms, self._signer)
        return step

    def _check_send(self, payload: DownPayload, group: int | None, hid: bytes | None) -> Reason | None:
        if (group is None) == (hid is None):
            return Reason.BAD_ARGUMENT
        mode = Mode.UNICAST if group is None else Mode.BROADCAST if group == ROOT_GROUP else Mode.MULTICAST
        if mode not in TABLE_1[type(payload)].modes:
            return Reason.WRONG_MODE
        if hid is not None:
            found = self._roll.find(hid)
            return found if isinstance(found, Reason) else None
        return None if group is not None and self._groups.get(group) is not None else Reason.UNKNOWN_GROUP

    def _send(
        self,
        step: Step,
        payload: DownPayload,
        number: int | None,
        hid: bytes | None,
        until_ms: int,
        now_ms: int,
        signer: Signer,
    ) -> None:
        group: Group | None = None
        if hid is not None:
            audience = [self._roll.numbered_by(hid)]
        else:
            group = self._groups.get(ROOT_GROUP if number is None else number)
            audience = [] if group is None else list(group.keying.members)
        identity = DeliveryId(self._epoch, self._next_delivery)
        self._next_delivery += 1
        record = DeliveryRecord(identity, number, now_ms, until_ms, payload, bitmap(audience))
        delivery = self._deliveries.add(step, record)
        self._save_about(step)
        self._audit.append(step, now_ms, "send", f"{identity.epoch}/{identity.number}", TABLE_1[type(payload)].title)
        if group is not None:
            self._groups.send(step, group, delivery, signer)
        elif hid is not None:
            self._roll.send(step, hid, delivery)

    def resume_audit(self, length: int, head: bytes, now_ms: int) -> Step:
        """Go on with the audit log after the anchor that the chain has: an old backup of the store came back."""
        step = Step()
        self._audit.resume(step, now_ms, length, head)
        return step

    def tick(self, now_ms: int, is_there: Callable[[bytes], bool] | None = None) -> Step:
        """Repeat what is due to the meters that are there (all when left out); others catch up when they come."""
        step = Step()
        if self._signer is not None:
            self._deliveries.tick(step, now_ms, is_there)
        return step

    # What can be asked.

    @property
    def counts(self) -> ServerCounts:
        confirmed = sum(record.channel is not None for record in self._roll)
        groups = sum(1 for _ in self._groups)
        return ServerCounts(self._epoch, len(self._roll), confirmed, groups, self._audit.length, self._audit.head)

    @property
    def groups(self) -> GroupBook:
        return self._groups

    @property
    def roll(self) -> Roll:
        return self._roll

    @property
    def deliveries(self) -> DeliveryBook:
        return self._deliveries

    @property
    def inbox(self) -> list[Received]:
        """Return the newest notifications and meter data that were accepted, oldest first."""
        return list(self._inbox)

    def summaries(self, now_ms: int) -> list[Summary]:
        return list(self._deliveries.summaries(now_ms))

    @property
    def graph(self) -> KeyGraph:
        """Return KMF as it is now [KMS equation 1]."""
        users = [record.number for record in self._roll if not record.removed]
        paths = {
            group.number: {member: [node.node for node in group.keying.path(member)] for member in group.keying.members}
            for group in self._groups
        }
        return key_graph(users, paths)

    def _save_about(self, step: Step) -> None:
        step.put(ABOUT, b"about", ABOUT_CODEC, AboutRecord(self._epoch, self._roll.next_number, self._next_delivery))


def _delivery_id(key: bytes) -> DeliveryId:
    return DeliveryId(int.from_bytes(key[:8], "big"), int.from_bytes(key[8:16], "big"))
