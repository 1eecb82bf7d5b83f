"""The guard through whole transactions as a state machine, and outcomes that depend on nothing but their inputs."""

import subprocess
import sys
from hashlib import sha256

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bcami.codec import encode
from bcami.model.genesis import Parameters
from bcami.model.reasons import Reason
from bcami.model.transaction import Transaction
from tests.unit.contract.world import CHAINCODE, World, reporting_meter

WINDOW = 64


class Meters(RuleBasedStateMachine):
    """One meter, its sessions and reports in any order; the model is what was consumed in the current session."""

    @initialize()
    def start(self):
        self.world = World(Parameters(replay_window=WINDOW, session_gap_ms=0))
        self.party = reporting_meter(self.world)
        self.session = 1
        self.used: set[int] = set()
        self.accepted: list[Transaction] = []

    def expected(self, sequence: int) -> Reason | None:
        if self.used and sequence <= max(self.used) - WINDOW:
            return Reason.SEQUENCE_TOO_OLD
        return Reason.REPLAY if sequence in self.used else None

    @rule(sequence=st.integers(1, 300))
    def report(self, sequence):
        tx = self.party.report(self.session, sequence)
        expected = self.expected(sequence)
        assert self.world.check(tx) is expected
        assert self.world.execute(tx).reason is (expected or Reason.VALID)
        if expected is None:
            self.used.add(sequence)
            self.accepted.append(tx)

    @rule(sequence=st.integers(1, 300))
    def rejected_report(self, sequence):
        """What the contract rejects is consumed all the same (protocol 3.5)."""
        key = self.party.keys[self.session]
        tx = self.world.transaction("usage", "report", self.party.hid, self.session, sequence, b"bad", [key])
        expected = self.expected(sequence)
        assert self.world.execute(tx).reason is (expected or Reason.BAD_ARGUMENT)
        if expected is None:
            self.used.add(sequence)

    @rule(data=st.data())
    def replay(self, data):
        if self.accepted:
            tx = data.draw(st.sampled_from(self.accepted))
            before = dict(self.world.state)
            assert self.world.execute(tx).reason in (
                Reason.REPLAY,
                Reason.SEQUENCE_TOO_OLD,
                Reason.SESSION_CLOSED,
            )
            assert self.world.state == before

    @rule(step=st.integers(1, 3))
    def new_session(self, step):
        self.world.time_ms += 1
        assert self.world.submit(self.party.register(self.session + step)) is Reason.VALID
        self.session += step
        self.used = set()

    @invariant()
    def guards_have_a_fixed_width(self):
        for key, entry in getattr(self, "world", World()).state.items():
            assert not key.startswith(b"guard/") or len(entry.value) == 16 + WINDOW // 8


TestMeters = Meters.TestCase
TestMeters.settings = settings(max_examples=25, stateful_step_count=25)


@settings(max_examples=60)
@given(
    st.sampled_from(["registration", "usage", "mdms", "other"]),
    st.sampled_from(["enrol", "revoke", "register", "report", "acknowledge", "meter"]),
    st.integers(0, 3),
    st.integers(0, 2**63 - 1),
    st.binary(max_size=400),
)
def test_no_transaction_makes_the_runtime_raise(contract, function, session, sequence, argument):
    world = World()
    party = reporting_meter(world)
    for signer in (party.hid, world.mdms.hid, world.runtime.network.utility_id, bytes(32)):
        tx = world.transaction(contract, function, signer, session, sequence, argument, [party.enrolment])
        assert isinstance(world.check(tx), Reason)
        assert world.execute(tx).reason is not Reason.CONTRACT_FAULT


SCRIPT = """
from hashlib import sha256
from bcami.codec import encode
from tests.unit.contract.world import World, reporting_meter
world = World()
outcomes = []
parties = [reporting_meter(world, f"meter {i}") for i in range(3)]
for number in range(1, 30):
    for party in parties:
        for tx in (party.report(1, number * 7 % 23), party.report(1, number)):
            execution = world.execute(tx)
            outcomes.append((execution.reason, list(execution.writes.items())))
print(sha256(encode((outcomes, sorted((key, entry.value) for key, entry in world.state.items())))).hexdigest())
"""


def test_outcomes_do_not_depend_on_the_process():
    """Two processes with different hash seeds, one optimised: the same outcomes, writes in the same order."""
    digests = {
        subprocess.run(
            [sys.executable, *options, "-c", SCRIPT],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(CHAINCODE.parent)},
            cwd=CHAINCODE.parent,
            capture_output=True,
            timeout=60,
            check=True,
        ).stdout
        for seed, options in (("1", ()), ("2", ("-O",)))
    }
    assert len(digests) == 1


def test_execution_is_a_function_of_its_inputs():
    world = World()
    party = reporting_meter(world)
    tx = party.report(1, 1)
    snapshot = dict(world.state)
    results = []
    for _ in range(3):
        execution = world.runtime.execute(tx, world.id_of(tx), snapshot.get, 9, world.time_ms)
        results.append(sha256(encode((execution.reason, sorted(execution.writes.items())))).digest())
    assert len(set(results)) == 1
    assert snapshot == world.state
