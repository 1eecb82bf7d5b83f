"""Laws of the cryptography under generated input."""

from hashlib import sha256

import ecdsa
from ecdsa.util import sigencode_string_canonize
from hypothesis import given, settings
from hypothesis import strategies as st

from bcami.crypto import merkle
from bcami.crypto.hpke import KemSecretKey, OpenError, open_from, seal_to, setup_receiver
from bcami.crypto.keys import SECRET_ACCESS, SecretKey, export_secret
from bcami.crypto.lthash import LtHash, state_element
from bcami.crypto.points import point_sum
from bcami.crypto.signatures import is_valid_public_key, verify

N = ecdsa.SECP256k1.order
scalars = st.integers(1, N - 1)
digests = st.binary(min_size=32, max_size=32)
quick = settings(max_examples=40)
RECEIVER = KemSecretKey.generate(b"receiver" * 4)


def key_of(scalar: int) -> SecretKey:
    return SecretKey.from_scalar_bytes(scalar.to_bytes(32, "big"))


@quick
@given(scalars, digests)
def test_signing_agrees_with_ecdsa(scalar, digest):
    theirs = ecdsa.SigningKey.from_secret_exponent(scalar, ecdsa.SECP256k1)
    key = key_of(scalar)
    expected = theirs.sign_digest_deterministic(digest, hashfunc=sha256, sigencode=sigencode_string_canonize)
    assert key.public_key == theirs.verifying_key.to_string("compressed")
    assert key.sign(digest) == expected
    assert verify(key.public_key, expected, digest)


@quick
@given(digests, st.integers(0, 511), st.integers(0, 255))
def test_one_flipped_bit_breaks_a_signature(digest, in_signature, in_digest):
    key = key_of(12345)
    signature = key.sign(digest)
    flipped = bytearray(signature)
    flipped[in_signature // 8] ^= 1 << in_signature % 8
    other = bytearray(digest)
    other[in_digest // 8] ^= 1 << in_digest % 8
    assert not verify(key.public_key, bytes(flipped), digest)
    assert not verify(key.public_key, signature, bytes(other))


@quick
@given(st.binary(max_size=70), st.binary(max_size=70), st.binary(max_size=40))
def test_no_bytes_make_a_check_raise(key, signature, digest):
    assert verify(key, signature, digest) is False
    assert is_valid_public_key(key) in (True, False)
    assert point_sum([key, key]) is None or is_valid_public_key(key)


@quick
@given(st.lists(scalars, min_size=1, max_size=5))
def test_key_sums_and_point_sums_agree(numbers):
    total = sum(numbers) % N
    if total == 0:
        return
    first, *rest = (key_of(number) for number in numbers)
    key = first.plus(*rest)
    assert int.from_bytes(export_secret(key, SECRET_ACCESS), "big") == total
    assert key.public_key == point_sum([first.public_key, *(share.public_key for share in rest)])


@quick
@given(st.binary(max_size=64), st.binary(max_size=64), st.binary(max_size=300), digests)
def test_what_is_sealed_opens(info, aad, plaintext, ikm):
    encapsulation, ciphertext = seal_to(RECEIVER.public_key, info, aad, plaintext, ikm)
    assert open_from(encapsulation, RECEIVER, info, aad, ciphertext) == plaintext


@quick
@given(st.binary(max_size=100), st.binary(max_size=80))
def test_junk_does_not_open(encapsulation, ciphertext):
    for attempt in (encapsulation, RECEIVER.public_key):
        try:
            setup_receiver(attempt, RECEIVER, b"").open(0, b"", ciphertext)
        except OpenError:
            continue
        raise AssertionError("junk opened")


@quick
@given(st.lists(st.binary(max_size=8), max_size=70), st.data())
def test_merkle_paths_prove_their_leaf_only(leaves, data):
    tree = merkle.tree(leaves)
    assert tree.root() == merkle.root(leaves)
    if not leaves:
        return
    index = data.draw(st.integers(0, len(leaves) - 1))
    path = tree.path(index)
    assert merkle.root_from_path(leaves[index], index, len(leaves), path) == tree.root()
    other = data.draw(st.binary(max_size=8))
    if other != leaves[index]:
        assert merkle.root_from_path(other, index, len(leaves), path) != tree.root()
    junk = data.draw(st.lists(digests, max_size=9))
    if tuple(junk) != path:
        assert merkle.root_from_path(leaves[index], index, len(leaves), junk) != tree.root()


entries = st.tuples(st.binary(max_size=6), st.binary(max_size=6), st.integers(0, 2**63 - 1))


@quick
@given(st.lists(entries, max_size=20), st.lists(entries, max_size=20), st.randoms(use_true_random=False))
def test_lthash_is_a_commutative_group(first, second, random):
    added = [state_element(*entry) for entry in first]
    removed = [state_element(*entry) for entry in second]
    at_once, stepped = LtHash(), LtHash()
    at_once.update(added, removed)
    steps = [(item, True) for item in added] + [(item, False) for item in removed]
    random.shuffle(steps)
    for item, is_added in steps:
        stepped.update([item] if is_added else [], [] if is_added else [item])
    assert stepped.to_bytes() == at_once.to_bytes()
    at_once.update(removed, added)
    assert at_once.to_bytes() == bytes(2048)


@quick
@given(entries, entries)
def test_two_entries_never_share_their_element(one, other):
    assert (state_element(*one) == state_element(*other)) == (one == other)
