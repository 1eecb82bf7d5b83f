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
from bcami.processes.supervisor import Readiness, Supervisor
from bcami.report.security.attack import Account
from bcami.report.security.tampering import rewrite

CHECKSUMS_ONLY: Final = (
    "a start checks checksums, not the whole chain; what the node then shows of that block proves nothing to whoever "
    "checks receipts and certificates, and `bcami verify` finds it"
)
PUT_ASIDE: Final = "ledger.tampered"


def tampered_node(account: Account, home: HomePaths, network: Network, genesis: Genesis) -> None:
    """Change the ledger of the third node of a running network that has some blocks; it runs again afterwards."""
    supervisor = Supervisor(home, network, attached=True)
    names = [node.name for node in network.nodes]
    name = names[2]
    before = _audit(home, genesis, names)
    account.check("`bcami verify` passes on all nodes while they run", all(report.ok for report in before))
    last = before[2].height
    account.does(f"is the operator of {name}: stops it, and changes an outcome in block {last}, checksum and all")
    supervisor.down([name])
    try:
        rewrite(home.node(name).ledger, BLOCKS, height_key(last), lambda value: _other_outcome(value, last))
        refused = _start(supervisor, name)
        account.no(f"{name}, at its start", refused)
        account.aim("have the node start on the changed ledger", refused is None, CHECKSUMS_ONLY)
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


def _other_outcome(value: bytes, height: int) -> bytes:
    body = decoded(BLOCKS, height_key(height), value, BODY_DECODER)
    first, *rest = body.outcomes
    return encode(replace(body, outcomes=(replace(first, reason=Reason.REPLAY), *rest)))


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
