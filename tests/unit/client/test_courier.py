"""The courier settles every parcel with the same bytes, whatever single nodes do."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec
import pytest

from bcami.client.courier import Courier, CourierLimits, Parcel, Settlement
from bcami.client.nodes import NodeClient
from bcami.client.receipts import ReceiptVerifier
from bcami.client.utility import Utility, UtilitySequence
from bcami.codec import encode
from bcami.crypto.hpke import KemSecretKey
from bcami.crypto.keys import SecretKey
from bcami.errors import InputError
from bcami.model.genesis import operator_id
from bcami.model.reasons import Reason
from bcami.model.registration import EnrolArgument
from bcami.model.transaction import Transaction, argument_digest, transaction_id
from bcami.node.core.refusals import Refusals
from tests.chain import START_MS, entropy
from tests.unit.client.cluster import Cluster
from tests.virtual import run

QUICK = CourierLimits(wait_ms=200, stall_ms=100)


def enrolment(label: str) -> EnrolArgument:
    return EnrolArgument(
        entropy(label),
        SecretKey.generate(entropy(f"{label} key")).public_key,
        KemSecretKey.generate(entropy(f"{label} kem")).public_key,
    )


def enrol_tx(cluster: Cluster, sequence: int) -> tuple[bytes, bytes]:
    argument = encode(enrolment(f"meter {sequence}"))
    signer = operator_id(cluster.utility.public_key)
    tx = Transaction("registration", "enrol", signer, 0, sequence, START_MS, argument_digest(argument), argument, ())
    tx_id = transaction_id(tx, cluster.roster.chain, 0)
    return encode(msgspec.structs.replace(tx, signatures=(cluster.utility.sign(tx_id),))), tx_id


def courier_of(cluster: Cluster, limits: CourierLimits = QUICK, nodes: list[NodeClient] | None = None) -> Courier:
    return Courier(
        nodes or cluster.clients(),
        ReceiptVerifier(cluster.roster),
        weak=cluster.roster.quorum.weak,
        seed=b"seed",
        limits=limits,
    )


def carry(cluster: Cluster, count: int = 20, limits: CourierLimits = QUICK) -> list[Settlement]:
    async def work() -> list[Settlement]:
        courier = courier_of(cluster, limits)
        sent = [enrol_tx(cluster, sequence) for sequence in range(1, count + 1)]
        try:
            return await asyncio.gather(
                *(courier.settle(encoded, tx_id, home=place) for place, (encoded, tx_id) in enumerate(sent))
            )
        finally:
            await courier.close()

    return run(work())


def all_valid(settled: list[Settlement]) -> bool:
    return all(settlement.is_final and settlement.reason is Reason.VALID for settlement in settled)


def test_parcels_go_in_batches_to_their_nodes() -> None:
    cluster = Cluster()
    assert all_valid(carry(cluster))
    assert [served.requests["POST transactions"] for served in cluster.served] == [1, 1, 1, 1]
    assert [len(served.transactions) for served in cluster.served] == [5, 5, 5, 5]


def test_requests_keep_to_their_limits() -> None:
    cluster = Cluster()
    one = len(enrol_tx(cluster, 1)[0])
    assert all_valid(carry(cluster, 40, CourierLimits(batch_transactions_max=3, wait_ms=200)))
    assert max(served.requests["POST transactions"] for served in cluster.served) == 4
    cluster = Cluster()
    assert all_valid(carry(cluster, 40, CourierLimits(batch_bytes_max=2 * one + 10, wait_ms=200)))
    assert max(served.requests["POST transactions"] for served in cluster.served) == 5


def down(cluster: Cluster) -> None:
    cluster.faults[1].is_down = True


def busy(cluster: Cluster) -> None:
    cluster.faults[1].http_status = 429
    cluster.faults[1].retry_after_s = 30


def not_ready(cluster: Cluster) -> None:
    cluster.faults[1].http_status = 503


def failing(cluster: Cluster) -> None:
    cluster.faults[1].http_status = 500


def losing_answers(cluster: Cluster) -> None:
    for faults in cluster.faults:
        faults.drops_answers = 2


def unknowing(cluster: Cluster) -> None:
    for faults in cluster.faults:
        faults.unknowns = 3


def lying(cluster: Cluster) -> None:
    cluster.faults[1].claims = Reason.VALID


def slandering(cluster: Cluster) -> None:
    cluster.faults[1].claims = Reason.BAD_ARGUMENT


@pytest.mark.parametrize(
    "fault", [down, busy, not_ready, failing, losing_answers, unknowing, lying, slandering], ids=lambda f: f.__name__
)
def test_every_parcel_is_settled_with_the_same_bytes(fault: Callable[[Cluster], None]) -> None:
    cluster = Cluster()
    fault(cluster)
    assert all_valid(carry(cluster))
    sent = {enrol_tx(cluster, sequence)[0] for sequence in range(1, 21)}
    arrived = [encoded for served in cluster.served for encoded in served.transactions]
    assert set(arrived) == sent
    assert len(cluster.places) == 20, "each executed once"


def test_a_hung_node_does_not_hold_up_the_others() -> None:
    cluster = Cluster()
    cluster.faults[1].is_silent = True

    async def work() -> float:
        clients = cluster.clients()
        courier = courier_of(cluster, CourierLimits(wait_ms=0, stall_ms=50, requests_max=1))
        loop = asyncio.get_running_loop()
        stuck = [enrol_tx(cluster, sequence) for sequence in range(1, 4)]
        started = loop.time()
        futures = []
        for encoded, tx_id in stuck:
            futures.append(asyncio.ensure_future(courier.settle(encoded, tx_id, home=1)))
            await asyncio.sleep(0.01)
        await asyncio.gather(*futures[1:])
        took = loop.time() - started
        futures[0].cancel()
        await courier.close()
        for client in clients:
            await client.close()
        return took

    assert run(work()) < 1.9, "before the request that hangs has timed out"


def test_a_node_without_its_vote_log_is_left_alone_and_costs_no_number() -> None:
    cluster = Cluster()
    for node in (0, 1):  # as many as would abandon a number
        cluster.faults[node].refuses = Reason.AMNESIA
        cluster.faults[node].refuses_contract = "registration"
    sent = [enrol_tx(cluster, sequence) for sequence in range(1, 9)]

    async def work() -> list[Settlement]:
        courier = courier_of(cluster)
        try:
            return [await courier.settle(encoded, tx_id, home=0) for encoded, tx_id in sent]
        finally:
            await courier.close()

    settlements = run(work())
    assert all(item.is_final and item.reason is Reason.VALID for item in settlements)
    asked = [served.requests["POST transactions"] for served in cluster.served]
    assert max(asked[:2]) == 1, "once each: then others are asked first"


def test_refusals_of_weak_nodes_abandon() -> None:
    cluster = Cluster()
    encoded, tx_id = enrol_tx(cluster, 1)
    tx = msgspec.msgpack.decode(encoded, type=Transaction)
    forged = encode(msgspec.structs.replace(tx, signatures=(bytes(64),)))

    async def work() -> Settlement:
        courier = courier_of(cluster)
        try:
            return await courier.settle(forged, tx_id)
        finally:
            await courier.close()

    settlement = run(work())
    assert (settlement.is_final, settlement.reason, settlement.height) == (False, Reason.BAD_SIGNATURE, 0)
    assert [served.requests["POST transactions"] for served in cluster.served] == [1, 1, 0, 0]


@pytest.mark.parametrize("liar", ["not at all", "as another", "something else"])
def test_refusals_that_their_node_did_not_sign_abandon_nothing(liar: str) -> None:
    cluster = Cluster()
    for faults in cluster.faults[:2]:
        faults.refuses, faults.refuses_contract = Reason.BAD_SIGNATURE, "registration"
        faults.signs_refusals = liar
    encoded, tx_id = enrol_tx(cluster, 1)

    async def work() -> Settlement:
        courier = courier_of(cluster)
        try:
            return await courier.settle(encoded, tx_id)
        finally:
            await courier.close()
            assert sum(lane.unsigned for lane in courier.statistics) == 2

    settlement = run(work())
    assert (settlement.is_final, settlement.reason) == (True, Reason.VALID)
    assert [served.requests["POST transactions"] for served in cluster.served] == [1, 1, 1, 0]


@pytest.mark.parametrize(("status", "reason"), [(400, Reason.MALFORMED), (413, Reason.OVERSIZED)])
def test_one_bad_transaction_does_not_take_its_batch_with_it(status: int, reason: Reason) -> None:
    cluster = Cluster()
    bad = b"\x99 not a transaction"

    async def handle(request: httpx.Request) -> httpx.Response:
        if bad in request.content:
            node = int(request.url.host.removeprefix("node")) - 1
            signed = Refusals(cluster.roster, node, cluster.keys[node]).sign_request(request.content, reason)
            form = {"reason": reason, "replica": node, "signature": signed.signature.hex()}
            return httpx.Response(status, json=form if node else {"reason": reason, "detail": "unsigned"})
        return await cluster._handle(request)

    async def work() -> list[Settlement]:
        transport = httpx.MockTransport(handle)
        courier = courier_of(cluster, nodes=[NodeClient(url, transport=transport) for url in cluster.urls])
        sent = [enrol_tx(cluster, sequence) for sequence in range(1, 8)]
        sent.insert(3, (bad, bytes(32)))
        try:
            return await asyncio.gather(*(courier.settle(encoded, tx_id, home=0) for encoded, tx_id in sent))
        finally:
            await courier.close()

    settled = run(work())
    assert (settled[3].is_final, settled[3].reason) == (False, reason)
    assert all_valid(settled[:3] + settled[4:])


def test_when_all_nodes_are_down_it_waits_and_goes_on() -> None:
    cluster = Cluster()
    for faults in cluster.faults:
        faults.is_down = True

    async def work() -> None:
        courier = courier_of(cluster)
        encoded, tx_id = enrol_tx(cluster, 1)
        settling = asyncio.ensure_future(courier.settle(encoded, tx_id))
        await asyncio.sleep(0.3)
        assert not settling.done()
        requests = sum(served.requests["POST transactions"] for served in cluster.served)
        assert requests < 24, "it backs off"
        for faults in cluster.faults:
            faults.is_down = False
        assert (await settling).reason is Reason.VALID
        await courier.close()

    run(work())


def test_a_bug_of_ours_is_told_and_not_swallowed() -> None:
    cluster = Cluster()
    told: list[Exception] = []

    class Broken(NodeClient):
        async def submit_encoded(self, *_: object, **__: object):
            raise ZeroDivisionError

    async def work() -> None:
        courier = Courier(
            [Broken("http://node1", transport=cluster.transport)],
            ReceiptVerifier(cluster.roster),
            weak=2,
            seed=b"",
            on_failure=told.append,
        )
        courier.post(Parcel(b"", bytes(32), 0, lambda *_: None))
        for _ in range(10):
            await asyncio.sleep(0)
        await courier.close()

    run(work())
    assert isinstance(told[0], ZeroDivisionError)


# The utility.


def with_utility(cluster: Cluster, home: Path, work: Callable) -> None:
    async def inner() -> None:
        courier = courier_of(cluster)
        try:
            await work(Utility.open(home, cluster.roster), courier, cluster.clients())
        finally:
            await courier.close()

    run(inner())


def test_the_utility_enrols_once_and_revokes(tmp_path: Path) -> None:
    cluster = Cluster()
    home = cluster.make_home(tmp_path)
    meters = [enrolment(f"meter {place}") for place in range(5)]

    async def work(utility: Utility, courier: Courier, nodes: list[NodeClient]) -> None:
        await utility.enrol(meters, courier, nodes, START_MS)
        await utility.enrol(meters, courier, nodes, START_MS)
        stolen = EnrolArgument(meters[0].hid, meters[1].enrolment_key, meters[1].enrolment_kem_key)
        with pytest.raises(InputError, match="already_enrolled"):
            await utility.enrol([stolen], courier, nodes, START_MS)
        await utility.revoke(meters[0].hid, courier, START_MS)
        with pytest.raises(InputError, match="already_enrolled"):
            await utility.enrol(meters[:1], courier, nodes, START_MS)
        with pytest.raises(InputError, match="unknown_hid"):
            await utility.revoke(entropy("nobody"), courier, START_MS)

    with_utility(cluster, home, work)


def test_the_utility_keeps_within_the_window(tmp_path: Path) -> None:
    from bcami.model.genesis import Parameters

    cluster = Cluster(parameters=Parameters(replay_window=64))
    home = cluster.make_home(tmp_path)

    async def work(utility: Utility, courier: Courier, nodes: list[NodeClient]) -> None:
        await utility.enrol([enrolment(f"meter {place}") for place in range(150)], courier, nodes, START_MS)

    with_utility(cluster, home, work)
    assert len(cluster.places) == 150


def test_numbers_are_never_given_twice(tmp_path: Path) -> None:
    first, second = UtilitySequence(tmp_path / "sequence"), UtilitySequence(tmp_path / "sequence")
    given = [*first.reserve(3), *second.reserve(2), *first.reserve(1)]
    assert given == [1, 2, 3, 4, 5, 6]
    (tmp_path / "sequence").write_text("six")
    with pytest.raises(InputError, match="damaged"):
        first.reserve(1)


def test_a_foreign_utility_key_is_found(tmp_path: Path) -> None:
    home = Cluster(label="other").make_home(tmp_path)
    with pytest.raises(InputError, match="not the one that genesis names"):
        Utility.open(home, Cluster().roster)
