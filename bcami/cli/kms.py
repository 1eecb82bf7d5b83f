"""kms: the MDMS's symmetric keys, what is sent to meters under them, and demand-response projects."""

import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from bcami.cli.kms_dr import dr
from bcami.cli.kms_listen import listen
from bcami.cli.options import HOME_DEFAULT, Home, Json, home_paths
from bcami.cli.screen import SCREEN

if TYPE_CHECKING:
    from bcami.paths import HomePaths

kms = typer.Typer(no_args_is_help=True, help="Send to meters under symmetric keys; demand response; rotate, audit.")
kms.add_typer(dr, name="dr")
kms.command()(listen)

HOUR_S: Final = 3_600
_POLL_S: Final = 0.1
_NAME_CHARACTERS_MAX: Final = 40
"""Of a delivery: two numbers of 63 bits."""


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(kms, name="kms")


@kms.command()
def status(home: Home = HOME_DEFAULT, json: Json = False) -> None:
    """Show the epoch, who has its keys, and what became of the newest deliveries.

    Example: bcami kms status
    """
    from bcami.cli.ask import mdms_get

    told = mdms_get(home_paths(home), "/v1/kms/status")
    rekeying = told.get("rekeying")
    degree = f", degree {told['degree']}" if rekeying == "lkh" else ""
    projects = told["groups"] - 1
    for name, said in (
        ("epoch", told["epoch"] or "none is open yet: bcami logs mdms"),
        ("profile", f"{told.get('profile')}, rekeying {rekeying}{degree}"),
        ("meters", f"{told['meters']:,}, of which {told['meters_confirmed']:,} have keys of this epoch"),
        ("projects", f"{projects:,}"),
        ("streams", f"{told['streams']:,}"),
        ("audit log", _audit_said(told)),
    ):
        SCREEN.line(f"{name:<11}{said}")
    _show_deliveries(told["deliveries"])
    SCREEN.result("bcami/kms_status/1", told)


def _audit_said(told: dict[str, Any]) -> str:
    anchored = f"{told['audit_length']:,} entries, {told['audit_anchored']:,} of them on the chain"
    if told["audit_fault"] is not None:
        return f"{anchored}; NOT what the chain has: {told['audit_fault']} (bcami kms audit)"
    return anchored if told["audit_compared"] else f"{told['audit_length']:,} entries, not compared with the chain yet"


@kms.command()
def send(
    broadcast: Annotated[bool, typer.Option("--broadcast", help="To all meters.")] = False,
    group: Annotated[int | None, typer.Option(min=1, metavar="NUMBER", help="To those in a project.")] = None,
    meter: Annotated[str | None, typer.Option(metavar="METER", help="To one meter.")] = None,
    price: Annotated[
        str | None, typer.Option(metavar="P,P,…", help="A price per kWh for each half-hour from now on.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=0, metavar="W", help="Limit the load.")] = None,
    connect: Annotated[bool, typer.Option("--connect", help="Connect the supply.")] = False,
    disconnect: Annotated[bool, typer.Option("--disconnect", help="Disconnect the supply.")] = False,
    call: Annotated[bool, typer.Option("--call", help="Ask for the readings of the last hours.")] = False,
    hours: Annotated[int, typer.Option(min=1, max=8760, help="How long it holds, or what --call asks for.")] = 1,
    valid_for: Annotated[
        int | None, typer.Option(min=1, metavar="SECONDS", help="Meters do not take it later; by default they do.")
    ] = None,
    wait: Annotated[int, typer.Option(min=0, max=3600, metavar="SECONDS", help="Wait for the meters.")] = 0,
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Send one message: a price, a load limit, a (dis)connection, or a call for readings.

    Example: bcami kms send --broadcast --price 0.25,0.18 --wait 5
    """
    from bcami.cli.ask import mdms_get, mdms_post
    from bcami.errors import InputError

    if broadcast + (group is not None) + (meter is not None) != 1:
        raise InputError("to whom?", do="give one of --broadcast, --group NUMBER, --meter METER")
    message = _message(price, limit, connect=connect, disconnect=disconnect, call=call, hours=hours)
    target = {"meter": meter} if meter is not None else {"group": group or 0}
    paths = home_paths(home)
    told = mdms_post(paths, "/v1/kms/send", {**target, "valid_for_s": valid_for, "message": message})
    path = f"/v1/kms/deliveries/{told['epoch']}/{told['number']}"
    until = time.monotonic() + wait
    found = mdms_get(paths, path)
    while found["waiting"] and time.monotonic() < until:
        time.sleep(_POLL_S)
        found = mdms_get(paths, path)
    _show_deliveries([found])
    SCREEN.result("bcami/kms_send/1", found)


@kms.command()
def delivery(
    name: Annotated[str, typer.Argument(metavar="EPOCH/NUMBER", help="As `kms status` shows it.")],
    limit: Annotated[int, typer.Option(min=1, max=20_000, help="Show so many meters.")] = 20,
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Show what became of a delivery at each meter, who still waits first.

    Example: bcami kms delivery 20/1
    """
    from bcami.cli.ask import mdms_get
    from bcami.errors import InputError

    epoch, _, number = name.partition("/")
    if not (epoch.isdecimal() and number.isdecimal() and len(name) <= _NAME_CHARACTERS_MAX):
        raise InputError(
            f"no delivery is called {name[:_NAME_CHARACTERS_MAX]!r}",
            do="give it as `bcami kms status` shows it, such as 20/1",
        )
    path, paths = f"/v1/kms/deliveries/{int(epoch)}/{int(number)}", home_paths(home)
    found = mdms_get(paths, path)
    told = mdms_get(paths, f"{path}/meters?limit={limit}")
    _show_deliveries([found])
    SCREEN.line()
    rows = [(row["meter_id"] or row["hid"], row["status"], row["latency_ms"]) for row in told["meters"]]
    SCREEN.table(("meter", "status", "ms"), rows)
    if len(rows) == limit:
        SCREEN.line(f"the first {limit}; more with --limit N")
    SCREEN.result("bcami/kms_delivery/1", {**found, **told})


@kms.command()
def rotate(
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return at once.")] = False,
    timeout: Annotated[int, typer.Option(min=1, max=3600, metavar="SECONDS", help="Wait so long at most.")] = 60,
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Open a new epoch on the chain, every key drawn anew, and wait until the meters that are there have theirs.

    Example: bcami kms rotate
    """
    from bcami.cli.ask import mdms_post
    from bcami.errors import ExpectationError

    paths = home_paths(home)
    after = mdms_post(paths, "/v1/kms/rotate", {})["after_epoch"]
    if no_wait:
        SCREEN.line(f"epoch {after} will be followed by another within seconds: bcami kms status")
        SCREEN.result("bcami/kms_rotate/1", {"after_epoch": after})
        return
    told = _wait_for_keys(paths, after, timeout)
    there, confirmed = told["there"], told["there_confirmed"]
    SCREEN.line(f"epoch {told['epoch']}: {confirmed} of {there} meters that are there have its keys")
    if told["meters"] > there:
        SCREEN.line(f"{told['meters'] - there} meters are away: they get keys when they come")
    for hid in told["missing"]:
        SCREEN.line(f"no keys yet: {hid}")
    SCREEN.result("bcami/kms_rotate/1", {"after_epoch": after, **told})
    if told["epoch"] <= after or confirmed < there:
        what = "no new epoch" if told["epoch"] <= after else f"{there - confirmed} meters that are there have no keys"
        raise ExpectationError(f"{what} after {timeout} s", do="bcami kms status; bcami logs mdms")


def _wait_for_keys(paths: "HomePaths", after: int, timeout: int) -> dict[str, Any]:
    """Wait until the meters that are there have keys of a higher epoch, or the time is over; return how it stands."""
    from bcami.cli.ask import mdms_get

    until = time.monotonic() + timeout
    with SCREEN.progress("rotate") as progress:
        while True:
            told = mdms_get(paths, "/v1/kms/keys")
            is_new = told["epoch"] > after
            if (is_new and told["there_confirmed"] == told["there"]) or time.monotonic() >= until:
                return told
            said = f"{told['there_confirmed']} of {told['there']} meters have keys" if is_new else "opening the epoch"
            progress(said)
            time.sleep(_POLL_S)


@kms.command()
def inbox(
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="Show so many.")] = 20,
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Show the newest notifications and meter data that meters sent under their keys.

    Example: bcami kms inbox
    """
    from bcami.cli.ask import mdms_get

    told = mdms_get(home_paths(home), f"/v1/kms/inbox?limit={limit}", as_operator=True)
    rows = [
        (
            _time(row["received_ms"]),
            row["meter_id"] or row["hid"][:16] + "…",
            row["title"],
            row["kind"] or f"{len(row['report']) // 2} bytes",
            "yes" if row["in_time"] else "no",
        )
        for row in told["received"]
    ]
    if rows:
        SCREEN.table(("received", "meter", "what", "detail", "in time"), rows)
    else:
        SCREEN.line("no meter has sent anything yet; bcami kms listen --notify power_lost has those of this home do it")
    SCREEN.result("bcami/kms_inbox/1", told)


@kms.command()
def audit(
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="Show so many entries.")] = 20,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after an old backup was restored; the gap stays visible.")
    ] = False,
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Check the log of all changes, from its first entry on, against its anchor on the chain.

    Example: bcami kms audit
    """
    from bcami.cli.ask import mdms_get, mdms_post
    from bcami.errors import ExpectationError

    if resume:
        mdms_post(home_paths(home), "/v1/kms/audit/resume", {})
    told = mdms_get(home_paths(home), f"/v1/kms/audit?limit={limit}", as_operator=True)
    SCREEN.table(
        ("", "when", "what", "of", "detail"),
        [
            (row["sequence"], _time(row["time_ms"]), row["action"], row["subject"], row["detail"])
            for row in told["entries"]
        ],
    )
    for gap in told["gaps"]:
        SCREEN.line(f"entries are missing before {gap['before']}: an old backup was restored ({gap['what']})")
    if told["fault"] is not None:
        raise ExpectationError(
            told["fault"],
            likely="the store was changed, or replaced by an old copy",
            do="keep a copy of HOME/mdms; after the restore of a backup: bcami kms audit --resume",
        )
    anchored = told["anchored_length"]
    said = f"and up to entry {anchored} it is what the chain has" if anchored else "none of them on the chain yet"
    but = ", but for what is missing" if told["gaps"] else ""
    SCREEN.line(f"the log is whole{but}: {told['length']} entries, {said}")
    SCREEN.result("bcami/kms_audit/1", told)


def _message(
    price: str | None, limit: int | None, *, connect: bool, disconnect: bool, call: bool, hours: int
) -> dict[str, Any]:
    from bcami.errors import InputError
    from bcami.units import HALF_HOUR_S

    if (price is not None) + (limit is not None) + connect + disconnect + call != 1:
        raise InputError("what?", do="give one of --price, --limit, --connect, --disconnect, --call")
    now_s = int(time.time())
    if price is not None:
        starts_s = now_s - now_s % HALF_HOUR_S
        return {"kind": "price", "starts_s": starts_s, "interval_s": HALF_HOUR_S, "prices": _prices(price)}
    if call:
        return {"kind": "data_call", "from_s": now_s - hours * HOUR_S, "to_s": now_s}
    action = "connect" if connect else "disconnect" if disconnect else "limit"
    ends_s = now_s + hours * HOUR_S
    return {"kind": "control", "action": action, "limit_w": limit or 0, "starts_s": now_s, "ends_s": ends_s}


def _prices(text: str) -> list[int]:
    """Return prices in units of 10^-7 of the currency, exactly. Raises InputError."""
    from bcami.errors import InputError
    from bcami.units import energy_from_text

    try:
        return [energy_from_text(item) for item in text.split(",")]
    except ValueError:
        raise InputError(
            f"not prices: {text!r}", where="--price", do="give decimals with at most seven places, such as 0.25,0.18"
        ) from None


def _show_deliveries(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    SCREEN.line()
    SCREEN.table(
        ("delivery", "what", "to", "delivered", "late", "waiting", "expired", "at most", "deadline"),
        [
            (
                f"{row['epoch']}/{row['number']}",
                row["title"],
                {None: "one meter", 0: "all"}.get(row["group"], f"project {row['group']}"),
                row["delivered"],
                row["late"],
                row["waiting"],
                row["expired"],
                f"{row['latency_ms_max']} ms" if row["delivered"] + row["late"] else "-",
                f"{row['deadline_ms']:,} ms",
            )
            for row in rows
        ],
    )


def _time(ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ms // 1000))
