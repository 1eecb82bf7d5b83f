"""HPKE with KEM 0x0016 against payjoin/bitcoin-hpke's vectors, and ECDH against Wycheproof.

The file's per-message `nonce` fields are off by one and match no ciphertext: nonces are derived as RFC 9180 5.2 says.
"""

from bcami.crypto import native
from bcami.crypto.hpke import KemSecretKey, setup_receiver, setup_sender
from bcami.crypto.keys import SECRET_ACCESS, export_secret
from tests.shared import vectors, wycheproof

FILE = "hpke_dhkem_secp256k1.json"
INFO = bytes.fromhex("4f6465206f6e2061204772656369616e2055726e")
PLAINTEXT = b"Beauty is truth, truth beauty"


def test_quoted_vector():
    """First messages of test-vectors-k256.json, mode base, AES-128-GCM (payjoin/bitcoin-hpke 41b55120)."""
    secret = KemSecretKey.derive(bytes.fromhex("a22427226377cc867d51ad3f130af08ad13451de7160efa2b23076fd782de967"))
    assert export_secret(secret, SECRET_ACCESS).hex() == (
        "5d516211fd17a8916cbd4ab60cc52104ea8372aac6678220545fbdb542392cb7"
    )
    assert secret.public_key.hex() == (
        "04fc04c64e4066b7996481f5f5e6e19ff7c6eded59e7fec49602146e4f3c92f6c5"
        "03acfc3ac970c668a48b5137b993319b5851484365ed7f42fdc7b7e3a8283483"
    )
    ephemeral_ikm = bytes.fromhex("ea9f11f8dfb0ca08a8810f9ea39c3a6afb780859e8d8c7bc37b78e2f9b8d68d9")
    encapsulation, sender = setup_sender(secret.public_key, INFO, ephemeral_ikm)
    assert encapsulation.hex() == (
        "0405607e978f274af24b219c1d4866e37213694f1dc050a023cdcf5a7d994b3777"
        "be96104361fd8ec62602756edbdbd2a36bf10c93011cbe949cfcb634325a7aea"
    )
    stored = sender.to_secret_bytes(SECRET_ACCESS)
    assert stored[1:17].hex() == "4118e756acd59c3c9931915487db6ee3"
    assert stored[17:29].hex() == "18b2e5d4b4fdbc347807ac1f"
    assert stored[29:].hex() == "51071394fcdc1319997e13bec249f3b8a6cd3a68949a3bfd2c2cd730204d1da6"
    sealed = [sender.seal(sequence, f"Count-{sequence}".encode(), PLAINTEXT) for sequence in (0, 1)]
    assert [item.hex() for item in sealed] == [
        "cf9779fa656c8cb7f33e750069c7e717e1f9c04246c4d95cf27f10b12d4474b50dacdce57ffad35ea50f03fa02",
        "b167023839e32840a5d3cc07cff4bbfd71443787146f44d3664a3d137e784bde7ef3347dab3f4ceb98ab6542da",
    ]
    assert sender.export(b"", 32).hex() == "e4969690d24506d0f9ef30606157cc39d148c1c106e6b912ca1e56fbfec6d237"
    receiver = setup_receiver(encapsulation, secret, INFO)
    assert receiver.open(1, b"Count-1", sealed[1]) == PLAINTEXT


def test_base_mode_aes_128_gcm():
    """Key schedule, every message and every export of the suite that bcami uses."""
    messages = 0
    for vector in vectors(FILE):
        if (vector["mode"], vector["kdf_id"], vector["aead_id"]) != (0, 1, 1):
            continue
        info, public_key, ikm = (bytes.fromhex(vector[name]) for name in ("info", "pkRm", "ikmE"))
        encapsulation, sender = setup_sender(public_key, info, ikm)
        assert encapsulation.hex() == vector["enc"]
        secret = KemSecretKey.from_scalar_bytes(bytes.fromhex(vector["skRm"]))
        receiver = setup_receiver(encapsulation, secret, info)
        for sequence, entry in enumerate(vector["encryptions"]):
            plaintext, aad, ciphertext = (bytes.fromhex(entry[name]) for name in ("pt", "aad", "ct"))
            assert sender.seal(sequence, aad, plaintext) == ciphertext
            assert receiver.open(sequence, aad, ciphertext) == plaintext
            messages += 1
        for entry in vector["exports"]:
            exported = bytes.fromhex(entry["exported_value"])
            assert sender.export(bytes.fromhex(entry["exporter_context"]), entry["L"]) == exported
            assert receiver.export(bytes.fromhex(entry["exporter_context"]), entry["L"]) == exported
    assert messages == 257


def test_derive_key_pair_in_all_suites():
    """RFC 9180 7.1.3: the KEM is the same in all 16 suites and modes."""
    pairs = 0
    for vector in vectors(FILE):
        for party in "RES":
            if f"ikm{party}" not in vector:
                continue
            secret = KemSecretKey.derive(bytes.fromhex(vector[f"ikm{party}"]))
            assert export_secret(secret, SECRET_ACCESS).hex() == vector[f"sk{party}m"]
            assert secret.public_key.hex() == vector[f"pk{party}m"]
            pairs += 1
    assert pairs >= 32


def test_wycheproof_ecdh():
    """Valid shared secrets match; a point off the curve, or of another form, is never used."""
    head = bytes.fromhex("3056301006072a8648ce3d020106052b8104000a034200")
    agreed = refused = 0
    for _, test in wycheproof("wycheproof_ecdh_secp256k1_test.json"):
        public = bytes.fromhex(test["public"])
        if not public.startswith(head):
            continue  # another encoding of the key's frame, which bcami has not
        point = native.parse_uncompressed(public[len(head) :])
        if test["result"] == "invalid" or point is None:
            assert point is None, test["tcId"]
            assert test["result"] != "valid", test["tcId"]
            refused += 1
            continue
        secret = KemSecretKey.from_scalar_bytes(int(test["private"], 16).to_bytes(32, "big"))
        assert secret.shared_x(point).hex() == test["shared"], test["tcId"]
        agreed += 1
    assert agreed > 450
    assert refused > 5
