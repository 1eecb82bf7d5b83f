"""How long the KMS takes, in CPU time of this machine, beside the paper's figures."""

from typing import Final, NamedTuple

from bcami.codec import encode
from bcami.crypto.hpke import KemSecretKey
from bcami.crypto.keys import SecretKey
from bcami.crypto.signatures import Signer
from bcami.kms.costs import Clock, Laboratory
from bcami.kms.draw import KeyStream
from bcami.kms.hardened import HardenedProfile
from bcami.kms.keying import STAR_DEGREE
from bcami.kms.messages import ROOT_GROUP, Direction, MeterDataCall, Mode
from bcami.kms.meter import MeterKeys
from bcami.kms.paper import PaperProfile, unicast_session, xor
from bcami.kms.profile import Profile, Scope, header_bytes
from bcami.kms.roll import Identity
from bcami.kms.server import KeyServer
from bcami.kms.storage import Storage, meter_storage

PAPER_SESSIONS_MS: Final = 76.8
"""Table 11 corrected: 7.68 µs for each of 10,000 meters (the slow end, 50 Mb/s)."""
LEAVE_MS: Final = 1.0


class Measured(NamedTuple):
    """One row: what was done, in which profile and strategy, and its CPU milliseconds (the best of some runs)."""

    what: str
    profile: str
    strategy: str
    members: int
    cpu_ms: float
    limit_ms: float | None
    """What is promised; None where nothing is."""


def measure(scope: Scope, signer: Signer, clock: Clock, *, members: int = 10_000, runs: int = 3) -> list[Measured]:
    """Return all rows. `clock` gives CPU seconds."""
    profiles: tuple[Profile, ...] = (PaperProfile(), HardenedProfile(scope))
    paper = _best(runs, lambda: paper_sessions(members, clock))
    hardened = _best(runs, lambda: hardened_sessions(scope, members, clock))
    rows = [
        Measured("session keys", "paper", "", members, paper, PAPER_SESSIONS_MS),
        Measured("session keys", "hardened", "", members, hardened, None),
    ]
    for profile in profiles:
        for degree, name in ((4, "lkh"), (STAR_DEGREE, "flat")):
            laboratory = Laboratory(scope, profile, signer, members, degree=degree, spare=1)
            leaves, joins = [], []
            for turn in range(runs):
                leaver = laboratory.hids[members - 1 - turn]
                leaves.append(laboratory.change(leaves=[leaver], clock=clock).cpu_s)
                joins.append(laboratory.change(joins=[leaver], clock=clock).cpu_s)
            limit = LEAVE_MS if name == "lkh" else None
            rows.append(Measured("leave", profile.name, name, members, min(leaves) * 1000, limit))
            rows.append(Measured("join", profile.name, name, members, min(joins) * 1000, None))
            if name == "lkh":
                spent = min(broadcast(laboratory, clock) for _ in range(runs)) * 1000
                rows.append(Measured("broadcast", profile.name, "", members, spent, None))
    return rows


def measure_storage(
    scope: Scope, signer: Signer, profile: Profile, *, projects: int, degree: int = STAR_DEGREE
) -> Storage:
    """Return what one real meter holds that takes part in so many projects [KMS Table 8].

    Two more members in each, as in Figure 3; more of them change nothing but the height of a hierarchy.
    """
    draw = KeyStream(bytes(32))
    key, kem = SecretKey.generate(draw.block()), KemSecretKey.generate(draw.block())
    server = KeyServer(scope, profile, degree=degree)
    others = [Identity(number.to_bytes(32, "big"), 1, bytes(33), bytes(65)) for number in (1, 2)]
    hid = draw.block()
    server.enrol([Identity(hid, 1, key.public_key, kem.public_key), *others], 0, draw.block())
    server.open_epoch(1, signer, 0, draw.block())
    for project in range(1, projects + 1):
        server.publish(project, f"project {project}", (), 0, draw.block())
        for member in (hid, *(other.hid for other in others)):
            server.change(member, project, 0, draw.block(), join=True)
    meter = MeterKeys(scope, profile, hid, 1, key, kem)
    up = meter.epoch_opened(1, signer.public_key, 0, draw.block()).sends
    while up:
        down = [send for item in up for send in server.receive(encode(item.message), 0, draw.block()).sends]
        up = [send for item in down for send in meter.receive(encode(item.message), 0).sends]
    return meter_storage(meter.record)


def paper_sessions(members: int, clock: Clock) -> float:
    """Return CPU seconds for one session key of each meter, as Table 9 charges it: HMAC + 2 H + 3 XOR."""
    draw = KeyStream(bytes(32))
    given = [(draw.key(), draw.key(), draw.key(), draw.key()) for _ in range(members)]
    began = clock()
    for key, count, metered, date in given:
        unicast_session(key, count, xor(metered, date))
    return clock() - began


def hardened_sessions(scope: Scope, members: int, clock: Clock) -> float:
    """Return CPU seconds for one session key and nonce of each meter."""
    draw, profile = KeyStream(bytes(32)), HardenedProfile(scope)
    given = [(draw.key(), draw.block()) for _ in range(members)]
    began = clock()
    for key, hid in given:
        profile.session(key, header_bytes(Mode.UNICAST, Direction.DOWN, hid, 1, 1, 1))
    return clock() - began


def broadcast(laboratory: Laboratory, clock: Clock) -> float:
    """Return CPU seconds of the MDMS for one message to all meters, status of each included."""
    began = clock()
    laboratory.server.send(MeterDataCall(0, 1), 0, group=ROOT_GROUP)
    return clock() - began


def _best(runs: int, once: Clock) -> float:
    return min(once() for _ in range(runs)) * 1000
