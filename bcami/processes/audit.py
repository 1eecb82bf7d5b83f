"""Audits the ledgers of a network's nodes, running or stopped, and whether they agree (design, `bcami verify`).

Each ledger is read by a child process of its own (`bcami.ledger.audit`), two at a time. The child loads `audit_hooks`
from here: who had to sign a transaction, and what executing the chain again from genesis gives, only contracts know.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from bcami.contract.package import load_package
from bcami.contract.runtime import Runtime
from bcami.crypto.roster import Roster
from bcami.endorsement.pool import hold
from bcami.errors import EnvironmentFault, InconclusiveError
from bcami.ledger.audit import audit_ledger
from bcami.ledger.memory import MemoryLedger
from bcami.ledger.position import POSITION_BYTES, PositionMark
from bcami.ledger.report import AuditError, AuditHooks, AuditReport, FirstError
from bcami.ledger.snapshot import Snapshot
from bcami.model.block import Header, header_hash
from bcami.model.chain import ChainBlock, StoredBatch
from bcami.model.genesis import Genesis
from bcami.node.core.execution import Executor, MissingBatches
from bcami.node.core.world import WorldState
from bcami.paths import HomePaths

HOOKS: Final = "bcami.processes.audit:audit_hooks"
_AT_ONCE: Final = 2
AuditProgress = Callable[[str, int, int], None]
"""Called with a node's name, blocks walked and blocks in all; from several threads."""


def audit_hooks(genesis: Genesis, chaincode: Path | None) -> AuditHooks:
    """Return what an audit needs of the contracts; nothing when it was given no chaincode."""
    if chaincode is None:
        return AuditHooks()
    runtime = Runtime(load_package(chaincode, genesis.chaincode_package), genesis)
    roster = Roster.from_genesis(genesis)
    empty = MemoryLedger(genesis)
    executor = Executor(roster, runtime, WorldState(empty), empty)

    def reexecute(block: ChainBlock, batches: tuple[StoredBatch, ...]) -> Header:
        held = {item.digest: item for item in (hold(stored.batch, roster.chain) for stored in batches)}
        result = executor.execute(block.proposal, held.get)
        if isinstance(result, MissingBatches):
            missing = ", ".join(f"{item.collector}:{item.number}" for item in result.certificates)
            raise AuditError("batches", block.header.height, f"executing the block needs batches {missing}")
        return result.header

    return AuditHooks(signers=runtime.signers, reexecute=reexecute)


def audit_nodes(home: HomePaths, genesis: Genesis, names: Sequence[str], progress: AuditProgress) -> list[AuditReport]:
    """Return one report for each node, in the order of `names`; none of them raises for what a ledger holds.

    An interrupt ends the children too.
    """
    given_up = threading.Event()

    def told(name: str, done: int, total: int) -> None:
        if given_up.is_set():
            raise InconclusiveError("the audit was interrupted")
        progress(name, done, total)

    def audit(name: str) -> AuditReport:
        try:
            return audit_ledger(
                home.node(name).ledger,
                genesis,
                home.chaincode,
                lambda done, total: told(name, done, total),
                name=name,
                hooks=HOOKS,
            )
        except EnvironmentFault as fault:
            return AuditReport(name, ok=False, mode="full", first_error=FirstError(None, "", fault.what))

    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="audit") as pool:
        try:
            reports = list(pool.map(audit, names))
        except BaseException:
            given_up.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return _agreeing(home, genesis, reports)


def _agreeing(home: HomePaths, genesis: Genesis, reports: Sequence[AuditReport]) -> list[AuditReport]:
    """Compare every sound ledger with the longest one at its own height; the one that differs is no longer ok."""
    sound = [report for report in reports if report.ok and report.height]
    if not sound:
        return list(reports)
    longest = max(sound, key=lambda report: report.height)
    compared = []
    for report in reports:
        if report.ok and report.height and report.block_hash != _hash_at(home, genesis, longest, report.height):
            error = FirstError(report.height, "headers", f"block differs from that of {longest.name}")
            compared.append(msgspec.structs.replace(report, ok=False, first_error=error))
        else:
            compared.append(report)
    return compared


def _hash_at(home: HomePaths, genesis: Genesis, report: AuditReport, height: int) -> str:
    if report.height == height:
        return report.block_hash
    mark = PositionMark(bytearray(POSITION_BYTES))
    with closing(Snapshot(home.node(report.name).ledger, genesis, mark)) as snapshot:
        return header_hash(snapshot.header(height)).hex()
