"""Keeps the evidence that a node saw, and brings it to the chain (bcami.model.evidence, chaincode/governance.py).

A contradiction that ordering observes is verified like anybody would, made small, and written to the node's folder;
then the node reports it through its own core, and asks again until the chain holds it. Others saw it too: each node
waits for its turn, which comes with its distance from the accused, and reports only what the chain does not have.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec

from bcami.codec import encode
from bcami.contract.guard import guard_key, highest
from bcami.crypto.evidence import check_evidence, verify_evidence
from bcami.crypto.keyfile import write_private
from bcami.crypto.roster import Roster
from bcami.crypto.signatures import Signer
from bcami.errors import EnvironmentFault, MalformedError
from bcami.model.api import COMMITTED, REFUSED, CertifiedHeader, SubmitResult
from bcami.model.chain import StateEntry
from bcami.model.events import EquivocationSeen
from bcami.model.evidence import (
    KEPT_EVIDENCE_CODEC,
    RECORDS_PER_REPLICA_MAX,
    Evidence,
    KeptEvidence,
    Place,
    count_key,
    place_id,
    record_key,
)
from bcami.model.genesis import operator_id
from bcami.model.reasons import Reason
from bcami.model.transaction import Transaction, argument_digest, transaction_id

SUFFIX: Final = ".evidence"
SEEN_MAX: Final = 256
"""Observations that wait to be verified; more are dropped: every peer that lies has been caught many times by then."""
REPORTS_AT_ONCE_MAX: Final = 16
TURN_S: Final = 2.0
"""Between the turns of two nodes."""
PAUSE_TURNS: Final = 3
"""Turns between two reports against one accused: a report makes a block, in which a liar contradicts itself again."""
RETRY_MAX_S: Final = 60.0
OUTCOME_S: Final = 10.0
"""How long a report waits for its outcome."""

_ON_CHAIN: Final = (Reason.VALID, Reason.ALREADY_RECORDED)
_NUMBER_USED: Final = (Reason.REPLAY, Reason.SEQUENCE_TOO_OLD)
_TRANSIENT: Final = (Reason.QUEUE_FULL, Reason.RATE_LIMITED, Reason.NOT_READY, Reason.TIMESTAMP_AHEAD, Reason.BEHIND)
_COUNT: Final = msgspec.msgpack.Decoder(int)

Submit = Callable[[Sequence[Transaction]], Awaitable[tuple[list[SubmitResult], list[CertifiedHeader]]]]
Read = Callable[[bytes], StateEntry | None]


class Log(Protocol):
    """What this module needs of a logger."""

    def info(self, event: str, **fields: object) -> object: ...

    def warning(self, event: str, **fields: object) -> object: ...


class EvidenceFolder:
    """A node's evidence on disk: one file for each place, the first evidence about it, so many for each accused."""

    def __init__(self, folder: Path, roster: Roster) -> None:
        """Raises EnvironmentFault when the folder cannot be used. Files that do not hold are left alone and named."""
        self._folder = folder
        self._roster = roster
        self.kept: dict[bytes, KeptEvidence] = {}
        """By the id of the place."""
        self.unreadable: list[str] = []
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            files = [(path, path.read_bytes()) for path in sorted(folder.glob(f"*{SUFFIX}"))]
        except OSError as error:
            raise EnvironmentFault(f"the evidence cannot be read: {error.strerror}", where=str(folder)) from None
        for path, data in files:
            kept = self._decode(data)
            if kept is None or path.name != self._name(kept.evidence):
                self.unreadable.append(path.name)
            else:
                self.kept[place_id(roster.chain, kept.evidence.place)] = kept

    def _decode(self, data: bytes) -> KeptEvidence | None:
        try:
            kept = KEPT_EVIDENCE_CODEC.decode(data)
        except MalformedError:
            return None
        roster = self._roster
        fault = check_evidence(kept.evidence, roster.chain, roster.epoch, roster.keys)
        return kept if fault is None else None

    def _name(self, evidence: Evidence) -> str:
        return place_id(self._roster.chain, evidence.place).hex() + SUFFIX

    def takes(self, evidence: Evidence) -> bool:
        """Tell whether this evidence is new and there is room for it."""
        if place_id(self._roster.chain, evidence.place) in self.kept:
            return False
        accused = [item for item in self.kept.values() if item.evidence.place.replica == evidence.place.replica]
        return len(accused) < RECORDS_PER_REPLICA_MAX

    def put(self, kept: KeptEvidence) -> None:
        """Write it durably. Raises EnvironmentFault."""
        write_private(self._folder / self._name(kept.evidence), encode(kept), replace=True)
        self.kept[place_id(self._roster.chain, kept.evidence.place)] = kept


class EvidenceReporter:
    """Takes what a node observed, keeps it, and sees to it that the chain has it."""

    def __init__(
        self,
        folder: EvidenceFolder,
        roster: Roster,
        signer: Signer | None,
        replica: int,
        read: Read,
        submit: Submit,
        now_ms: Callable[[], int],
        log: Log,
        *,
        turn_s: float = TURN_S,
    ) -> None:
        """Without a signer, at a node that lost its votes, evidence is kept and the reports are left to others."""
        self._folder = folder
        self._roster = roster
        self._signer = signer
        self._signer_id = operator_id(roster.keys[replica])
        self._replica = replica
        self._read = read
        self._submit = submit
        self._now_ms = now_ms
        self._log = log
        self._turn_s = turn_s
        self._seen: deque[EquivocationSeen] = deque()
        self._woken = asyncio.Event()
        self._due_s: dict[bytes, float] = {}
        """When an open place is looked at next, by the loop's clock."""
        self._failures: dict[bytes, int] = {}
        self._quiet_s: dict[int, float] = {}
        """Until when nothing more is reported against a replica."""
        for name in folder.unreadable:
            log.warning("evidence file does not hold", file=name)

    @property
    def held(self) -> list[KeptEvidence]:
        """What this node keeps, the oldest first."""
        return sorted(self._folder.kept.values(), key=lambda item: item.seen_ms)

    def observe(self, seen: EquivocationSeen) -> None:
        """Take a contradiction; it is verified and written later, in `run`."""
        if len(self._seen) < SEEN_MAX:
            self._seen.append(seen)
            self._woken.set()

    async def run(self) -> None:
        """Keep and report until cancelled. A disk that refuses leaves the evidence in memory only, and says so."""
        while True:
            self._woken.clear()
            await self._take_seen()
            await self._report(self._due())
            try:
                async with asyncio.timeout(self._sleep_s()):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def _take_seen(self) -> None:
        while self._seen:
            seen = self._seen.popleft()
            found = await asyncio.to_thread(verify_evidence, seen.first, seen.second, self._roster)
            if isinstance(found, Reason):
                self._log.warning("contradiction does not hold", replica=seen.replica, what=seen.what, reason=found)
            elif self._folder.takes(found):
                await self._keep(KeptEvidence(found, self._now_ms(), None, None))
                accused = self._roster.names[found.place.replica]
                self._log.warning("evidence kept", accused=accused, what=found.place.kind.value)

    async def _keep(self, kept: KeptEvidence) -> None:
        try:
            await asyncio.to_thread(self._folder.put, kept)
        except EnvironmentFault as error:
            self._folder.kept[place_id(self._roster.chain, kept.evidence.place)] = kept
            self._log.warning("evidence not written", error=str(error))

    # Turns.

    def _open(self) -> Iterable[tuple[bytes, KeptEvidence]]:
        if self._signer is None:
            return []
        return [(key, kept) for key, kept in self._folder.kept.items() if kept.outcome is None]

    def _due_at(self, key: bytes, kept: KeptEvidence) -> float:
        accused = kept.evidence.place.replica
        rank = (self._replica - accused - 1) % self._roster.quorum.n
        now = asyncio.get_running_loop().time()
        return max(self._due_s.setdefault(key, now + rank * self._turn_s), self._quiet_s.get(accused, 0.0))

    def _due(self) -> list[tuple[bytes, KeptEvidence]]:
        now = asyncio.get_running_loop().time()
        return [item for item in self._open() if self._due_at(*item) <= now][:REPORTS_AT_ONCE_MAX]

    def _sleep_s(self) -> float | None:
        """Return how long there is nothing to do; None: until something is seen."""
        due = [self._due_at(*item) for item in self._open()]
        return None if not due else max(0.0, min(due) - asyncio.get_running_loop().time())

    # Reports.

    async def _report(self, due: list[tuple[bytes, KeptEvidence]]) -> None:
        """Report what the chain lacks, in one submission, and note what became of it."""
        asked: list[tuple[bytes, KeptEvidence, Transaction]] = []
        number = self._next_number()
        for key, kept in due:
            outcome = self._foreseen(kept.evidence.place)
            if outcome is not None:
                await self._settle(key, kept, outcome)
                continue
            tx = kept.transaction
            if tx is None:
                tx, number = self._signed(kept.evidence, number), number + 1
                await self._keep(msgspec.structs.replace(kept, transaction=tx))
            asked.append((key, self._folder.kept[key], tx))
        if not asked:
            return
        results, _ = await self._submit([tx for _, _, tx in asked])
        quiet_s = asyncio.get_running_loop().time() + PAUSE_TURNS * self._turn_s
        self._quiet_s.update({kept.evidence.place.replica: quiet_s for _, kept, _ in asked})
        for (key, kept, _), result in zip(asked, results, strict=True):
            await self._note(key, kept, result)

    def _foreseen(self, place: Place) -> Reason | None:
        """Return what would come of a report about this place, as far as the state tells without one."""
        if self._read(record_key(self._roster.chain, place)) is not None:
            return Reason.VALID
        count = self._read(count_key(place))
        is_full = count is not None and _COUNT.decode(count.value) >= RECORDS_PER_REPLICA_MAX
        return Reason.OVER_QUOTA if is_full else None

    async def _note(self, key: bytes, kept: KeptEvidence, result: SubmitResult) -> None:
        reason = result.reason
        if result.status not in (COMMITTED, REFUSED) or reason is None or reason in _TRANSIENT:
            self._later(key)
        elif reason in _ON_CHAIN:
            await self._settle(key, kept, Reason.VALID)
        elif reason in _NUMBER_USED:
            await self._keep(msgspec.structs.replace(kept, transaction=None))
            self._later(key)
        else:
            await self._settle(key, kept, reason)

    def _later(self, key: bytes) -> None:
        """Wait twice as long after each failure; not all nodes the same time."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        wait_s = min(RETRY_MAX_S, self._turn_s * 2.0 ** min(failures - 1, 10))
        stagger = 1 + self._replica / self._roster.quorum.n
        self._due_s[key] = asyncio.get_running_loop().time() + wait_s * stagger

    async def _settle(self, key: bytes, kept: KeptEvidence, outcome: Reason) -> None:
        self._due_s.pop(key, None)
        self._failures.pop(key, None)
        await self._keep(msgspec.structs.replace(kept, transaction=None, outcome=outcome))
        accused = self._roster.names[kept.evidence.place.replica]
        if outcome is Reason.VALID:
            self._log.info("evidence is on the chain", accused=accused, what=kept.evidence.place.kind.value)
        else:
            self._log.warning("evidence was not recorded", accused=accused, reason=outcome.value)

    def _next_number(self) -> int:
        """Return a sequence number above all that the chain shows and all that are in own reports."""
        record = self._read(guard_key(self._signer_id, 0))
        used = [kept.transaction.sequence for kept in self._folder.kept.values() if kept.transaction is not None]
        return 1 + max(highest(None if record is None else record.value), *used, 0)

    def _signed(self, evidence: Evidence, sequence: int) -> Transaction:
        assert self._signer is not None
        argument = encode(evidence)
        unsigned = Transaction(
            contract="governance",
            function="report_evidence",
            signer=self._signer_id,
            session=0,
            sequence=sequence,
            timestamp_ms=self._now_ms(),
            argument_hash=argument_digest(argument),
            argument=argument,
            signatures=(),
        )
        tx_id = transaction_id(unsigned, self._roster.chain, self._roster.epoch)
        return msgspec.structs.replace(unsigned, signatures=(self._signer.sign(tx_id),))
