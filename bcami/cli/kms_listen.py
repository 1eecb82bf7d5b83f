"""kms listen: carries the meters of a home's fleet and shows what each takes."""

import contextlib
import signal
import time
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from bcami.cli.options import HOME_DEFAULT, Home, Json, home_paths
from bcami.cli.screen import SCREEN

if TYPE_CHECKING:
    from bcami.ami.downstream import Downstream
    from bcami.ami.meter import Meter
    from bcami.kms import Accepted
    from bcami.kms.messages import DownPayload
    from bcami.paths import HomePaths

_PRICES_SHOWN = 4


class Carried(NamedTuple):
    """What happened while meters were carried."""

    taken: "list[Accepted]"
    refused: dict[str, int]
    refused_above: dict[str, int]
    told: int
    """Notifications that the MDMS has."""


def listen(
    seconds: Annotated[int, typer.Option(min=1, max=86_400, help="For how long.")] = 30,
    notify: Annotated[
        str | None, typer.Option(metavar="KIND", help="Have each tell: power_lost, power_restored or tampered.")
    ] = None,
    home: Home = HOME_DEFAULT,
    json: Json = False,
) -> None:
    """Carry the meters of this home's fleet: show what each takes and when. Ctrl-C ends it early.

    Example: bcami kms listen --seconds 60
    """
    from bcami.cli.interrupt import run_command

    _check_kind(notify)
    taken, refused, refused_above, told = run_command(_listen(home_paths(home), seconds, notify))
    SCREEN.line(f"{len(taken)} messages taken")
    if notify is not None:
        SCREEN.line(f"{told} notifications given: bcami kms inbox")
    for who, counts in (("the meters", refused), ("the MDMS", refused_above)):
        if counts:
            SCREEN.line(f"refused by {who}: " + ", ".join(f"{count} {reason}" for reason, count in counts.items()))
    SCREEN.result(
        "bcami/kms_listen/1",
        {
            "taken": [_taken_form(item) for item in taken],
            "refused": refused,
            "refused_above": refused_above,
            "told": told,
        },
    )


def _check_kind(kind: str | None) -> None:
    from bcami.errors import InputError
    from bcami.kms.messages import EventKind

    kinds = [known.value for known in EventKind]
    if kind is not None and kind not in kinds:
        raise InputError(f"no notification is called {kind!r}", where="--notify", do=f"give one of {', '.join(kinds)}")


async def _listen(home: "HomePaths", seconds: int, notify: str | None) -> Carried:
    import asyncio

    from bcami.ami.downstream import Downstream
    from bcami.cli.meters import open_fleet
    from bcami.client.head_end import HeadEndClient
    from bcami.crypto.roster import Roster
    from bcami.errors import InputError
    from bcami.processes.home import open_home

    network, genesis = open_home(home)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    taken: list[Accepted] = []
    async with open_fleet(home) as opened:
        meters = opened.fleet.in_session()
        if not meters:
            raise InputError(
                "no meter of this home's fleet has a session", do="bcami replay PATH --meters N makes some"
            )
        names = {meter.party.hid: meter.meter_id for meter in meters}

        def take(item: "Accepted") -> tuple[()]:
            taken.append(item)
            SCREEN.line(_line(names, item))
            return ()

        SCREEN.line(f"carrying {len(meters)} meters for {seconds} s; Ctrl-C ends it")
        head_end = HeadEndClient(network.mdms.url)
        profile, roster = network.kms.profile, Roster.from_genesis(genesis)
        async with Downstream(
            opened.fleet, roster, meters, head_end, take=take, now_ms=_now_ms, profile=profile
        ) as downstream:
            ids = {} if notify is None else await _notify(downstream, meters, notify)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await stop.wait()
            SCREEN.line(f"{downstream.confirmed} of {len(meters)} meters have keys")
            return Carried(
                taken,
                {str(reason): count for reason, count in downstream.refused.items()},
                {str(reason): count for reason, count in downstream.refused_above.items()},
                sum(downstream.answer(meter, ids[meter.meter_id]) == "valid" for meter in meters if ids),
            )


async def _notify(downstream: "Downstream", meters: "list[Meter]", kind: str) -> dict[str, bytes]:
    """Have each meter tell the MDMS of an event, as soon as it has keys; return the requests' ids."""
    from bcami.errors import EnvironmentFault
    from bcami.kms.messages import EventKind, Notification
    from bcami.model.reasons import Reason

    ids: dict[str, bytes] = {}
    for meter in meters:
        identity = await downstream.request(meter, Notification(EventKind(kind), _now_ms() // 1000))
        if isinstance(identity, Reason):
            raise EnvironmentFault(f"{meter.meter_id}: {identity}", do="carry the meters until they had answers")
        ids[meter.meter_id] = identity
    return ids


def _line(names: Mapping[bytes, str], item: "Accepted") -> str:
    late = "" if item.in_time else "  (late)"
    ago_ms = item.received_ms - item.sent_ms
    return (
        f"{_clock(item.received_ms // 1000)}  {names[item.hid]:<12} {_said(item.payload)}, sent {ago_ms} ms ago{late}"
    )


def _said(payload: Any) -> str:
    """Return what a message says, for people."""
    from bcami.kms.messages import MeterDataCall, Pricing, PublishProject, RemoteControl

    known: DownPayload = payload
    match known:
        case Pricing(starts_s, _, prices):
            shown = ", ".join(_price(price) for price in prices[:_PRICES_SHOWN])
            more = f" and {len(prices) - _PRICES_SHOWN} more" if len(prices) > _PRICES_SHOWN else ""
            return f"price {shown}{more} from {_clock(starts_s)}"
        case RemoteControl(action, limit_w, _, ends_s):
            return f"{action} {limit_w} W until {_clock(ends_s)}" if action == "limit" else str(action)
        case PublishProject(project, name, _):
            return f"project {project} is open: {name}"
        case MeterDataCall(from_s, to_s):
            return f"asked for readings from {_clock(from_s)} to {_clock(to_s)}"


def _price(price: int) -> str:
    return format(Decimal(price).scaleb(-7).normalize(), "f")


def _taken_form(item: "Accepted") -> dict[str, Any]:
    return {
        "hid": item.hid.hex(),
        "message": str(item.payload.__struct_config__.tag),
        "sent_ms": item.sent_ms,
        "latency_ms": item.received_ms - item.sent_ms,
        "in_time": item.in_time,
    }


def _clock(time_s: int) -> str:
    return time.strftime("%H:%M:%SZ", time.gmtime(time_s))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
