"""The Fabric back end and our runtime come to the same results and writes, whatever the transactions (design D6)."""

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import msgspec
import pytest

from bcami.codec import encode
from bcami.contract.guard import guard_key
from bcami.crypto.evidence import verify_evidence
from bcami.model.evidence import Evidence, StatementKind
from bcami.model.genesis import Parameters, operator_id
from bcami.model.reasons import Reason
from bcami.model.registration import MeterState
from bcami.model.transaction import Transaction, argument_digest
from tests.unit.contract.rounds import whole_round
from tests.unit.contract.world import CHAINCODE, Party, World, meter, signing_key
from tests.unit.crypto.statements import contradiction

Expected = tuple[int, str, dict[str, bytes | None]]

pytest.importorskip("fabric_chaincode_python.version", reason="the extra `fabric` is not installed")


def in_hex(writes) -> dict[str, bytes | None]:
    return {key.hex(): value for key, value in writes.items()}


class Recorder:
    """Runs transactions in our runtime and writes down what Fabric has to answer."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.calls: list[tuple[str, str, int]] = []
        self.expected: list[Expected] = []
        self.reasons: Counter[Reason] = Counter()

    def submit(self, tx: Transaction) -> None:
        world = self.world
        self.calls.append((f"{tx.contract}:{tx.function}", encode(tx).hex(), world.time_ms))
        refused = world.check(tx)
        if refused is not None:
            self.reasons[refused] += 1
            self.expected.append((500, refused.value, {}))
            return
        execution = world.execute(tx)
        self.reasons[execution.reason] += 1
        self.expected.append((200, execution.reason.encode().hex(), in_hex(execution.writes)))

    def query(self, contract: str, function: str, argument: bytes) -> None:
        self.calls.append((f"{contract}:{function}", argument.hex(), self.world.time_ms))
        answer = self.world.query(contract, function, argument)
        if isinstance(answer, Reason):
            self.expected.append((500, answer.value, {}))
        else:
            self.expected.append((200, answer.hex(), {}))


def damaged(tx: Transaction, choice: random.Random) -> Transaction:
    match choice.randrange(4):
        case 0:
            return msgspec.structs.replace(tx, signatures=tx.signatures[:-1] + (choice.randbytes(64),))
        case 1:
            return msgspec.structs.replace(tx, argument=tx.argument + b"x")
        case 2:
            data = choice.randbytes(len(tx.argument))
            return msgspec.structs.replace(tx, argument=data, argument_hash=argument_digest(data))
        case _:
            return msgspec.structs.replace(tx, timestamp_ms=tx.timestamp_ms + 1_000_000)


def transactions(world: World, choice: random.Random, count: int) -> Iterator[Transaction]:
    """Yield transactions of all kinds, good ones and bad ones, as they depend on the state by then."""
    parties = [meter(world, f"meter {i}") for i in range(6)]
    sent: list[Transaction] = []
    period = 0

    def one(party: Party) -> Transaction:
        nonlocal period
        answer = world.query("registration", "meter", party.hid)
        if isinstance(answer, Reason):
            return world.enrol(party) if period else open_period()
        session = msgspec.msgpack.decode(answer, type=MeterState).session
        current = 0 if session is None else session.number
        if not current:
            return new_session(party, max(party.keys, default=0) + 1)
        match choice.choices(range(9), weights=[1, 0.15, 4, 0.5, 16, 2, 1, 2, 2])[0]:
            case 0:
                return world.enrol(party)
            case 1:
                return world.revoke(party)
            case 2:
                return new_session(party, max(party.keys) + choice.choice((0, 1, 1, 2)))
            case 3:
                return open_period()
            case 4:
                number = choice.choice((current,) * 9 + (1, current + 1))
                party.keys.setdefault(number, party.keys[current])
                return party.report(number, choice.randint(1, 2000), readings=choice.randint(1, 3))
            case 5:
                number = choice.choice((period,) * 5 + (max(period - 1, 1),))
                return world.acknowledge(number, choice.randint(1, 2000), max(0, len(sent) - choice.choice((0, 0, 50))))
            case 6:
                return choice.choice(sent)
            case 7:
                return evidence()
            case _:
                return damaged(choice.choice(sent), choice)

    def evidence() -> Transaction:
        accused, reporter = choice.randrange(4), choice.randrange(4)
        kind, height = choice.choice(list(StatementKind)), choice.randrange(3)
        pair = contradiction(world.roster, signing_key("node", accused), accused, kind, 1, height)
        argument = verify_evidence(*pair, world.roster)
        assert isinstance(argument, Evidence)
        if choice.random() < 0.2:
            argument = Evidence(argument.place, argument.first, argument.first)
        key = signing_key("node", reporter)
        signer, number = operator_id(key.public_key), choice.randint(1, 60)
        return world.transaction("governance", "report_evidence", signer, 0, number, argument, [key])

    def open_period() -> Transaction:
        nonlocal period
        period += 1
        return world.open_period(period)

    def new_session(party: Party, number: int) -> Transaction:
        try:
            issued = party.issue(number, replicas=choice.choice(((0, 2), (1, 3), (0, 1, 2), (3,))))
        except AssertionError:  # the nodes refuse to contribute: send what cannot be valid
            party.keys[number] = signing_key("pr", party.hid, number)
            return world.transaction("registration", "register", party.hid, 0, number, b"junk", [party.enrolment])
        argument = party.register_argument(number, issued, choice.choice((max(period, 1), max(period, 1), 1, 9)))
        if choice.random() < 0.2:
            field = choice.choice(("public_key", "own_point", "period_key_id", "kem_key"))
            value = {"period_key_id": bytes(32), "kem_key": b"\x04" + bytes(64)}.get(
                field, signing_key("other", number).public_key
            )
            argument = msgspec.structs.replace(argument, **{field: value})
        if choice.random() < 0.1:
            argument = msgspec.structs.replace(argument, contributions=argument.contributions[::-1])
        return party.sign_register(number, argument)

    for _ in range(count):
        tx = one(choice.choice(parties))
        sent.append(tx)
        yield tx
        world.time_ms += choice.choice((0, 1, 300, 2_000, 120_000))


def run_in_child(world: World, calls: list[tuple[str, str, int]]) -> list[Expected]:
    script = encode((world.genesis, calls))
    child = subprocess.run(
        [sys.executable, "-m", "tests.unit.contract.fabric_child"],
        input=script,
        capture_output=True,
        timeout=100,
        cwd=CHAINCODE.parent,
        check=False,
    )
    assert child.returncode == 0, child.stderr.decode()[-2000:]
    return msgspec.msgpack.decode(child.stdout, type=list[Expected])


def test_same_results_and_write_sets():
    reasons: Counter[Reason] = Counter()
    for seed in range(3):
        choice = random.Random(seed)
        recorder = Recorder(World(Parameters(session_gap_ms=300_000)))
        for tx in transactions(recorder.world, choice, 250):
            recorder.submit(tx)
            if choice.random() < 0.1:
                recorder.query("registration", "meter", tx.signer)
                recorder.query("mdms", "period", choice.choice((b"", bytes(7) + b"\x01", b"bad")))
                recorder.query("mdms", "acknowledged", b"")
                recorder.query("governance", "evidence", choice.choice((bytes(7) + b"\x01", b"bad")))
        answers = run_in_child(recorder.world, recorder.calls)
        for call, expected, answer in zip(recorder.calls, recorder.expected, answers, strict=True):
            assert answer == expected, call[0]
        reasons += recorder.reasons
    # The sequence is only worth something if it meets the outcomes that matter, accepted and rejected.
    rejected = {
        "no_equivocation",
        "bad_contribution",
        "key_mismatch",
        "period_expired",
        "session_too_soon",
        "unknown_period",
    }
    refused = {
        "already_recorded",
        "bad_signature",
        "hash_mismatch",
        "height_not_above",
        "replay",
        "revoked_hid",
        "session_closed",
    }
    assert rejected | refused <= set(reasons), reasons
    assert reasons[Reason.VALID] > 200, reasons


def test_rounds_of_aggregation_come_to_the_same():
    world = World()
    recorder = Recorder(world)
    submit, world.submit = world.submit, lambda tx: recorder.submit(tx) or Reason.VALID
    for tx, expected in whole_round(world):
        before = recorder.reasons[expected]
        recorder.submit(tx)
        assert recorder.reasons[expected] == before + 1
        world.time_ms += 1
    for number in range(1, 5):
        recorder.query("aggregation", "round", number.to_bytes(8, "big"))
        recorder.query("aggregation", "roster", number.to_bytes(8, "big"))
    recorder.query("aggregation", "head", b"")
    world.submit = submit
    answers = run_in_child(world, recorder.calls)
    for call, expected_answer, answer in zip(recorder.calls, recorder.expected, answers, strict=True):
        assert answer == expected_answer, call[0]


def test_what_fabric_adds():
    """Malformed calls fail the proposal with a reason, and a queried `contribute` has no node behind it."""
    world = World()
    recorder = Recorder(world)
    party = meter(world)
    recorder.submit(world.open_period())
    recorder.submit(world.enrol(party))
    recorder.submit(party.register(1))
    report = party.report(1, 1)
    text = encode(report).hex()
    calls = [
        *recorder.calls,
        ("usage:report", "zz", 0),
        ("usage:report", text[:-2], 0),
        ("registration:enrol", text, 0),
        ("registration:contribute", encode(party.request(2)).hex(), 0),
        ("usage:report", text, world.time_ms),
    ]
    answers = run_in_child(world, calls)[3:]
    assert [answer[:2] for answer in answers] == [
        (500, "malformed"),
        (500, "malformed"),
        (500, "unknown_function"),
        (500, "not_ready"),
        (200, b"valid".hex()),
    ]
    assert set(answers[-1][2]) == {guard_key(party.hid, 1).hex()}


def test_nothing_else_imports_the_fabric_package():
    code = (
        "import sys, bcami.contract, bcami.contract.runtime, bcami.contract.issuance;"
        "sys.exit(any(name.startswith('fabric') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
