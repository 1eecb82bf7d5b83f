"""Runs rounds of private aggregation on a live network: meters and head-end over HTTP, the record on the chain."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from bcami.aggregation.bounds import plan_for
from bcami.aggregation.noise import is_drawable
from bcami.ami.aggregation_chain import AggregationChain
from bcami.ami.aggregation_history import AggregationHistory
from bcami.ami.aggregation_meters import Readings
from bcami.ami.aggregation_metrics import AggregationMetrics
from bcami.ami.fleet import Fleet
from bcami.ami.transcript import Transcript
from bcami.client.courier import Courier
from bcami.client.nodes import NodeClient
from bcami.client.receipts import ReceiptVerifier
from bcami.client.utility import Utility
from bcami.crypto.roster import Roster
from bcami.errors import InputError
from bcami.model.aggregation import MASKED, RING
from bcami.model.genesis import Genesis
from bcami.model.ids import Name
from bcami.paths import HomePaths
from bcami.processes.aggregation_gateways import meters_in_use
from bcami.processes.aggregation_masked import run_masked
from bcami.processes.aggregation_place import AggregateOptions, Place
from bcami.processes.aggregation_report import AggregateReport
from bcami.processes.aggregation_ring import run_ring

RING_MEMBERS_MAX: Final = 200
"""In ring mode every newcomer's broadcast reaches everybody: n² posts to form a group."""


async def run_aggregation(
    home: HomePaths,
    genesis: Genesis,
    urls: Sequence[str],
    fleet: Fleet,
    readings: Mapping[str, Readings],
    options: AggregateOptions,
    run: Path,
    show: Callable[[str], None],
) -> AggregateReport:
    """Sum the intervals over the meters of `readings`, which are enrolled and have sessions.

    Leaves `transcript.jsonl` (in masked mode one more for each process of meters) and `metrics.prom` in the run's
    folder. Raises InputError for a group that cannot be, and when every interval was summed before; EnvironmentFault
    when another run uses these meters.
    """
    roster = Roster.from_genesis(genesis)
    meter_ids = {fleet.meter(meter_id).party.hid: meter_id for meter_id in readings}
    nodes = [NodeClient(url, chain=roster.chain) for url in urls]
    courier = Courier(nodes, ReceiptVerifier(roster), weak=roster.quorum.weak, seed=os.urandom(32))
    utility = Utility.open(home.folder, roster)
    chain = AggregationChain(utility, courier, nodes, roster, lambda: time.time_ns() // 1_000_000)
    history = AggregationHistory(chain, nodes, roster)
    metrics = AggregationMetrics()
    try:
        async with meters_in_use(home) as lock:
            with Transcript(run / "transcript.jsonl") as transcript:
                place = Place(
                    options,
                    home,
                    run,
                    lock,
                    fleet,
                    chain,
                    history,
                    roster,
                    meter_ids,
                    readings,
                    transcript,
                    metrics,
                    show,
                )
                return await (run_masked(place) if options.mode == MASKED else run_ring(place))
    finally:
        (run / "metrics.prom").write_bytes(metrics.exposition())
        await courier.close()
        for node in nodes:
            await node.close()


def check_group(options: AggregateOptions, members: int) -> None:
    """Raise InputError for a group that cannot be summed, or not with that noise."""
    try:
        msgspec.convert(options.group, Name)
    except msgspec.ValidationError:
        raise InputError(
            f"a group cannot be called {options.group!r}",
            where="--group",
            do="use at most 32 of a to z, 0 to 9, - and _, beginning with a letter",
        ) from None
    if not is_drawable(options.noise):
        raise InputError(
            "so little ε for so large readings makes noise that meters do not draw",
            where="--epsilon, --sensitivity",
            do="use a larger ε, or a smaller sensitivity: of 5 kWh, ε is at least 0.005",
        )
    if not options.intervals:
        raise InputError(
            "the data has no reading of that time", where="--from, --to, --meters", do="choose a time that it has"
        )
    try:
        plan_for(members)
    except ValueError as error:
        raise InputError(str(error), where="--meters", do="choose more meters: a small group hides nobody") from None
    if options.mode == RING and members > RING_MEMBERS_MAX:
        raise InputError(
            f"a ring over HTTP has at most {RING_MEMBERS_MAX} members", where="--meters", do="use --mode masked"
        )
