"""Measures the running key management (`bcami.kms`): its session keys, messages, stored bytes and rekeyings."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bcami.codec import encode
from bcami.crypto.keys import SecretKey
from bcami.faults.simulator.identities import entropy
from bcami.kms.bench import measure_storage
from bcami.kms.costs import Cost, Laboratory
from bcami.kms.hardened import HardenedProfile
from bcami.kms.keying import STAR_DEGREE
from bcami.kms.messages import ROOT_GROUP, Direction, GroupKeys, Mode, NodeKey
from bcami.kms.paper import PaperProfile, shared_session, unicast_session, xor
from bcami.kms.profile import Profile, Scope
from bcami.kms.storage import Storage, server_storage
from bcami.model.reasons import Reason
from bcami.report.costs.kms import METERS, PROJECTS, KmsMeasured, MessageCost
from bcami.report.costs.rekeying import DEGREE, SIZES, Rekeyed, RekeyMeasured
from bcami.report.document import Measured
from bcami.report.measuring import Effort, cpu_us, quartiles
from bcami.report.papers import kms as paper

CONTENTS_BYTES: Final = 16
"""Of the messages that are measured: one value, as the paper's formulas count."""
METHOD: Final = "bcami.kms, profile paper (the paper's formulas, corrected)."
_QUICK_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class _Parties:
    scope: Scope
    signer: SecretKey

    @property
    def profiles(self) -> tuple[Profile, Profile]:
        return PaperProfile(), HardenedProfile(self.scope)


def measure_kms(effort: Effort, groups: Sequence[int] = paper.TABLE_12_GROUPS) -> tuple[KmsMeasured, RekeyMeasured]:
    """Return what the running key management costs, for the paper's tables and for strategies by size.

    `groups`: members of the groups of Tables 12 and 13.
    """
    parties = _Parties(
        Scope(entropy("report chain"), 0, entropy("report mdms")),
        SecretKey.generate(entropy("report kms", effort.seed)),
    )
    sizes = [size for size in SIZES if size <= _QUICK_MAX or not effort.quick]
    flat = {size: _leave(parties, PaperProfile(), size, STAR_DEGREE, effort) for size in groups}
    sessions = _sessions(effort)
    stored = {
        (profile.name, m): measure_storage(parties.scope, parties.signer, profile, projects=m).key_bytes
        for profile in parties.profiles
        for m in (*paper.TABLE_8_KB, *paper.TABLE_8_TEXT_KB)
    }
    found = KmsMeasured(
        meter_bytes={m: size for (name, m), size in stored.items() if name == "paper"},
        hardened_bytes={m: size for (name, m), size in stored.items() if name == "hardened"},
        server=_server_held(parties),
        meter=tuple(measure_storage(parties.scope, parties.signer, PaperProfile(), projects=m) for m in (0, PROJECTS)),
        meter_us=sessions,
        server_us={mode: sessions[mode] for mode in ("unicast", "broadcast")},
        rekey_ms={size: item.cpu_us.scaled(1e-3) for size, item in flat.items()},
        rekey_bytes={size: item.sent_bytes for size, item in flat.items()},
        messages=tuple(item for profile in parties.profiles for item in _messages(parties, profile, effort)),
        method=METHOD,
    )
    hardened = HardenedProfile(parties.scope)
    rekeyed = RekeyMeasured(
        flat={size: _leave(parties, hardened, size, STAR_DEGREE, effort) for size in sizes},
        lkh={size: _leave(parties, hardened, size, DEGREE, effort) for size in sizes},
        method="bcami.kms, profile hardened: the MDMS's step from the end of a period to the messages; telling the one "
        "who leaves is not counted, and a multicast is counted once.",
    )
    return found, rekeyed


def _sessions(effort: Effort) -> dict[str, Measured]:
    """Return what deriving the session keys takes at one end, by mode, in the paper's profile."""
    key, count, data, date = (bytes(range(start, start + 16)) for start in range(4))

    def unicast() -> None:
        unicast_session(key, count, xor(data, date))

    def multicast() -> None:
        unicast()
        shared_session(key, count)

    return {
        "unicast": cpu_us(unicast, effort.samples),
        "broadcast": cpu_us(lambda: shared_session(key, count), effort.samples),
        "multicast": cpu_us(multicast, effort.samples),
    }


def _messages(parties: _Parties, profile: Profile, effort: Effort) -> list[MessageCost]:
    """Return what a whole message costs both ends: keys, encryption, and what proves where it is from."""
    party, contents, signer = entropy("report party"), bytes(CONTENTS_BYTES), parties.signer
    one = profile.unicast(bytes(range(16)), bytes(range(16)), 1, 1)
    group = profile.shared(GroupKeys(ROOT_GROUP, 0, 0, 1, 0, bytes(16), (NodeKey(0, bytes(range(16))),)), 1)
    _, direct = profile.protect(one, Direction.DOWN, party, contents)
    _, shared = profile.protect_shared(group, Mode.BROADCAST, b"", contents, signer)
    _require_open(profile.open(one, direct))
    _require_open(profile.open_shared(group, shared, signer.public_key))
    return [
        MessageCost(
            profile.name,
            "unicast",
            cpu_us(lambda: profile.protect(one, Direction.DOWN, party, contents), effort.samples),
            cpu_us(lambda: profile.open(one, direct), effort.samples),
            len(encode(direct)),
        ),
        MessageCost(
            profile.name,
            "broadcast, multicast",
            cpu_us(lambda: profile.protect_shared(group, Mode.BROADCAST, b"", contents, signer), effort.samples),
            cpu_us(lambda: profile.open_shared(group, shared, signer.public_key), effort.samples),
            len(encode(shared)),
        ),
    ]


def _require_open(opened: object) -> None:
    assert not isinstance(opened, Reason), f"a message of our own was refused: {opened}"


def _leave(parties: _Parties, profile: Profile, size: int, degree: int, effort: Effort) -> Rekeyed:
    """Return what it takes when a member leaves a project of that size, several times over."""
    turns = 1 if effort.quick and size > _QUICK_MAX else min(effort.few, max(3, 20_000 // size))
    laboratory = Laboratory(parties.scope, profile, parties.signer, size, degree=degree)
    costs: list[Cost] = []
    for turn in range(turns):
        leaver = laboratory.hids[size - 1 - turn]
        costs.append(laboratory.change(leaves=[leaver], clock=time.process_time))
        laboratory.change(joins=[leaver])
    first = costs[0]
    spent = quartiles(cost.cpu_s * 1e6 for cost in costs)
    return Rekeyed(first.encryptions, first.unicasts + first.multicasts, first.wire_bytes, spent)


def _server_held(parties: _Parties) -> Storage:
    """Return what the MDMS holds for the meters and projects of Table 7; a group's size changes nothing in a star."""
    laboratory = Laboratory(parties.scope, PaperProfile(), parties.signer, METERS, degree=STAR_DEGREE, spare=0)
    server = laboratory.server
    for project in range(2, PROJECTS + 1):
        server.publish(project, f"project {project}", (), 0, entropy("project", project))
        server.change(laboratory.hids[0], project, 0, entropy("joins", project), join=True)
    server.end_period(0, entropy("period"))
    return server_storage(laboratory.server)
