"""verify: an audit of the nodes' ledgers."""

from typing import TYPE_CHECKING, Annotated

import typer

from bcami.cli.options import HOME_DEFAULT, Home, Json, home_paths
from bcami.cli.screen import SCREEN

if TYPE_CHECKING:
    from bcami.ledger.report import AuditReport
    from bcami.model.genesis import Genesis
    from bcami.paths import HomePaths


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(verify)


def verify(
    node: Annotated[str | None, typer.Option(metavar="NAME", help="Only this node.")] = None,
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Audit the nodes' ledgers, running or stopped: hashes, certificates, roots, signatures, state, agreement.

    Example: bcami verify --node node2
    """
    import msgspec

    from bcami.processes.home import open_home

    paths = home_paths(home)
    network, genesis = open_home(paths)
    names = [network.node(node).name] if node else [item.name for item in network.nodes]
    reports = run_audit(paths, genesis, names)
    show_audit(reports)
    built = [msgspec.to_builtins(report) for report in reports]
    SCREEN.result(
        "bcami/verify/1",
        {"ok": all(report.ok for report in reports), "from": audited_from(reports), "nodes": built},
    )
    check_audit(reports)


def run_audit(home: "HomePaths", genesis: "Genesis", names: list[str]) -> "list[AuditReport]":
    """Audit with progress."""
    from bcami.processes.audit import audit_nodes

    walked: dict[str, str] = {}
    with SCREEN.progress("verify") as progress:

        def show(name: str, done: int, total: int) -> None:
            walked[name] = f"{name} {done:,}/{total:,}"
            progress("blocks " + "  ".join(walked[item] for item in names if item in walked))

        return audit_nodes(home, genesis, names, show)


def show_audit(reports: "list[AuditReport]") -> None:
    """Print the verdicts."""
    SCREEN.table(
        ("node", "verdict", "height", "blocks", "transactions", "executed again", "pruned to", "state root"),
        [
            (
                report.name,
                "ok" if report.ok else "DAMAGED",
                report.height,
                report.blocks_checked,
                report.transactions_checked,
                f"1 to {report.executed_to}" if report.executed_to else "no",
                report.pruned_to,
                f"{report.state_root[:16]}…" if report.state_root else None,
            )
            for report in reports
        ],
    )
    full = all(report.mode == "full" for report in reports)
    SCREEN.line(f"audited from {audited_from(reports)}" if full else "quick audit only")


def audited_from(reports: "list[AuditReport]") -> str:
    """Say from where the ledgers were audited: genesis, or the newest certified snapshot that a node took."""
    snapshots = [
        f"the certified snapshot of block {item.audited_from} ({item.name})" for item in reports if item.audited_from
    ]
    return ", ".join([*(["genesis"] if len(snapshots) < len(reports) else []), *snapshots])


def check_audit(reports: "list[AuditReport]") -> None:
    """Raise ExpectationError naming node, block and reason of each ledger that does not hold."""
    from bcami.errors import ExpectationError

    bad = [report for report in reports if not report.ok]
    if bad:
        raise ExpectationError(
            "; ".join(f"{report.name}: {report.first_error}" for report in bad),
            likely="the disk or another program changed the store",
            do="; ".join(f"bcami rebuild {report.name}" for report in bad),
        )
