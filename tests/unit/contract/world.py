"""A network of parties with known keys, one world state and one runtime: what tests of contracts stand on."""

from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from bcami.codec import encode
from bcami.contract.issuance import answer_contribution
from bcami.contract.package import Package, load_package
from bcami.contract.runtime import Execution, Runtime
from bcami.crypto.hpke import KemSecretKey, open_from, seal_to
from bcami.crypto.keys import SecretKey
from bcami.crypto.roster import Roster
from bcami.model.chain import StateEntry
from bcami.model.genesis import Genesis, Member, Parameters, operator_id
from bcami.model.reasons import Reason
from bcami.model.registration import (
    AcknowledgeArgument,
    Contribution,
    ContributionAnswer,
    ContributionRequest,
    EnrolArgument,
    MdmsRegisterArgument,
    RegisterArgument,
    RevokeArgument,
    contribution_request_digest,
    period_key_id,
    request_hash,
    share_info,
)
from bcami.model.report import Reading, encode_report
from bcami.model.transaction import Transaction, argument_digest, transaction_id

CHAINCODE = Path(__file__).resolve().parents[3] / "chaincode"
START_MS = 1_700_000_000_000


def signing_key(*name: object) -> SecretKey:
    return SecretKey.generate(sha256(repr(name).encode()).digest())


def kem_key(*name: object) -> KemSecretKey:
    return KemSecretKey.generate(sha256(repr(name).encode()).digest())


@cache
def package() -> Package:
    return load_package(CHAINCODE, None)


def make_genesis(parameters: Parameters | None = None, nodes: int = 4) -> Genesis:
    return Genesis(
        network="test",
        created_ms=START_MS,
        epoch=3,
        members=tuple(Member(f"n{i}", signing_key("node", i).public_key, bytes([i]) * 32) for i in range(nodes)),
        utility_key=signing_key("utility").public_key,
        mdms_hid=sha256(b"mdms").digest(),
        mdms_enrolment_key=signing_key("mdms").public_key,
        mdms_enrolment_kem_key=kem_key("mdms").public_key,
        chaincode_package=package().package_id,
        execution_version=1,
        parameters=parameters or Parameters(),
        faults_allowed=False,
    )


class Issued:
    """A key that its holder got from `contribute`, and what `register` says about it."""

    def __init__(self, own: SecretKey, request: ContributionRequest, shares: Sequence[tuple[Contribution, SecretKey]]):
        self.own = own
        self.request_hash = request_hash(request)
        self.contributions = tuple(contribution for contribution, _ in shares)
        self.key = own.plus(*(share for _, share in shares))


class World:
    """World state with its runtime. `time_ms` is the block's time and everybody's clock."""

    def __init__(self, parameters: Parameters | None = None, nodes: int = 4) -> None:
        self.genesis = make_genesis(parameters, nodes)
        self.roster = Roster.from_genesis(self.genesis)
        self.runtime = Runtime(package(), self.genesis)
        self.state: dict[bytes, StateEntry] = {}
        self.height = 0
        self.time_ms = START_MS
        self.utility_sequence = 0
        self.mdms = Party(self, self.genesis.mdms_hid, signing_key("mdms"), kem_key("mdms"))

    def read(self, key: bytes) -> StateEntry | None:
        return self.state.get(key)

    def scan(self, prefix: bytes, limit: int) -> list[tuple[bytes, StateEntry]]:
        return sorted(item for item in self.state.items() if item[0].startswith(prefix))[:limit]

    def id_of(self, tx: Transaction) -> bytes:
        return transaction_id(tx, self.roster.chain, self.roster.epoch)

    def transaction(
        self,
        contract: str,
        function: str,
        signer: bytes,
        session: int,
        sequence: int,
        argument: Any,
        keys: Sequence[SecretKey],
        timestamp_ms: int | None = None,
    ) -> Transaction:
        data = argument if isinstance(argument, bytes) else encode(argument)
        stamp = self.time_ms if timestamp_ms is None else timestamp_ms
        unsigned = Transaction(contract, function, signer, session, sequence, stamp, argument_digest(data), data, ())
        signatures = tuple(key.sign(self.id_of(unsigned)) for key in keys)
        return Transaction(
            contract, function, signer, session, sequence, stamp, argument_digest(data), data, signatures
        )

    def check(self, tx: Transaction) -> Reason | None:
        return self.runtime.check(tx, self.id_of(tx), self.read, self.time_ms)

    def execute(self, tx: Transaction) -> Execution:
        self.height += 1
        execution = self.runtime.execute(tx, self.id_of(tx), self.read, self.height, self.time_ms)
        for key, value in execution.writes.items():
            if value is None:
                self.state.pop(key, None)
            else:
                self.state[key] = StateEntry(value, self.height)
        return execution

    def submit(self, tx: Transaction) -> Reason:
        """What a client sees: the refusal, else the outcome."""
        refused = self.check(tx)
        return refused if refused is not None else self.execute(tx).reason

    def query(self, contract: str, function: str, argument: bytes) -> bytes | Reason:
        return self.runtime.query(contract, function, argument, self.read, self.scan)

    def contribute(self, replica: int, request: ContributionRequest) -> ContributionAnswer | Reason:
        secret = sha256(b"contribution secret" + bytes([replica])).digest()
        signer = signing_key("node", replica)
        return answer_contribution(request, self.runtime, self.read, self.roster, replica, signer, secret)

    # What the utility and the MDMS say.

    def utility(self, function: str, argument: Any, contract: str = "registration") -> Transaction:
        self.utility_sequence += 1
        key = signing_key("utility")
        signer = operator_id(key.public_key)
        return self.transaction(contract, function, signer, 0, self.utility_sequence, argument, [key])

    def enrol(self, party: "Party") -> Transaction:
        return self.utility("enrol", EnrolArgument(party.hid, party.enrolment.public_key, party.kem.public_key))

    def revoke(self, party: "Party") -> Transaction:
        return self.utility("revoke", RevokeArgument(party.hid))

    def open_period(self, number: int = 1) -> Transaction:
        issued = self.mdms.issue(number)
        return self.mdms.sign_period(number, issued)

    def acknowledge(self, session: int, sequence: int, height: int) -> Transaction:
        key = self.mdms.keys[session]
        argument = AcknowledgeArgument(height, sha256(height.to_bytes(8, "big")).digest())
        return self.transaction("mdms", "acknowledge", self.mdms.hid, session, sequence, argument, [key])


class Party:
    """A meter, or the MDMS: who has enrolment keys and opens sessions."""

    def __init__(self, world: World, hid: bytes, enrolment: SecretKey, kem: KemSecretKey) -> None:
        self.world = world
        self.hid = hid
        self.enrolment = enrolment
        self.kem = kem
        self.keys: dict[int, SecretKey] = {}
        """Session keys by number."""

    def request(self, session: int, nonce: bytes = bytes(32), key: SecretKey | None = None) -> ContributionRequest:
        roster = self.world.roster
        digest = contribution_request_digest(roster.chain, roster.epoch, self.hid, session, nonce)
        return ContributionRequest(self.hid, session, nonce, (key or self.enrolment).sign(digest))

    def open_share(self, request: ContributionRequest, answer: ContributionAnswer) -> SecretKey:
        """Return x_j; raises when it does not open."""
        asked, replica = request_hash(request), answer.contribution.replica
        info = share_info(self.world.roster.chain, self.hid, request.session, asked, replica)
        return SecretKey.from_scalar_bytes(open_from(answer.encapsulation, self.kem, info, b"", answer.sealed_share))

    def issue(self, session: int, replicas: Sequence[int] = (0, 2)) -> Issued:
        request = self.request(session)
        shares = []
        for replica in replicas:
            answer = self.world.contribute(replica, request)
            assert isinstance(answer, ContributionAnswer), answer
            shares.append((answer.contribution, self.open_share(request, answer)))
        issued = Issued(signing_key("own", self.hid, session), request, shares)
        self.keys[session] = issued.key
        return issued

    def register_argument(self, session: int, issued: Issued, period: int = 1) -> RegisterArgument:
        period_key = kem_key("period", period).public_key
        return RegisterArgument(
            public_key=issued.key.public_key,
            own_point=issued.own.public_key,
            request_hash=issued.request_hash,
            contributions=issued.contributions,
            kem_key=kem_key("session", self.hid, session).public_key,
            encapsulation=kem_key("encapsulation", self.hid, session).public_key,
            period=period,
            period_key_id=period_key_id(period_key),
        )

    def sign_register(
        self, session: int, argument: RegisterArgument, keys: Sequence[SecretKey] | None = None
    ) -> Transaction:
        signers = [self.enrolment, self.keys[session]] if keys is None else keys
        return self.world.transaction("registration", "register", self.hid, 0, session, argument, signers)

    def register(self, session: int, period: int = 1) -> Transaction:
        return self.sign_register(session, self.register_argument(session, self.issue(session), period))

    def sign_period(self, number: int, issued: Issued) -> Transaction:
        argument = MdmsRegisterArgument(
            issued.key.public_key,
            issued.own.public_key,
            issued.request_hash,
            issued.contributions,
            kem_key("period", number).public_key,
        )
        keys = [self.enrolment, issued.key]
        return self.world.transaction("mdms", "register", self.hid, 0, number, argument, keys)

    def report(self, session: int, sequence: int, readings: int = 1, **changes: Any) -> Transaction:
        plain = encode_report([Reading(1_800 * i, 5_000_000) for i in range(readings)], 1800)
        _, sealed = seal_to(kem_key("period", 1).public_key, b"", b"", plain, bytes(32))
        keys = [self.keys[session]]
        return self.world.transaction("usage", "report", self.hid, session, sequence, sealed, keys, **changes)


def meter(world: World, name: str = "meter") -> Party:
    return Party(world, sha256(name.encode()).digest(), signing_key(name, "enrol"), kem_key(name, "enrol"))


def reporting_meter(world: World, name: str = "meter") -> Party:
    """Return a meter with session 1 open; opens MDMS period 1 where there is none."""
    party = meter(world, name)
    opened = world.submit(world.open_period()) if not world.state else Reason.VALID
    outcomes = [opened, world.submit(world.enrol(party)), world.submit(party.register(1))]
    assert outcomes == [Reason.VALID] * 3
    return party
