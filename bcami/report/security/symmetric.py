"""The key management: insiders who forge, leaked keys, and ends that are driven apart [KMS].

The paper's scheme is `bcami.kms.paper`: its formulas, errors corrected, on the same machines.
"""

from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bcami.codec import encode
from bcami.crypto.keys import SecretKey
from bcami.errors import MalformedError
from bcami.kms.hardened import HardenedProfile, header_of
from bcami.kms.messages import (
    DOWN_CODEC,
    DOWN_CONTENTS,
    KEY_BYTES,
    ROOT_GROUP,
    Delivery,
    DeliveryId,
    Envelope,
    Mode,
    Rekey,
    RemoteControl,
    group_party,
)
from bcami.kms.paper import crypt, hashed, keyed_hash, shared_session, unicast_session
from bcami.kms.records import Channel, HardenedChannel, MeterKeysRecord, PaperChannel
from bcami.model.reasons import Reason
from bcami.report.security.attack import Account, Attack, PaperRun, Run
from bcami.report.security.grounds import entropy
from bcami.report.security.wire import SCOPE, KeyHolder, Wire, limit_to, nothing

FORGED: Final = 666
COUNTS_TRIED: Final = 12
HASHES_TRIED: Final = 4
UNTIL_NEXT_KEY: Final = (
    "a key that a meter holds opens what is sent under it: its own until the next KMS epoch, a group's until that "
    "group's next rekeying"
)
KMS: Final = "KMS (Abdullah et al. 2023)"


def _both(attack: Callable[[Wire, Account], None]) -> tuple[Run, Run]:
    """Return the attack on the profile `hardened`, which is the default, and on the paper's formulas."""

    def on(profile: str) -> Run:
        def run(seed: int) -> Account:
            account = Account()
            attack(Wire(profile, seed=seed), account)
            return account

        return run

    return on("hardened"), on("paper")


def _delivery(wire: Wire, watts: int) -> bytes:
    """Return what a command to limit the power looks like inside."""
    content = Delivery(DeliveryId(wire.height, 900 + watts % 90), wire.now_ms, 2**62, limit_to(watts), ROOT_GROUP)
    return DOWN_CONTENTS.encode(content)


def _root(record: MeterKeysRecord) -> Channel:
    return next(held.channel for held in record.memberships if held.group == ROOT_GROUP)


# Insiders.


def insider_forges(wire: Wire, account: Account) -> None:
    """A meter sends a command to all in the MDMS's name, under the broadcast key that it has."""
    insider, victim = wire.meters[0], wire.meters[1]
    key = SecretKey.generate(entropy("insider"))
    profile = insider.profile()
    account.does("takes k_0 and its counter out of its own store, and makes a broadcast: limit every house to 666 W")
    contents = _delivery(wire, FORGED)
    _, envelope = profile.protect_shared(_root(insider.stolen), Mode.BROADCAST, group_party(ROOT_GROUP), contents, key)
    refused = wire.give(victim, encode(envelope))
    account.no("meter: the forged broadcast", refused[0] if refused else None)
    account.aim("have another meter obey", FORGED in wire.obeyed(victim))
    wire.command(7)
    wire.settle()
    account.check("the MDMS's own broadcast is obeyed", 7 in wire.obeyed(victim))


def insider_rekeys(wire: Wire, account: Account) -> None:
    """A meter sends a rekeying to keys of its own."""
    insider, victim = wire.meters[0], wire.meters[1]
    held = next(item for item in insider.stolen.memberships if item.group == ROOT_GROUP)
    account.does("makes a rekeying of the broadcast group, so that the others leave the MDMS's keys behind")
    rekey = Rekey(ROOT_GROUP, wire.height, held.version, held.version + 1, (), (1,), (), b"")
    profile = insider.profile()
    before = victim.end.groups.get(ROOT_GROUP)
    refused = wire.give(victim, encode(profile.sign_rekey(rekey, SecretKey.generate(entropy("insider")))))
    account.no("meter: the forged rekeying", refused[0] if refused else None)
    account.aim("move another meter to other keys", victim.end.groups.get(ROOT_GROUP) != before)
    wire.command(7)
    wire.settle()
    account.check("the MDMS's own broadcast is obeyed", 7 in wire.obeyed(victim) or wire.name == "paper")


def removed_meter_listens(wire: Wire, account: Account) -> None:
    """A meter that was removed from the system keeps its keys, and hears everything."""
    gone, other = wire.meters[0], wire.meters[1]
    stolen = gone.stolen
    wire.remove(gone)
    account.does("was removed from the system, keeps all its keys, and hears all that is sent, rekeyings too")
    data = wire.command(8)
    for _, heard in wire.seen_down[-8:]:
        gone.end.receive(heard, wire.now_ms)
    wire.settle()
    opened = _opened(data, (stolen, gone.end.record))
    account.no("the removed meter's keys, on a broadcast after it left", None if opened == 8 else "do not open it")
    account.aim("read a broadcast after its removal", opened == 8)
    account.check("the others obey it", 8 in wire.obeyed(other))


# Leaks.


def keys_leak(wire: Wire, account: Account) -> None:
    """All keys of a meter leak, between two refreshes."""
    meter = wire.meters[0]
    past = wire.command(1, meter)
    wire.settle()
    wire.refresh()
    now = wire.command(2, meter)
    wire.settle()
    stolen = meter.stolen
    account.does("records everything; after the second refresh steals all keys of a meter")
    account.aim("read a message of before the refresh", _opened(past, (stolen,)) == 1)
    account.aim("read a message since the last refresh", _opened(now, (stolen,)) == 2, UNTIL_NEXT_KEY)
    wire.refresh()
    later = wire.command(3, meter)
    wire.settle()
    opened = _opened(later, (stolen,)) == 3
    account.no("the stolen keys, after the next refresh", None if opened else "do not open it")
    account.aim("read a message of after the next refresh", opened)
    account.check("the meter obeys all three", set(wire.obeyed(meter)) == {1, 2, 3})


def _opened(data: bytes, stolen: tuple[MeterKeysRecord, ...]) -> int | None:
    """Return the watts in a recorded command, opened with stolen keys by whatever they allow; None when they do not."""
    envelope = DOWN_CODEC.decode(data)
    if not isinstance(envelope, Envelope):
        return None
    for record in stolen:
        channels = [held.channel for held in record.memberships]
        channels += [record.unicast] if record.unicast is not None else []
        for channel in channels:
            contents = _broken_open(channel, envelope)
            watts = None if contents is None else _watts(contents)
            if watts is not None:
                return watts
    return None


def _broken_open(channel: Channel, envelope: Envelope) -> bytes | None:
    match channel:
        case HardenedChannel():
            header = header_of(envelope)
            key, nonce = HardenedProfile(SCOPE).session(channel.key, header)
            try:
                return AESGCM(key).decrypt(nonce, envelope.body, header)
            except InvalidTag:
                return None
        case PaperChannel():
            return _broken_open_paper(channel, envelope)


def _broken_open_paper(channel: PaperChannel, envelope: Envelope) -> bytes | None:
    """Try counters around the stolen one, and k, H(k) and H(H(k))."""
    key, start = channel.key, int.from_bytes(channel.count, "big")
    for _ in range(HASHES_TRIED):
        for step in range(-COUNTS_TRIED, COUNTS_TRIED):
            count = ((start + step) % (1 << 8 * KEY_BYTES)).to_bytes(KEY_BYTES, "big")
            for _, session in (shared_session(key, count), unicast_session(key, count, bytes(KEY_BYTES))):
                if keyed_hash(session, envelope.body) == envelope.sign:
                    return crypt(session, envelope.body)
        key = hashed(key)
    return None


def _watts(contents: bytes) -> int | None:
    try:
        opened = DOWN_CONTENTS.decode(contents)
    except MalformedError:
        return None
    if isinstance(opened, Delivery) and isinstance(opened.payload, RemoteControl):
        return opened.payload.limit_w
    return None


# Desynchronisation.


def messages_are_lost(wire: Wire, account: Account) -> None:
    """Some messages to one meter are blocked; then nothing is."""
    meter, other = wire.meters[0], wire.meters[1]
    account.does("blocks three messages of the MDMS to one meter; then nothing more")
    wire.lose = lambda to: to is meter
    for number in (1, 2, 3):
        wire.command(number, meter)
    wire.flow()
    wire.lose = nothing
    wire.command(9, meter)
    wire.notify(meter, 9)
    wire.settle(8)
    last = meter.refused[-1] if meter.refused else "nothing came"
    account.no("meter: the message after the gap", None if 9 in wire.obeyed(meter) else last)
    account.aim("part the meter from the MDMS for good", 9 not in wire.obeyed(meter) or 9 not in wire.heard())
    account.aim("lose what was blocked for good", not {1, 2, 3} <= set(wire.obeyed(meter)))
    wire.command(5, other)
    wire.settle()
    account.check("another meter is served all the time", 5 in wire.obeyed(other))


def messages_come_again(wire: Wire, account: Account) -> None:
    """Everything that was ever on the wire comes again, in reverse order, both ways."""
    meter = wire.meters[0]
    for number in (1, 2, 3):
        wire.command(number, meter)
        wire.notify(meter, number)
    wire.command(4)
    wire.settle()
    account.check("commands are obeyed", {1, 2, 3, 4} <= set(wire.obeyed(meter)))
    before = _state(wire)
    refused: list[Reason] = []
    account.does(f"sends all {len(wire.seen_down)} messages down and all {len(wire.seen_up)} up again, newest first")
    for receiver, data in list(reversed(wire.seen_down)):
        refused += wire.give(receiver, data)
    for data in list(reversed(wire.seen_up)):
        wire.give_server(data)
    refused += wire.refused
    for reason in dict.fromkeys(refused):
        account.no("both ends: old messages", reason)
    wire.settle()
    account.aim("have an old message accepted again", _state(wire) != before)
    wire.command(9, meter)
    wire.settle(8)
    account.aim("part the meter from the MDMS for good", 9 not in wire.obeyed(meter))


def _state(wire: Wire) -> tuple[list[list[int]], list[int]]:
    return [wire.obeyed(meter) for meter in wire.meters], wire.heard()


def backups_come_back(seed: int) -> Account:
    """Both ends come back from old backups, and everything recorded since is played to them."""
    account = Account()
    wire = Wire("hardened", seed=seed)
    meter = wire.meters[0]
    server_then, meter_then = wire.store.backup(), meter.store.backup()
    for number in (1, 2, 3):
        wire.command(number, meter)
        wire.notify(meter, number)
    wire.settle()
    account.check("commands are obeyed", set(wire.obeyed(meter)) == {1, 2, 3})
    before = _state(wire)
    account.does("makes the meter restart from a backup, plays everything to it, then does the same to the MDMS")
    wire.restart_meter(meter, meter_then)
    refused = _play(wire, meter)
    wire.restart_server(server_then)
    refused += _play(wire, meter)
    for reason in list(dict.fromkeys([*refused, *wire.refused]))[:6]:
        account.no("both ends: recorded messages", reason)
    account.aim("have an old message accepted again", _state(wire) != before)
    wire.command(9, meter)
    wire.command(10)
    wire.notify(meter, 9)
    wire.settle(8)
    parted = 9 not in wire.obeyed(meter) or 9 not in wire.heard() or 10 not in wire.obeyed(wire.meters[1])
    account.aim("part the two ends for good", parted)
    return account


def _play(wire: Wire, meter: KeyHolder) -> list[Reason]:
    refused: list[Reason] = []
    for receiver, data in list(wire.seen_down):
        if receiver is meter:
            refused += wire.give(meter, data)
    for data in list(wire.seen_up):
        wire.give_server(data)
    return refused


_FORGES, _LEAK = _both(insider_forges), _both(keys_leak)
_LISTENS, _LOST, _AGAIN = _both(removed_meter_listens), _both(messages_are_lost), _both(messages_come_again)

ATTACKS: Final = (
    Attack(
        "F1.6",
        "A meter's symmetric keys leak",
        "all keys of the key management that one meter has; everything that was sent",
        _LEAK[0],
        PaperRun("Tables 2 to 5: k ← H(k)", _LEAK[1], KMS),
    ),
    Attack(
        "INSIDER.1",
        "A meter forges a broadcast",
        "a meter with all its keys",
        _FORGES[0],
        PaperRun("Table 3", _FORGES[1], KMS),
        also=("F4", "F7"),
    ),
    Attack("INSIDER.2", "A meter forges a rekeying", "a meter with all its keys", _both(insider_rekeys)[0]),
    Attack(
        "INSIDER.3",
        "A removed meter listens",
        "all keys of a meter that left the system",
        _LISTENS[0],
        PaperRun("Table 5: no exit from the system", _LISTENS[1], KMS),
    ),
    Attack(
        "DESYNC.1",
        "Messages are blocked for a while",
        "the link of one meter, for a while",
        _LOST[0],
        PaperRun("Tables 2 to 4: counters are not sent", _LOST[1], KMS),
    ),
    Attack(
        "DESYNC.2",
        "Everything comes again, in reverse order",
        "the links, and all that was ever sent",
        _AGAIN[0],
        PaperRun("Tables 2 to 4", _AGAIN[1], KMS),
        also=("F8",),
    ),
    Attack(
        "DESYNC.3",
        "Both ends come back from old backups",
        "the links, all that was ever sent, and the operator's old backups",
        backups_come_back,
        also=("F8",),
    ),
)
