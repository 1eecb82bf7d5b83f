"""show block, tx, meter, evidence: what the chain holds, as one node tells it."""

import datetime as dt
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bcami.cli.options import HOME_DEFAULT, Home, Json, home_paths
from bcami.cli.screen import SCREEN

if TYPE_CHECKING:
    from bcami.config import Network, NodeAddress

_HASH_HEX = 64
_SHOWN = 12

show = typer.Typer(no_args_is_help=True, help="Look at a block, a transaction, a meter, or evidence against a node.")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(show, name="show")


@show.command()
def block(
    height: Annotated[int, typer.Argument(min=1, metavar="H", help="Its height.")],
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Show a certified block: header, signers, batches, outcomes.

    Example: bcami show block 331
    """
    network, nodes = _opened(home)
    told = _ask(nodes[0], f"/v1/blocks/{height}", f"{nodes[0].name} has no certified block {height}")
    header, outcomes = told["header"], told["outcomes"]
    names = [node.name for node in network.nodes]
    _pairs(
        ("height", told["height"]),
        ("hash", told["hash"]),
        ("previous", header["previous"]),
        ("time", _moment(header["time_ms"])),
        ("state root", header["state_root"]),
        ("certificate", f"signed by {', '.join(names[vote['replica']] for vote in told['certificate']['votes'])}"),
    )
    for batch in told["batches"]:
        count = f"{batch['transactions']} transactions" + (", payloads pruned" if batch["pruned"] else "")
        _pairs(("batch", f"{names[batch['collector']]} number {batch['number']}: {count}"))
    _pairs(("outcomes", _counted([item["reason"] for item in outcomes])))
    for index, item in enumerate(outcomes[:20]):
        SCREEN.line(f"  {index:4} {item['transaction_id']} {item['reason']}")
    if len(outcomes) > 20:
        SCREEN.line(f"  … and {len(outcomes) - 20} more; all of them: --json")
    SCREEN.result("bcami/show_block/1", {"node": nodes[0].name, **told})


@show.command()
def tx(
    transaction_id: Annotated[str, typer.Argument(metavar="ID", help="Transaction id, 64 hexadecimal digits.")],
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Show a transaction's outcome and its receipt, checked against genesis.

    Example: bcami show tx 7a1f…
    """
    _, nodes = _opened(home)
    wanted = _hash(transaction_id, "a transaction id")
    told = _ask(nodes[0], f"/v1/transactions/{wanted.hex()}", f"{nodes[0].name} knows no outcome of it")
    proven = _is_proven(home, nodes[0], wanted)
    receipt = told.get("receipt", {})
    _pairs(
        ("transaction", told["transaction_id"]),
        ("outcome", told["reason"]),
        ("block", f"{receipt.get('height')}, place {receipt.get('index')}"),
        ("receipt", "holds against genesis" if proven else "DOES NOT HOLD against genesis"),
    )
    SCREEN.result("bcami/show_tx/1", {"node": nodes[0].name, "proven": proven, **told})
    if not proven:
        from bcami.errors import ExpectationError

        raise ExpectationError("the receipt does not hold", where=nodes[0].name, do="bcami verify")


@show.command()
def meter(
    identity: Annotated[str, typer.Argument(metavar="HID", help="HID (64 hexadecimal digits) or meter id.")],
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many of its newest transactions.")] = 10,
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Show a meter: enrolment, session, newest transactions. The meter id needs the utility's key in the home.

    Example: bcami show meter MAC000012
    """
    _, nodes = _opened(home)
    hid = _hid(home, identity)
    told = _ask(nodes[0], f"/v1/meters/{hid.hex()}?limit={limit}", f"{identity}: no such meter is enrolled")
    _pairs(("hid", told["hid"]), ("as of height", told["height"]))
    for name, value in _flat(told.get("state") or {}):
        _pairs((name, value))
    SCREEN.table(
        ("height", "place", "transaction"),
        [(item["height"], item["index"], item["transaction_id"]) for item in told["transactions"]],
    )
    SCREEN.result("bcami/show_meter/1", {"node": nodes[0].name, **told})


@show.command()
def evidence(home: Home = HOME_DEFAULT, json: Json = False) -> None:
    """Show signed statements of one node that contradict each other: what the chain holds, and what nodes still keep.

    Example: bcami show evidence
    """
    from bcami.cli.evidence import Kept, recorded, recorded_form
    from bcami.crypto.roster import Roster
    from bcami.processes.home import load_genesis, load_operator_token

    _, nodes = _opened(home)
    roster = Roster.from_genesis(load_genesis(home_paths(home)))
    kept = Kept(roster)
    headers = {"authorization": f"Bearer {load_operator_token(home_paths(home))}"}
    for node in nodes:
        kept.add(node.name, _ask(node, "/v1/operator/evidence", "", headers=headers)["evidence"])
    on_chain = recorded([node.url for node in nodes], roster)
    waiting = kept.unrecorded(on_chain)
    found = [recorded_form(item, roster) for item in on_chain]
    _contradictions(found, lambda item: f"block {item['block']}, brought by {item['reporter']}")
    _contradictions(waiting, _why_not_recorded)
    for name in sorted(set(kept.false)):
        SCREEN.line(f"{name} shows evidence that does not hold against genesis; it is left out")
    if not found and not waiting:
        SCREEN.line(f"no evidence against anybody ({len(nodes)} nodes asked)")
    SCREEN.result(
        "bcami/show_evidence/2",
        {"nodes_asked": [node.name for node in nodes], "recorded": found, "unrecorded": waiting},
    )


def _why_not_recorded(item: dict[str, Any]) -> str:
    why = "not on the chain yet" if item["outcome"] is None else f"not recorded ({item['outcome']})"
    return f"{why}, kept by {', '.join(item['kept_by'])}"


def _contradictions(items: list[dict[str, Any]], about: Callable[[dict[str, Any]], str]) -> None:
    for item in items[:_SHOWN]:
        SCREEN.line(f"{_contradiction(item)}: {about(item)}")
        _pairs(("  id", item["evidence_id"]), ("  first", item["first"]), ("  second", item["second"]))
    if len(items) > _SHOWN:
        SCREEN.line(f"… and {len(items) - _SHOWN} more; all of them: --json")


def _contradiction(item: dict[str, Any]) -> str:
    """Return whose statement was made twice, and about what."""
    view, height = item["view"], item["height"]
    about = {
        "checkpoint": f"of height {height}",
        "view_change": f"for view {view}",
        "new_view": f"for view {view}",
        "endorsement": f"of batch {height} of collector {view}",
    }.get(item["kind"], f"for height {height} in view {view}")
    return f"{item['accused']} signed two contradicting {item['kind']} statements {about}"


def _opened(home: str) -> "tuple[Network, list[NodeAddress]]":
    from bcami.cli.ask import running_nodes
    from bcami.processes.home import open_home

    network, _ = open_home(home_paths(home))
    return network, running_nodes(home_paths(home), network)


def _ask(node: "NodeAddress", path: str, absent: str, **options: Any) -> dict[str, Any]:
    from bcami.cli.ask import get_json, http_client

    with http_client() as client:
        return get_json(client, node.url, path, absent=absent, **options)


def _is_proven(home: str, node: "NodeAddress", transaction_id: bytes) -> bool:
    from bcami.cli.interrupt import run_command
    from bcami.client.nodes import NodeClient
    from bcami.client.receipts import ReceiptVerifier
    from bcami.crypto.roster import Roster
    from bcami.processes.home import load_genesis

    async def check() -> bool:
        async with NodeClient(node.url) as client:
            answer = await client.transaction(transaction_id)
        if answer is None:
            return False
        verifier = ReceiptVerifier(Roster.from_genesis(load_genesis(home_paths(home))))
        if any(verifier.learn(certified) is not None for certified in answer.blocks):
            return False
        return verifier.outcome(answer.results[0], transaction_id) is not None

    return run_command(check())


def _hid(home: str, identity: str) -> bytes:
    from bcami.crypto.hid import hid
    from bcami.processes.home import load_utility

    if len(identity) == _HASH_HEX:
        return _hash(identity, "an HID")
    return hid(load_utility(home_paths(home)).network, identity)


def _hash(text: str, what: str) -> bytes:
    from bcami.errors import InputError

    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(text) != _HASH_HEX or not value:
        raise InputError(f"{text!r} is not {what}", do="give 64 hexadecimal digits")
    return value


def _pairs(*pairs: tuple[str, object]) -> None:
    for name, value in pairs:
        SCREEN.line(f"{name:<16}{value}")


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for name, item in value.items():
        if isinstance(item, dict):
            rows += _flat(item, f"{prefix}{name} ")
        else:
            rows.append((f"{prefix}{name}", item))
    return rows


def _counted(reasons: list[str]) -> str:
    counts = {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    return ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "none"


def _moment(time_ms: int) -> str:
    return dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC).isoformat(timespec="milliseconds")
