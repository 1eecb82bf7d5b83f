"""What the chain tells the MDMS of its meters' keys: the newest session of each, and who is revoked."""

from bcami.mdms.duckdb_store import DuckDbStore
from tests.unit.mdms.conftest import World


def follow(world: World) -> int:
    world.follower().follow(world.chain.bundles)
    return world.store.cursor.height


def test_tells_the_newest_session_of_each_meter_also_after_a_restart(world: World) -> None:
    before = follow(world)
    (first,) = world.store.identities_above(0)
    assert world.meter.signing is not None
    assert (first.hid, first.session, first.public_key) == (world.meter.hid, 1, world.meter.signing.public_key)
    world.chain.open_session(world.meter, world.period)
    follow(world)
    for _ in range(2):
        (newest,) = world.store.identities_above(0)
        assert (newest.session, newest.public_key) == (2, world.meter.signing.public_key)
        assert len(newest.kem_key) == 65
        assert newest.kem_key != first.kem_key
        assert world.store.identities_above(before) == [newest]
        assert world.store.identities_above(world.store.cursor.height) == []
        world.reopen(DuckDbStore)


def test_a_period_that_is_erased_takes_no_meter_with_it(world: World) -> None:
    follow(world)
    world.store.mark_erased(world.period.number)
    world.reopen()
    assert [known.hid for known in world.store.identities_above(0)] == [world.meter.hid]


def test_who_is_revoked_is_told_once_and_is_no_identity_any_more(world: World) -> None:
    before = follow(world)
    world.chain.block([world.chain.revoke_tx(world.meter)])
    after = follow(world)
    assert world.store.revoked_above(before) == [world.meter.hid]
    assert world.store.revoked_above(after) == []
    assert world.store.identities_above(0) == []
