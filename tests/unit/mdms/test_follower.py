"""Blocks in, readings out: verified, opened, stored exactly once, whatever a node offers and whenever it crashes."""

import subprocess
import sys
import textwrap

import duckdb
import msgspec
import pytest

from bcami.codec import encode
from bcami.crypto.keys import SecretKey
from bcami.errors import EnvironmentFault
from bcami.mdms.duckdb_store import DuckDbStore
from bcami.mdms.records import ReportFault
from bcami.model.block import Outcome
from bcami.model.genesis import operator_id
from bcami.model.reasons import Reason
from bcami.model.registration import AnchorArgument, OpenKmsArgument
from bcami.model.report import Reading
from tests.chain import ChainBuilder, entropy, prune
from tests.unit.mdms.conftest import World

T0 = 1_356_998_400


def day(energy: int = 1_0000000, count: int = 48, first: int = T0) -> list[Reading]:
    return [Reading(first + place * 1800, energy + place) for place in range(count)]


def test_stores_the_readings_of_valid_reports(world: World) -> None:
    world.chain.block([world.meter.report(day()), world.meter.report([Reading(T0 + 86400, -7)])])
    followed = world.follower().follow(world.chain.bundles)
    assert followed.refused is None
    assert followed.stored == (49, 0, 0)
    number = world.store.meter_number(world.meter.hid)
    assert world.readings() == [(number, start, energy) for start, energy in [*day(), Reading(T0 + 86400, -7)]]
    cursor = world.store.cursor
    assert (cursor.height, cursor.header_hash) == (world.chain.height, world.chain.head)
    assert cursor.usage_height == world.chain.height
    assert world.store.counts == (49, 0, 0, 0, 2)


def test_registration_and_usage_in_one_block(world: World) -> None:
    meter = world.chain.new_meter("MAC000009")
    world.chain.block(
        [world.chain.enrol_tx(meter), world.chain.register_tx(meter, world.period), meter.report(day(count=1))]
    )
    assert world.follower().follow(world.chain.bundles).stored.new == 1


def test_what_the_chain_has_of_symmetric_keys_changes_nothing_that_is_stored(world: World) -> None:
    key = SecretKey.generate(entropy("kms epoch"))
    signer = operator_id(key.public_key)
    opened = encode(OpenKmsArgument(key.public_key))
    anchored = encode(AnchorArgument(3, bytes(32)))
    chain = world.chain
    for function, sequence, argument, keys in (
        ("open_kms", 1, opened, (chain.mdms_enrolment, key)),
        ("anchor", 4, anchored, (key,)),
    ):
        chain.block([chain.sign("mdms", function, signer, 0, sequence, argument, keys)])
    chain.block([world.meter.report(day(count=1))])
    followed = world.follower().follow(chain.bundles)
    assert (followed.refused, followed.stored) == (None, (1, 0, 0))
    assert world.store.cursor.height == chain.height
    assert [identity.hid for identity in world.store.identities_above(0)] == [world.meter.hid]


def test_rejected_and_absent_transactions_are_not_stored(world: World) -> None:
    reports = [world.meter.report([Reading(T0 + place * 1800, place)]) for place in range(4)]
    world.chain.block(reports, {1: Reason.REPLAY}, absent=[0])
    world.follower().follow(world.chain.bundles)
    assert [energy for _, _, energy in world.readings()] == [1, 3]


def test_a_rejected_registration_opens_no_session(world: World) -> None:
    old = world.meter.session
    world.chain.block([world.chain.register_tx(world.meter, world.period)], {0: Reason.SESSION_TOO_SOON})
    world.follower().follow(world.chain.bundles)
    assert world.store.session(world.meter.hid, old) is not None
    assert world.store.session(world.meter.hid, old + 1) is None


def test_a_block_that_only_a_later_certificate_proves_is_stored_like_any_other(world: World) -> None:
    world.chain.block([world.meter.report(day(count=1))])
    world.chain.block([world.meter.report([Reading(T0 - 1800, 3)])])
    *before, last = world.chain.bundles
    lacking = msgspec.structs.replace(before[-1], certificate=last.certificate, headers=(last.block.header,))
    follower = world.follower()
    assert follower.follow([*before[:-1], lacking]).refused is None
    assert world.store.cursor.header_hash == last.block.header.previous
    assert follower.follow([last]).stored.new == 1


def test_blocks_that_come_again_are_passed_over(world: World) -> None:
    world.chain.block([world.meter.report(day())])
    follower = world.follower()
    follower.follow(world.chain.bundles)
    again = follower.follow(world.chain.bundles)
    assert (again.blocks, again.refused) == (0, None)
    world.chain.block([world.meter.report([Reading(T0 - 1800, 3)])])
    assert follower.follow(world.chain.bundles).stored.new == 1
    assert len(world.readings()) == 49


def tampered(world: World) -> dict[str, object]:
    bundle = world.chain.bundles[-1]
    block, stored = bundle.block, bundle.batches[0]
    tx = stored.batch.transactions[0]
    other = ChainBuilder(label="other")
    other.block([])

    def with_tx(changed):
        transactions = (changed, *stored.batch.transactions[1:])
        batch = msgspec.structs.replace(stored.batch, transactions=transactions)
        return msgspec.structs.replace(bundle, batches=(msgspec.structs.replace(stored, batch=batch),))

    def with_header(**changes):
        header = msgspec.structs.replace(block.header, **changes)
        return msgspec.structs.replace(bundle, block=msgspec.structs.replace(block, header=header))

    outcome = block.outcomes[0]
    flipped = bytes((tx.argument[0] ^ 1,)) + tx.argument[1:]
    relabelled = (Outcome(outcome.transaction_id, Reason.REPLAY), *block.outcomes[1:])
    return {
        "ciphertext": with_tx(msgspec.structs.replace(tx, argument=flipped)),
        "signer": with_tx(msgspec.structs.replace(tx, signer=bytes(32))),
        "batch left out": msgspec.structs.replace(bundle, batches=()),
        "outcome": msgspec.structs.replace(bundle, block=msgspec.structs.replace(block, outcomes=relabelled)),
        "header": with_header(time_ms=block.header.time_ms + 1),
        "previous hash": with_header(previous=bytes(32)),
        "certificate": msgspec.structs.replace(
            bundle, certificate=msgspec.structs.replace(bundle.certificate, votes=bundle.certificate.votes[:2])
        ),
        "another chain": other.bundles[0],
    }


KINDS = ["ciphertext", "signer", "batch left out", "outcome", "header", "previous hash", "certificate"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tampered_block_is_refused_and_what_came_before_is_kept(world: World, kind: str) -> None:
    world.chain.block([world.meter.report(day(count=2)), world.meter.report(day(count=2, first=T0 + 86400))])
    honest = world.chain.bundles
    followed = world.follower().follow([*honest[:-1], tampered(world)[kind]])
    assert followed.refused is not None
    assert followed.refused.height == world.chain.height
    assert world.store.cursor.height == world.chain.height - 1
    assert world.readings() == []
    assert world.follower().follow(honest).stored.new == 4


def test_blocks_of_another_chain_and_gaps_are_refused(world: World) -> None:
    other = ChainBuilder(label="other")
    other.block([])
    assert world.follower().follow(other.bundles).refused.reason is Reason.WRONG_CHAIN
    gap = world.follower().follow(world.chain.bundles[1:])
    assert (gap.refused.reason, gap.blocks) == (Reason.BEHIND, 0)


def test_a_certified_block_on_another_parent_is_refused(world: World) -> None:
    world.follower().follow(world.chain.bundles)
    fork = ChainBuilder()
    for _ in range(world.chain.height + 1):
        fork.block([])
    refused = world.follower().follow([fork.bundles[-1]]).refused
    assert refused is not None
    assert refused.reason is Reason.BAD_PROOF
    assert "more than f nodes" in refused.what


def test_reports_that_cannot_be_read_are_recorded_and_block_nothing(world: World) -> None:
    meter, other = world.meter, world.chain.meters["MAC000003"]
    lost = world.chain.open_period()  # its private key is not here
    world.chain.open_session(other, lost)
    strange = world.chain.new_meter("NEVER ENROLLED")
    world.chain.register_tx(strange, world.period)
    meter.session += 1
    without_session = meter.report(day(count=1))
    meter.session -= 1
    world.chain.block(
        [
            meter.report([], plaintext=b"\x00\x01\x07\x08short"),
            meter.report(day(count=1), altered=True),
            strange.report(day(count=1)),
            without_session,
            other.report(day(count=1)),
            meter.report([Reading(T0 + 1, 1)]),
            meter.report([Reading(-1800, 1)]),
            meter.report([Reading(2**33 - 2**33 % 1800, 1)]),
            meter.report([Reading(T0, 1)], interval_s=90),
            meter.report([Reading(T0, 42)]),
        ]
    )
    followed = world.follower().follow(world.chain.bundles)
    assert followed.refused is None
    assert world.store.cursor.height == world.chain.height
    assert [energy for _, _, energy in world.readings()] == [42]
    faults = dict(world.rows("select place, fault from unreadable order by place"))
    assert faults == {
        0: ReportFault.MALFORMED_REPORT,
        1: ReportFault.NOT_AUTHENTIC,
        2: ReportFault.UNKNOWN_HID,
        3: ReportFault.UNKNOWN_SESSION,
        4: ReportFault.PERIOD_KEY_MISSING,
        5: ReportFault.OFF_GRID,
        6: ReportFault.TIME_OUT_OF_RANGE,
        7: ReportFault.TIME_OUT_OF_RANGE,
        8: ReportFault.OFF_GRID,
    }
    assert world.store.counts.unreadable == 9
    sealed = world.rows("select content from unreadable where place = 4")[0][0]
    assert sealed == world.chain.bundles[-1].batches[0].batch.transactions[4].argument


def test_the_first_value_of_an_interval_stays(world: World) -> None:
    follower = world.follower()
    world.chain.block([world.meter.report([Reading(T0, 5), Reading(T0, 6)]), world.meter.report([Reading(T0, 5)])])
    assert follower.follow(world.chain.bundles).stored == (1, 1, 1)
    world.chain.open_session(world.meter, world.period)
    world.chain.block([world.meter.report([Reading(T0, 5), Reading(T0 + 1800, 9)])])
    world.chain.block([world.meter.report([Reading(T0, 7)])])
    assert follower.follow(world.chain.bundles).stored == (1, 1, 1)
    number = world.store.meter_number(world.meter.hid)
    assert world.readings() == [(number, T0, 5), (number, T0 + 1800, 9)]
    kept = world.rows("select energy, equal from repeats order by height, place, energy")
    assert kept == [(6, False), (5, True), (5, True), (7, False)]
    world.reopen()
    assert world.store.counts[:3] == (2, 2, 2)


def test_pruned_payloads_are_not_taken_for_reports(world: World) -> None:
    world.chain.block([world.meter.report(day())])
    emptied = [*world.chain.bundles[:-1], prune(world.chain.bundles[-1])]
    followed = world.follower().follow(emptied)
    assert followed.refused is not None
    assert followed.refused.pruned
    assert world.store.cursor.height == world.chain.height - 1
    accepted = world.follower().follow(emptied, accept_pruned=world.chain.height)
    assert accepted.refused is None
    assert [row.fault for row in accepted.unreadable] == [ReportFault.PRUNED]


def test_restart_goes_on_at_the_cursor_with_sessions_from_the_store(world: World) -> None:
    world.chain.block([world.meter.report(day())])
    world.follower().follow(world.chain.bundles)
    world.reopen()
    assert world.store.cursor.header_hash == world.chain.head
    world.chain.block([world.meter.report(day(first=T0 + 86400)), world.meter.report([Reading(T0, 1_0000000)])])
    followed = world.follower().follow(world.chain.bundles[-1:])
    assert followed.stored == (48, 1, 0)
    assert world.store.counts == (96, 1, 0, 0, 2)


class Interrupted(Exception):
    pass


class StoreThatStops(DuckDbStore):
    """Stops after the readings are inserted and before the cursor moves."""

    def _move_cursor(self, after) -> None:
        raise Interrupted


def test_an_error_between_insert_and_cursor_leaves_nothing_behind(world: World) -> None:
    world.chain.block([world.meter.report(day())])
    world.reopen(StoreThatStops)
    before = world.store.cursor
    with pytest.raises(Interrupted):
        world.follower().follow(world.chain.bundles)
    assert world.store.cursor == before
    assert world.readings() == []
    assert world.store.counts == (0, 0, 0, 0, 0)
    world.reopen()
    assert world.follower().follow(world.chain.bundles).stored.new == 48
    assert len(world.readings()) == 48


CRASH = """
import os, sys
from pathlib import Path
from bcami.errors import EnvironmentFault
from bcami.mdms.duckdb_store import DuckDbStore
from tests.unit.mdms.conftest import World
from tests.unit.mdms.test_follower import day

class Dies(DuckDbStore):
    def _move_cursor(self, after):
        super()._move_cursor(after)
        os._exit(9)  # the transaction is complete but for its commit

world = World(Path(sys.argv[1]))
world.chain.block([world.meter.report(day())])
world.follower().follow(world.chain.bundles[:-1])
world.reopen(Dies)
world.follower().follow(world.chain.bundles)
"""


class StoreOnAFullDisk(DuckDbStore):
    def _move_cursor(self, after) -> None:
        raise duckdb.IOException("IO Error: no space left on device")


def test_a_full_disk_is_told_and_leaves_nothing_behind(world: World) -> None:
    world.chain.block([world.meter.report(day())])
    world.reopen(StoreOnAFullDisk)
    with pytest.raises(EnvironmentFault, match="no space left"):
        world.follower().follow(world.chain.bundles)
    assert world.readings() == []


def test_an_interval_stored_twice_is_found_at_start(world: World) -> None:
    world.chain.block([world.meter.report(day())])
    world.follower().follow(world.chain.bundles)
    world.rows("insert into readings select * from readings limit 1")
    with pytest.raises(EnvironmentFault, match="1 intervals twice"):
        world.reopen()
    world.folder = world.folder / "new"
    world.folder.mkdir()
    world.store = world.open_store()


def test_shorter_intervals_and_restart(world: World) -> None:
    minutes = [Reading(T0 + place * 300, place) for place in range(13)]
    world.chain.block([world.meter.report(minutes, interval_s=300)])
    world.follower().follow(world.chain.bundles)
    world.reopen()
    world.chain.block([world.meter.report(minutes, interval_s=300), world.meter.report([Reading(T0 + 1800, 6)])])
    assert world.follower().follow(world.chain.bundles).stored == (0, 14, 0)


def test_a_killed_process_leaves_the_store_at_its_cursor(tmp_path) -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(CRASH), str(tmp_path)], timeout=60, check=False)
    assert done.returncode == 9
    world = World.__new__(World)
    world.folder = tmp_path
    again = World(tmp_path)  # the same chain, from the same seeds; the store file is the one left behind
    try:
        again.chain.block([again.meter.report(day())])
        assert again.store.cursor.height == again.chain.height - 1
        assert again.readings() == []
        assert again.follower().follow(again.chain.bundles).stored.new == 48
        assert len(again.readings()) == 48
    finally:
        again.store.close()
