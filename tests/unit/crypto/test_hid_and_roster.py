"""Hashed identities, and the roster that genesis gives."""

import hmac

import msgspec
import pytest

from bcami.crypto.hid import hid
from bcami.crypto.roster import Roster
from bcami.errors import MalformedError
from bcami.model.genesis import chain_id, members_hash
from tests.unit.crypto.chain import make_genesis, make_keys

NETWORK_KEY = bytes(range(32))


def test_hid_is_a_keyed_hash():
    assert hid(NETWORK_KEY, "MAC000002") == hmac.digest(NETWORK_KEY, b"bcami/hid/1\x00\x00\x00\x09MAC000002", "sha256")
    assert hid(NETWORK_KEY, "MAC000002") != hid(NETWORK_KEY, "MAC000003")
    assert hid(NETWORK_KEY, "MAC000002") != hid(NETWORK_KEY[::-1], "MAC000002")


def test_hid_refuses_what_would_be_weak():
    with pytest.raises(ValueError, match="32 bytes"):
        hid(NETWORK_KEY[:31], "MAC000002")
    with pytest.raises(ValueError, match="not empty"):
        hid(NETWORK_KEY, "")


@pytest.mark.parametrize(("nodes", "f", "strong", "weak"), [(1, 0, 1, 1), (4, 1, 3, 2), (6, 1, 4, 2), (7, 2, 5, 3)])
def test_roster_from_genesis(nodes, f, strong, weak):
    genesis = make_genesis(make_keys(nodes))
    roster = Roster.from_genesis(genesis)
    assert (roster.quorum.f, roster.quorum.strong, roster.quorum.weak) == (f, strong, weak)
    assert roster.chain == chain_id(genesis)
    assert roster.epoch == genesis.epoch
    assert roster.members_hash == members_hash(genesis.members)
    assert roster.keys == tuple(member.consensus_key for member in genesis.members)
    assert roster.names == tuple(member.name for member in genesis.members)


def test_verify_by_takes_only_that_replica():
    keys = make_keys(4)
    roster = Roster.from_genesis(make_genesis(keys))
    signature = keys[2].sign(NETWORK_KEY)
    assert roster.verify_by(2, signature, NETWORK_KEY)
    for replica in (-2, -1, 0, 1, 3, 4, 64):
        assert not roster.verify_by(replica, signature, NETWORK_KEY)


def test_a_roster_needs_valid_distinct_members():
    genesis = make_genesis(make_keys(4))
    first, second, *rest = genesis.members
    for changed, cause in (
        (msgspec.structs.replace(second, consensus_key=bytes(33)), "no point"),
        (msgspec.structs.replace(second, consensus_key=first.consensus_key), "share"),
        (msgspec.structs.replace(second, name=first.name), "share"),
    ):
        with pytest.raises(MalformedError, match=cause):
            Roster.from_genesis(msgspec.structs.replace(genesis, members=(first, changed, *rest)))
