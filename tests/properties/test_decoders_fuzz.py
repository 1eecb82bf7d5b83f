"""Every decoder of bytes that come from outside: a value that encodes to the same bytes again, or MalformedError.

All `Codec`s of the code base are found by walking its modules, those of contract arguments in the runtime, so a new one
is fuzzed from its first day. Valid values are generated from their types; their encodings are then damaged. Set
BCAMI_FUZZ_EXAMPLES (examples for each decoder) for a long run: `make soak`.
"""

import gc
import importlib
import os
import pkgutil
import random
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import inspect

import bcami
from bcami.codec import Codec, encode
from bcami.contract.runtime import Runtime
from bcami.crypto.evidence import verify_evidence
from bcami.crypto.roster import Roster
from bcami.errors import MalformedError
from bcami.model.evidence import Evidence, StatementKind, evidence_id
from bcami.model.reasons import Reason
from bcami.model.report import READINGS_MAX, Reading, decode_report, encode_report
from bcami.units import KIB, MIB
from tests.unit.contract.world import make_genesis, package, signing_key
from tests.unit.crypto.statements import contradiction

EXAMPLES = int(os.environ.get("BCAMI_FUZZ_EXAMPLES", "60"))
fuzz = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))

LEAVES_ROOT_LOGGER_ALONE = ("bcami.contract.fabric",)
"""Not imported: fabric's package touches the root logger. Its codec is Transaction's, which others have too."""
SECONDS_MAX = 1.0
"""For one decode of what is generated here, in CPU time of this thread: some 10,000 times what it takes."""
REMEMBERED_BYTES_MAX = 64 * KIB
NESTED = 100_000


def codecs() -> Iterator[tuple[str, Codec[Any]]]:
    """Yield every codec that a module of the code base holds, and those of contract arguments."""
    modules = sorted(pkgutil.walk_packages(bcami.__path__, "bcami."), key=lambda module: ".model." not in module.name)
    for module in modules:
        if module.name in LEAVES_ROOT_LOGGER_ALONE:
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            held = value.items() if isinstance(value, dict) else [("", value)]
            for key, item in list(held):
                if isinstance(item, Codec):
                    label = ".".join(key) if isinstance(key, tuple) else str(key)
                    yield f"{module.name.removeprefix('bcami.')}.{name}{label}", item
    for (contract, function), entry in Runtime(package(), make_genesis()).submits.items():
        owner = getattr(entry.decode, "__self__", None)
        if isinstance(owner, Codec):
            yield f"{contract}.{function}", owner


def kind_of(codec: Codec[Any]) -> inspect.Type:
    return inspect.type_info(codec._decoder.type)


DISTINCT: dict[str, Codec[Any]] = {}
for _name, _codec in codecs():
    if not any(kind_of(_codec) == kind_of(known) for known in DISTINCT.values()):
        DISTINCT[_name] = _codec


def generated(kind: inspect.Type, choice: random.Random) -> Any:
    """Return a value of the type, within all its bounds; lists are short."""
    match kind:
        case inspect.StructType(cls=cls, fields=fields):
            return cls(*(generated(field.type, choice) for field in fields))
        case inspect.UnionType(types=types):
            return generated(choice.choice(types), choice)
        case inspect.VarTupleType(item_type=item, min_length=least, max_length=most):
            count = min(choice.choice((least or 0, (least or 0) + choice.randrange(4))), 64 if most is None else most)
            return tuple(generated(item, choice) for _ in range(count))
        case inspect.TupleType(item_types=items):
            return tuple(generated(item, choice) for item in items)
        case inspect.BytesType(min_length=least, max_length=most):
            shortest = least or 0
            longest = min(shortest + 40, most if most is not None else shortest + 40)
            return choice.randbytes(choice.randint(shortest, longest))
        case inspect.IntType(ge=least, le=most, multiple_of=step):
            low, high = least or 0, 2**63 - 1 if most is None else most
            value = choice.choice(
                (low, high, choice.randint(low, high), low + choice.randrange(min(300, high - low + 1)))
            )
            return value - value % (step or 1)
        case inspect.StrType(pattern=pattern):
            letters = "abcdefghij" if pattern else "ab z\u00e9\u20ac\U0001f600"
            return "".join(choice.choices(letters, k=choice.randint(1, 20)))
        case inspect.EnumType(cls=cls):
            return choice.choice(list(cls))
        case inspect.LiteralType(values=values):
            return choice.choice(values)
        case inspect.BoolType():
            return choice.random() < 0.5
        case inspect.NoneType():
            return None
        case _:
            raise NotImplementedError(f"say here how a {kind} is generated")


INTERESTING = (
    b"\xc0",
    b"\x80",
    b"\x90",
    b"\xcc\x00",
    b"\xcd\x00\x01",
    b"\xcf" + b"\xff" * 8,
    b"\xd3" + b"\xff" * 8,
    b"\xcb" + b"\x7f\xf8" + bytes(6),
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\xd6\xff\x00\x00\x00\x00",
    b"\xc1",
    b"\xa1\xff",
)
"""Headers of other types, non-minimal numbers, NaN, huge lengths, extensions, a timestamp, bytes that no format has."""


def damaged(data: bytes, choice: random.Random) -> bytes:
    """Return the bytes after a few edits, of the kinds that find something."""
    for _ in range(choice.choice((1, 1, 1, 2, 5))):
        place = choice.randrange(len(data) + 1)
        match choice.randrange(7):
            case 0:
                data = data[:place] + bytes((choice.randrange(256),)) + data[place + 1 :]
            case 1 if data:
                place %= len(data)
                data = data[:place] + bytes((data[place] ^ 1 << choice.randrange(8),)) + data[place + 1 :]
            case 2:
                data = data[:place]
            case 3:
                data = data[:place] + choice.choice(INTERESTING) + data[place + choice.choice((0, 1)) :]
            case 4:
                end = min(len(data), place + choice.randrange(1, 40))
                data = data[:place] + data[place:end] * 2 + data[end:]
            case 5:
                data = data[:place] + data[place + choice.randrange(1, 40) :]
            case _:
                data = data + choice.randbytes(choice.randrange(1, 9))
    return data


def survives(codec: Codec[Any], data: bytes) -> bool:
    """Decode; tell whether it was a value. Anything but a canonical value or MalformedError fails, and so does time."""
    started = time.thread_time()
    try:
        value = codec.decode(data)
    except MalformedError:
        return False
    finally:
        assert time.thread_time() - started < SECONDS_MAX
    assert codec.encode(value) == data
    return True


def test_all_decoders_of_what_comes_from_outside_are_here():
    names = " ".join(dict(codecs()))
    for expected in (
        "model.wire.PEER_CODEC",
        "model.wire.HELLO_CODEC",
        "model.api.SUBMIT_CODEC",
        "model.api.SUBMIT_ANSWER_CODEC",
        "model.api.RELEASE_CODEC",
        "model.api.QUERY_CODEC",
        "model.api.PROOF_CODEC",
        "gateway.routes_write._REQUEST_CODEC",
        "gateway.routes_write._ONE_CODEC",
        "client.nodes._GENESIS",
        "client.nodes._BUNDLE",
        "client.nodes._HEADER",
        "client.nodes._CONTRIBUTION",
        "model.evidence.STATEMENT_CODEC",
        "model.evidence.EVIDENCE_CODEC",
        "model.evidence.EVIDENCE_RECORDS_CODEC",
        "mdms.intake._CODECSmdms.register",
        "registration.enrol",
        "registration.register",
        "mdms.acknowledge",
        "governance.report_evidence",
    ):
        assert expected in names, expected


@pytest.mark.parametrize("name", DISTINCT)
class TestEveryCodec:
    @fuzz
    @given(seed=st.integers(0, 2**64 - 1))
    def test_valid_and_damaged(self, name, seed):
        codec, choice = DISTINCT[name], random.Random(seed)
        data = codec.encode(generated(kind_of(codec), choice))
        assert survives(codec, data) or len(data) > codec.bytes_max
        for _ in range(8):
            survives(codec, damaged(data, choice))

    @fuzz
    @given(data=st.binary(max_size=300))
    def test_any_bytes(self, name, data):
        survives(DISTINCT[name], data)

    def test_what_is_too_long_is_not_even_looked_at(self, name):
        codec = DISTINCT[name]
        data = bytes(codec.bytes_max + 1) if codec.bytes_max <= 16 * MIB else None
        if data is not None:
            with pytest.raises(MalformedError, match="allowed"):
                codec.decode(data)

    def test_huge_claims_cost_nothing(self, name):
        """A length in a header is a claim; memory is used for bytes that are there, and for nothing deep."""
        codec = DISTINCT[name]
        valid = codec.encode(generated(kind_of(codec), random.Random(name)))
        claims = [header + valid for header in INTERESTING]
        claims += [valid[:place] + header for place in range(min(len(valid), 40)) for header in INTERESTING]
        claims += [
            header * (min(NESTED, codec.bytes_max) // len(header)) for header in (b"\x91", b"\xdc\x00\x01", b"\x81")
        ]
        tracemalloc.start()
        try:
            for data in claims:
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                survives(codec, data)
                peak = tracemalloc.get_traced_memory()[1] - before
                assert peak < 64 * KIB + 16 * len(data), (peak, data[:50])
        finally:
            tracemalloc.stop()


def test_nothing_is_remembered():
    """Decoding bad bytes for ever leaves memory as it was."""
    choice = random.Random(7)
    inputs = [
        (codec, damaged(codec.encode(generated(kind_of(codec), choice)), choice))
        for codec in DISTINCT.values()
        for _ in range(20)
    ]
    tracemalloc.start()
    try:
        for count in range(4):
            for codec, data in inputs:
                survives(codec, data)
            gc.collect()
            if count == 0:
                before = tracemalloc.get_traced_memory()[0]
        assert tracemalloc.get_traced_memory()[0] - before < REMEMBERED_BYTES_MAX
    finally:
        tracemalloc.stop()


@fuzz
@given(seed=st.integers(0, 2**64 - 1))
def test_reports(seed):
    """What a meter encrypts: the MDMS opens it, whatever it is."""
    choice = random.Random(seed)
    readings = [
        Reading(choice.randrange(2**40), choice.randrange(-(2**40), 2**40)) for _ in range(choice.randint(1, 9))
    ]
    data = encode_report(readings, 1800)
    assert decode_report(data) == (1800, readings)
    for _ in range(10):
        try:
            interval_s, found = decode_report(damaged(data, choice))
        except MalformedError:
            continue
        assert interval_s > 0
        assert 1 <= len(found) <= READINGS_MAX


ROSTER = Roster.from_genesis(make_genesis())
KEYS = [signing_key("node", replica) for replica in range(4)]


@fuzz
@given(seed=st.integers(0, 2**64 - 1))
def test_damaged_evidence_convicts_nobody_else(seed):
    """Whatever is done to two true statements: they convict their signer of just this, or nobody of anything."""
    choice = random.Random(seed)
    accused, kind = choice.randrange(4), choice.choice(list(StatementKind))
    first, second = contradiction(ROSTER, KEYS[accused], accused, kind)
    whole = verify_evidence(first, second, ROSTER)
    assert isinstance(whole, Evidence)
    for pair in (
        (damaged(first, choice), second),
        (damaged(first, choice), damaged(second, choice)),
        (first, damaged(first, choice)),
        (encode(whole), second),
    ):
        found = verify_evidence(*pair, ROSTER)
        if not isinstance(found, Reason):
            assert evidence_id(ROSTER.chain, found) == evidence_id(ROSTER.chain, whole)


def test_a_value_of_every_union_member_is_generated():
    """Else the fuzzing of a frame would never meet some messages."""
    peer = next(codec for name, codec in DISTINCT.items() if name.endswith("PEER_CODEC"))
    kind = kind_of(peer)
    assert isinstance(kind, inspect.UnionType)
    made = {type(generated(kind, random.Random(seed))) for seed in range(400)}
    assert made == {member.cls for member in kind.types if isinstance(member, inspect.StructType)}
    assert all(issubclass(item, msgspec.Struct) for item in made)
