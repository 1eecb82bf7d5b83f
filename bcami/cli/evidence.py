"""Gathers evidence for `show evidence`: what the chain holds, and what nodes keep that is not recorded yet.

Nothing is believed for being told: the chain's records are what weak equal answers say (protocol 5.6), and each pair of
statements, recorded or kept, is verified here against genesis.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from bcami.cli.interrupt import run_command
from bcami.client.nodes import NodeClient
from bcami.client.reads import weak_read
from bcami.codec import encode
from bcami.crypto.evidence import check_evidence
from bcami.crypto.roster import Roster
from bcami.errors import ExpectationError, MalformedError
from bcami.model.api import QueryAnswer
from bcami.model.evidence import (
    EVIDENCE_CODEC,
    EVIDENCE_RECORDS_CODEC,
    Evidence,
    EvidenceRecord,
    evidence_id,
    place_id,
    record_key,
)
from bcami.model.signing import u64

_ROUNDS: Final = 12
"""Nodes answer from different heights while evidence is being recorded: about eight seconds of asking again."""


class Recorded(NamedTuple):
    """One record of the chain, verified."""

    record: EvidenceRecord
    height: int
    """Block that recorded it."""


def recorded(urls: Sequence[str], roster: Roster) -> list[Recorded]:
    """Return what the chain holds, in the order of blocks.

    Raises InconclusiveError when weak nodes do not agree, ExpectationError when what they agree on does not hold.
    """
    found = run_command(_read(urls, roster))
    for item in found:
        if not _holds(item.record, roster):
            raise ExpectationError(
                f"the chain's evidence {item.record.evidence_id.hex()} does not hold against genesis",
                likely="more than f nodes lie, or this home's genesis is of another network",
            )
    return sorted(found, key=lambda item: (item.height, item.record.evidence_id))


async def _read(urls: Sequence[str], roster: Roster) -> list[Recorded]:
    weak = roster.quorum.weak
    clients = [NodeClient(url, chain=roster.chain) for url in urls]
    found = []
    try:
        for replica in range(roster.quorum.n):
            answer = await weak_read(clients, partial(_ask_about, replica), weak=weak, rounds=_ROUNDS)
            for record in EVIDENCE_RECORDS_CODEC.decode(answer.value or b"\x90"):
                key = record_key(roster.chain, record.evidence.place)
                entry = await weak_read(clients, partial(_ask_state, key), weak=weak, rounds=_ROUNDS)
                found.append(Recorded(record, entry.written))
    finally:
        for client in clients:
            await client.close()
    return found


async def _ask_about(replica: int, node: NodeClient) -> QueryAnswer:
    return await node.query("governance", "evidence", u64(replica))


async def _ask_state(key: bytes, node: NodeClient) -> QueryAnswer:
    return await node.state(key)


def _holds(record: EvidenceRecord, roster: Roster) -> bool:
    fault = check_evidence(record.evidence, roster.chain, roster.epoch, roster.keys)
    return fault is None and record.evidence_id == evidence_id(roster.chain, record.evidence)


class Kept:
    """What nodes keep, put together: once for each place."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._items: dict[bytes, tuple[Evidence, dict[str, Any], list[str]]] = {}
        self.false: list[str] = []
        """Nodes that showed evidence which does not hold."""

    def add(self, node: str, told: list[dict[str, Any]]) -> None:
        """Take what a node's operator endpoint told."""
        for item in told:
            evidence = self._verified(str(item.get("evidence", "")))
            if evidence is None:
                self.false.append(node)
                continue
            place = place_id(self._roster.chain, evidence.place)
            self._items.setdefault(place, (evidence, item, []))[2].append(node)

    def _verified(self, text: str) -> Evidence | None:
        try:
            evidence = EVIDENCE_CODEC.decode(bytes.fromhex(text))
        except (ValueError, MalformedError):
            return None
        roster = self._roster
        return evidence if check_evidence(evidence, roster.chain, roster.epoch, roster.keys) is None else None

    def unrecorded(self, on_chain: list[Recorded]) -> list[dict[str, Any]]:
        """Return what is kept about places that the chain does not know."""
        known = {place_id(self._roster.chain, item.record.evidence.place) for item in on_chain}
        return [
            {**form(evidence, self._roster), "outcome": item.get("outcome"), "kept_by": nodes}
            for place, (evidence, item, nodes) in self._items.items()
            if place not in known
        ]


def form(evidence: Evidence, roster: Roster) -> dict[str, Any]:
    """Return evidence for people and machines."""
    place = evidence.place
    return {
        "evidence_id": evidence_id(roster.chain, evidence).hex(),
        "accused": roster.names[place.replica],
        "kind": place.kind.value,
        "epoch": place.epoch,
        "view": place.view,
        "height": place.height,
        "first": evidence.first.content.hex(),
        "second": evidence.second.content.hex(),
        "evidence": encode(evidence).hex(),
    }


def recorded_form(item: Recorded, roster: Roster) -> dict[str, Any]:
    return {
        **form(item.record.evidence, roster),
        "block": item.height,
        "time_ms": item.record.time_ms,
        "reporter": roster.names[item.record.reporter],
    }
