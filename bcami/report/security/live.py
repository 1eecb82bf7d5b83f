"""Ledger tampering on a real local network: processes, sockets, disks, and `bcami verify` over all of it."""

from typing import Final

from msgspec.structs import replace

from bcami.codec import encode
from bcami.config import Network
from bcami.errors import EnvironmentFault
from bcami.ledger.records import BLOCKS, BODY_DECODER, decoded, height_key
from bcami.ledger.report import AuditReport
from bcami.model.genesis import Genesis
from bcami.model.reasons import Reason
from bcami.paths import HomePaths
from bcami.processes.audit import audit_nodes
from bcami.processes.newest import BLOCKS_MAX
from bcami.processes.supervisor import Readiness, Supervisor
from bcami.report.security.attack import Account
from bcami.report.security.tampering import rewrite

OLD_BLOCK: Final = (
    f"a start checks checksums, the hash chain and the newest {BLOCKS_MAX} blocks, not all of the chain; what the node "
    "then shows of that block proves nothing to whoever checks receipts and certificates, and `bcami verify` finds it"
)
PUT_ASIDE: Final = "ledger.tampered"


def tampered_node(account: Account, home: HomePaths, network: Network, genesis: Genesis) -> None:
    """Change the ledger of the third node of a running network that has blocks; it runs again afterwards.

    There must be more than BLOCKS_MAX.
    """
    supervisor = Supervisor(home, network, attached=True)
    names = [node.name for node in network.nodes]
    name = names[2]
    before = _audit(home, genesis, names)
    account.check("`bcami verify` passes on all nodes while they run", all(report.ok for report in before))
    last = before[2].height
    account.check("there are older blocks than a start checks", last > BLOCKS_MAX)
    account.does(f"is the operator of {name}: stops it, and changes an outcome in its newest block, checksum and all")
    supervisor.down([name])
    folder = home.node(name).ledger
    try:
        rewrite(folder, BLOCKS, height_key(last), lambda value: _outcome_as(value, last, Reason.REPLAY))
        refused = _start(supervisor, name)
        account.no(f"{name}, at its start", refused)
        account.aim("have the node start with a new block changed", refused is None)
        supervisor.down([name])
        account.does("puts it right, and changes an outcome in block 1 instead")
        rewrite(folder, BLOCKS, height_key(last), lambda value: _outcome_as(value, last, Reason.VALID))
        rewrite(folder, BLOCKS, height_key(1), lambda value: _outcome_as(value, 1, Reason.REPLAY))
        refused = _start(supervisor, name)
        account.no(f"{name}, at its start", refused)
        account.aim("have the node start with an old block changed", refused is None, OLD_BLOCK)
        supervisor.down([name])
        after = {report.name: report for report in _audit(home, genesis, names)}
        error = after[name].first_error
        account.no(f"verify: {name}", None if error is None else f"found in {error.table}")
        if error is not None:
            account.does(f"verify names height {error.height}", error.reason)
        account.aim("change a running network's ledger unseen", after[name].ok)
        account.check("the others pass", all(report.ok for other, report in after.items() if other != name))
        account.does("the operator gives up: the ledger is put aside, and the node gets its blocks from its peers")
        home.node(name).ledger.rename(home.node(name).ledger.with_name(PUT_ASIDE))
        account.check(f"{name} starts again", _start(supervisor, name) is None)
    finally:
        supervisor.down([name])


def _outcome_as(value: bytes, height: int, reason: Reason) -> bytes:
    body = decoded(BLOCKS, height_key(height), value, BODY_DECODER)
    first, *rest = body.outcomes
    return encode(replace(body, outcomes=(replace(first, reason=reason), *rest)))


def _start(supervisor: Supervisor, name: str) -> str | None:
    """Start a node; return why it did not become ready."""
    try:
        supervisor.up(_quiet, [name])
    except EnvironmentFault:
        return "refuses to start"
    return None


def _audit(home: HomePaths, genesis: Genesis, names: list[str]) -> list[AuditReport]:
    return audit_nodes(home, genesis, names, lambda _name, _done, _total: None)


def _quiet(_: Readiness) -> None:
    """Nobody watches the start."""
