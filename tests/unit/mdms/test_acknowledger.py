"""Acknowledgements: paced, signed by the period, only when usage was stored, the same bytes after a crash."""

import asyncio

import pytest
import structlog

from bcami.client.courier import Settlement
from bcami.codec import Codec
from bcami.crypto.keyfile import write_secret
from bcami.crypto.keys import SECRET_ACCESS, export_secret
from bcami.crypto.signatures import verify
from bcami.mdms.acknowledger import AcknowledgePolicy, Acknowledger
from bcami.mdms.keyring import PERIOD_KIND, PeriodKeyring
from bcami.mdms.metrics import MdmsMetrics
from bcami.model.reasons import Reason
from bcami.model.registration import AcknowledgeArgument
from bcami.model.report import Reading
from bcami.model.transaction import TRANSACTION_BYTES_MAX, Transaction, transaction_id
from tests import virtual
from tests.unit.mdms.conftest import World

T0 = 1_356_998_400
_TX = Codec(Transaction, TRANSACTION_BYTES_MAX)
_ARGUMENT = Codec(AcknowledgeArgument, 1000)


class Bench:
    def __init__(self, world: World, folder) -> None:
        self.world = world
        self.sent: list[Transaction] = []
        self.on_sent = lambda: None
        self.reason = Reason.VALID
        self.keyring = PeriodKeyring(folder / "periods")
        period = world.period
        secret = export_secret(period.signing, SECRET_ACCESS) + export_secret(period.kem, SECRET_ACCESS)
        write_secret(self.keyring.folder / "00000001.key", PERIOD_KIND, secret)

    async def settle(self, encoded: bytes, tx_id: bytes) -> Settlement:
        tx = _TX.decode(encoded)
        assert transaction_id(tx, self.world.chain.roster.chain, 0) == tx_id
        self.sent.append(tx)
        self.on_sent()
        return Settlement(True, self.reason, 9, 0)

    def acknowledger(self, **policy) -> Acknowledger:
        return Acknowledger(
            self.world.chain.roster,
            self.keyring,
            self.world.store,
            self.settle,
            MdmsMetrics(),
            structlog.get_logger(),
            AcknowledgePolicy(**policy),
        )

    def usage(self) -> None:
        self.world.chain.block([self.world.meter.report([Reading(T0 + self.world.chain.height * 1800, 1)])])
        self.world.follower().follow(self.world.chain.bundles)


@pytest.fixture
def bench(world: World, tmp_path) -> Bench:
    return Bench(world, tmp_path)


def test_names_the_cursor_and_is_signed_by_the_period(bench: Bench) -> None:
    bench.usage()
    assert asyncio.run(bench.acknowledger().acknowledge()) is Reason.VALID
    (tx,) = bench.sent
    cursor = bench.world.store.cursor
    assert (tx.contract, tx.function, tx.session, tx.sequence) == ("mdms", "acknowledge", 1, cursor.height)
    assert _ARGUMENT.decode(tx.argument) == AcknowledgeArgument(cursor.height, cursor.header_hash)
    tx_id = transaction_id(tx, bench.world.chain.roster.chain, 0)
    assert verify(bench.world.period.signing.public_key, tx.signatures[0], tx_id)


def test_after_a_crash_the_same_cursor_gives_the_same_bytes(bench: Bench) -> None:
    bench.usage()
    asyncio.run(bench.acknowledger().acknowledge())
    bench.world.reopen()
    asyncio.run(bench.acknowledger().acknowledge())
    assert bench.sent[0] == bench.sent[1]


def test_due_by_time_or_by_blocks_and_never_without_usage(bench: Bench) -> None:
    made = bench.acknowledger(seconds=5.0, blocks=8)
    bench.world.follower().follow(bench.world.chain.bundles)
    assert not made.is_due(99.0)
    bench.usage()
    assert not made.is_due(4.9)
    assert made.is_due(5.0)
    asyncio.run(made.acknowledge())
    assert made.acknowledged_height == bench.world.store.cursor.height
    assert not made.is_due(99.0)
    for _ in range(20):
        bench.world.chain.block([])
    bench.world.follower().follow(bench.world.chain.bundles)
    assert not made.is_due(99.0)
    bench.usage()
    assert made.is_due(0.0)


def test_an_acknowledgement_on_the_chain_counts_after_a_restart(bench: Bench) -> None:
    bench.usage()
    height = bench.world.store.cursor.height
    bench.world.chain.block([bench.world.chain.acknowledge_tx(bench.world.period, height, height)])
    bench.world.follower().follow(bench.world.chain.bundles)
    bench.world.reopen()
    assert bench.world.store.acknowledged_height == height
    assert not bench.acknowledger().is_due(99.0)


def test_a_rejection_is_tried_again_later_and_a_known_height_is_not(bench: Bench) -> None:
    bench.usage()
    made = bench.acknowledger()
    bench.reason = Reason.SESSION_CLOSED
    asyncio.run(made.acknowledge())
    assert made.is_due(99.0)
    bench.reason = Reason.HEIGHT_NOT_ABOVE
    asyncio.run(made.acknowledge())
    assert not made.is_due(99.0)


def test_without_a_period_nothing_is_sent(bench: Bench) -> None:
    bench.usage()
    bench.keyring.erase(1)
    assert asyncio.run(bench.acknowledger().acknowledge()) is None
    assert bench.sent == []


def test_runs_until_told_to_stop(bench: Bench) -> None:
    bench.usage()

    async def run() -> None:
        stop = asyncio.Event()
        bench.on_sent = stop.set
        await bench.acknowledger(seconds=0.0, check_s=0.001).run(stop)

    virtual.run(run())
    assert len(bench.sent) == 1
