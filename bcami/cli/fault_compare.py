"""After a fault run: all ledgers against one another, and the MDMS against what was sent."""

import datetime as dt
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from bcami.cli.ask import get_json, http_client
from bcami.cli.data import run_reconcile_of, wait_for_mdms
from bcami.cli.evidence import recorded
from bcami.cli.own_network import RunNetwork
from bcami.cli.verify import run_audit
from bcami.crypto.roster import Roster
from bcami.errors import BcamiError
from bcami.faults.verdict import History, Ledgers, liars
from bcami.replay.options import Filters
from bcami.units import energy_to_text

RECORDED_S: Final = 20.0
"""Longest time until the chain holds evidence against everybody who is accused."""


def save_sent(folder: Path, given: Sequence[tuple[str, int, int]]) -> None:
    """Write the readings that were sent as a data set in the half-hourly layout, which `bcami reconcile` reads."""
    folder.mkdir()
    rows = ["LCLid,tstp,energy(kWh/hh)"]
    for meter, start_s, energy in given:
        moment = dt.datetime.fromtimestamp(start_s, dt.UTC).strftime("%Y-%m-%d %H:%M:%S.0000000")
        rows.append(f"{meter},{moment},{energy_to_text(energy)} ")
    (folder / "block_0.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def compare(place: RunNetwork, history: History, sent: Path) -> None:
    """Audit all ledgers, compare them with one another and the MDMS with what was sent."""
    names = [node.name for node in place.network.nodes]
    try:
        history.recorded = _recorded(place, history.evidence)
        wait_for_mdms(place.home, place.network)
        compared = run_reconcile_of(place.home, place.network, sent, Filters())
        reports = run_audit(place.home, place.genesis, names)
        common = min(report.height for report in reports if report.name not in liars(history))
        hashes = _hashes(place, common)
    except BcamiError as error:
        history.trouble.append(f"the comparison: {error.what}")
        return
    history.ledgers = Ledgers(
        common,
        hashes,
        {report.name: str(report.first_error) for report in reports if not report.ok},
        compared.missing,
        compared.extra,
        compared.different,
    )


def _recorded(place: RunNetwork, accused: Iterable[str]) -> dict[str, int]:
    """Return how much evidence the chain holds against whom; nodes bring it there in turns, which takes a moment."""
    roster = Roster.from_genesis(place.genesis)
    deadline = time.monotonic() + RECORDED_S
    while True:
        listed = recorded([node.url for node in place.network.nodes], roster)
        found = Counter(roster.names[item.record.evidence.place.replica] for item in listed)
        if all(found[name] for name in accused) or time.monotonic() > deadline:
            return dict(found)
        threading.Event().wait(0.5)


def _hashes(place: RunNetwork, height: int) -> dict[str, str]:
    found = {}
    with http_client() as client:
        for node in place.network.nodes:
            with suppress(BcamiError):
                found[node.name] = str(get_json(client, node.url, f"/v1/blocks/{height}")["hash"])
    return found
