"""A cluster in memory: the real contracts and the real wire format behind a fake network, with faults on request.

One world state stands for all nodes; each POST that reaches a good node makes a block of its new transactions. What a
single node does wrong is said by its `Faults`.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec

from bcami.client.nodes import NodeClient
from bcami.codec import encode
from bcami.contract.issuance import answer_contribution
from bcami.contract.package import load_package, package_id
from bcami.contract.runtime import Runtime
from bcami.crypto import merkle
from bcami.crypto.hid import hid
from bcami.crypto.hpke import KemSecretKey, setup_receiver
from bcami.crypto.keys import SecretKey, save_secret
from bcami.crypto.roster import Roster
from bcami.model.api import (
    COMMITTED,
    REFUSED,
    SUBMIT_CODEC,
    UNKNOWN,
    CertifiedHeader,
    QueryAnswer,
    RefusalSignature,
    SubmitAnswer,
    SubmitResult,
    TransactionProof,
)
from bcami.model.block import (
    BlockCertificate,
    CheckpointVote,
    Header,
    Outcome,
    Receipt,
    checkpoint_digest,
    header_hash,
    result_leaf,
)
from bcami.model.chain import StateEntry
from bcami.model.genesis import Genesis, Member, Parameters
from bcami.model.reasons import Reason
from bcami.model.registration import (
    ContributionAnswer,
    ContributionRequest,
    MdmsRegisterArgument,
    Session,
    usage_aad,
    usage_info,
)
from bcami.model.report import Reading, decode_report
from bcami.model.transaction import Transaction, transaction_id
from bcami.node.core.refusals import Refusals
from tests.chain import NETWORK_KEY, START_MS, entropy

CHAINCODE = Path(__file__).parents[3] / "chaincode"


@dataclass
class Faults:
    """What one node does wrong; nothing by default."""

    is_down: bool = False
    is_silent: bool = False
    """Takes requests and never answers."""
    drops_answers: int = 0
    """So many submissions are executed and their answers lost."""
    http_status: int = 0
    retry_after_s: int = 0
    refuses: Reason | None = None
    """Refuses every transaction of `refuses_contract`."""
    refuses_contract: str = "usage"
    signs_refusals: str = "as itself"
    """Or "as another", "something else", "not at all"."""
    unknowns: int = 0
    """Says `unknown` so many times, and does nothing."""
    holds_usage: bool = False
    """Says `unknown` to usage transactions, and keeps none."""
    claims: Reason | None = None
    """Claims this outcome for everything, without proof."""
    change_share: Callable[[ContributionAnswer], ContributionAnswer] | None = None
    refuses_contributions: Reason | None = None
    lies_in_reads: bool = False
    period_proof: TransactionProof | None = None


@dataclass
class Served:
    """What one node was asked."""

    requests: Counter[str] = field(default_factory=Counter)
    transactions: list[bytes] = field(default_factory=list)
    """Encoded, in the order of arrival."""
    contributions: list[ContributionRequest] = field(default_factory=list)


class Cluster:
    def __init__(self, nodes: int = 4, parameters: Parameters | None = None, label: str = "cluster") -> None:
        self.keys = [SecretKey.generate(entropy(f"{label}/node/{place}")) for place in range(nodes)]
        self.utility = SecretKey.generate(entropy(f"{label}/utility"))
        self.mdms_enrolment = SecretKey.generate(entropy(f"{label}/mdms"))
        self.mdms_kem = KemSecretKey.generate(entropy(f"{label}/mdms kem"))
        self.genesis = Genesis(
            network="test",
            created_ms=START_MS,
            epoch=0,
            members=tuple(
                Member(f"node{place + 1}", key.public_key, entropy(f"{label}/tls/{place}"))
                for place, key in enumerate(self.keys)
            ),
            utility_key=self.utility.public_key,
            mdms_hid=hid(NETWORK_KEY, "mdms"),
            mdms_enrolment_key=self.mdms_enrolment.public_key,
            mdms_enrolment_kem_key=self.mdms_kem.public_key,
            chaincode_package=package_id(CHAINCODE),
            execution_version=1,
            parameters=parameters or Parameters(session_gap_ms=0),
            faults_allowed=False,
        )
        self.roster = Roster.from_genesis(self.genesis)
        self.runtime = Runtime(load_package(CHAINCODE, None), self.genesis)
        self.state: dict[bytes, StateEntry] = {}
        self.places: dict[bytes, tuple[int, int]] = {}
        self.transactions: dict[bytes, Transaction] = {}
        self.blocks: list[tuple[CertifiedHeader, tuple[Outcome, ...], merkle.Tree]] = []
        self.faults = [Faults() for _ in self.keys]
        self.served = [Served() for _ in self.keys]
        self.urls = [f"http://node{place + 1}" for place in range(nodes)]
        self.transport = httpx.MockTransport(self._handle)
        self.step_ms = 100
        self.session_of_period: dict[int, KemSecretKey] = {}
        self.delay_s = 0.0

    def clients(self, count: int | None = None) -> list[NodeClient]:
        return [NodeClient(url, transport=self.transport) for url in self.urls[:count]]

    def make_home(self, home: Path) -> Path:
        (home / "utility").mkdir(parents=True)
        save_secret(home / "utility" / "signing.key", self.utility, "utility")
        return home

    # The chain.

    def read(self, key: bytes) -> StateEntry | None:
        return self.state.get(key)

    def execute(self, transactions: Sequence[Transaction]) -> None:
        """Append a block of the transactions that are new."""
        height = len(self.blocks) + 1
        time_ms = START_MS + height * self.step_ms
        outcomes: list[Outcome] = []
        for tx in transactions:
            tx_id = transaction_id(tx, self.roster.chain, 0)
            if tx_id in self.places:
                continue
            execution = self.runtime.execute(tx, tx_id, self.read, height, time_ms)
            assert not execution.fault
            for key, value in execution.writes.items():
                if value is None:
                    self.state.pop(key, None)
                else:
                    self.state[key] = StateEntry(value, height)
            self.places[tx_id] = (height, len(outcomes))
            self.transactions[tx_id] = tx
            outcomes.append(Outcome(tx_id, execution.reason))
        if outcomes:
            self._append(tuple(outcomes), time_ms)

    def _append(self, outcomes: tuple[Outcome, ...], time_ms: int) -> None:
        tree = merkle.tree([result_leaf(outcome, index) for index, outcome in enumerate(outcomes)])
        header = Header(
            chain=self.roster.chain,
            epoch=0,
            height=len(self.blocks) + 1,
            previous=entropy("previous"),
            proposal_digest=entropy("proposal"),
            transaction_count=len(outcomes),
            transactions_root=entropy("transactions"),
            results_root=tree.root(),
            state_root=entropy("state"),
            state_bytes=0,
            time_ms=time_ms,
            members_hash=self.roster.members_hash,
        )
        self.blocks.append((CertifiedHeader(header, self.certify(header)), outcomes, tree))

    def certify(self, header: Header) -> BlockCertificate:
        hashed = header_hash(header)
        signed = checkpoint_digest(self.roster.chain, 0, header.height, hashed)
        voters = range(self.roster.quorum.strong)
        votes = tuple(CheckpointVote(replica, self.keys[replica].sign(signed)) for replica in voters)
        return BlockCertificate(0, header.height, hashed, votes)

    def result(self, tx_id: bytes) -> SubmitResult:
        height, index = self.places[tx_id]
        _, outcomes, tree = self.blocks[height - 1]
        return SubmitResult(tx_id, COMMITTED, outcomes[index].reason, height, index, tree.path(index))

    def receipt(self, tx_id: bytes) -> Receipt:
        result = self.result(tx_id)
        certified, outcomes, _ = self.blocks[result.height - 1]
        return Receipt(outcomes[result.index], result.index, result.path, certified.header, certified.certificate)

    def open_period(self, number: int = 1) -> TransactionProof:
        """Register an MDMS period as the MDMS would, with the key issuance left out."""
        from bcami.client import issuance

        party = self.mdms_party()
        draft = issuance.draw(party, number, entropy(f"period {number}"))
        request = issuance.contribution_request(party, draft)
        shares = []
        for replica in range(self.roster.quorum.weak):
            answer = self.contribution(replica, request)
            assert not isinstance(answer, Reason)
            share = issuance.open_share(party, request, answer)
            assert not isinstance(share, Reason)
            shares.append(share)
        prepared = issuance.prepare_mdms(party, draft, shares, START_MS)
        self.session_of_period[number] = KemSecretKey.from_scalar_bytes(prepared.kem_secret)
        self.execute([SUBMIT_CODEC.decode(encode([msgspec.Raw(prepared.transaction)]))[0]])
        assert self.result(prepared.transaction_id).reason is Reason.VALID
        return self.period_proof()

    def mdms_party(self):
        from bcami.client.issuance import Party

        return Party(self.genesis.mdms_hid, self.mdms_enrolment, self.mdms_kem, self.roster)

    def period_proof(self) -> TransactionProof:
        tx_id, tx = [
            (key, tx) for key, tx in self.transactions.items() if tx.function == "register" and tx.contract == "mdms"
        ][-1]
        return TransactionProof(tx, self.receipt(tx_id))

    def contribution(self, replica: int, request: ContributionRequest) -> ContributionAnswer | Reason:
        return answer_contribution(
            request, self.runtime, self.read, self.roster, replica, self.keys[replica], entropy(f"secret {replica}")
        )

    # What the MDMS would see.

    def stored_readings(self, network_key: bytes = NETWORK_KEY) -> dict[bytes, Counter[Reading]]:
        """Return every reading in a valid usage transaction, by HID, decrypted with the MDMS period keys."""
        found: dict[bytes, Counter[Reading]] = {}
        for tx_id, tx in self.transactions.items():
            if tx.contract != "usage" or self.result(tx_id).reason is not Reason.VALID:
                continue
            key = b"registration/sessions/" + tx.signer + tx.session.to_bytes(8, "big")
            session = msgspec.msgpack.decode(self.state[key].value, type=Session)
            register = msgspec.msgpack.decode(self.state[b"mdms/periods/" + session.period.to_bytes(8, "big")].value)
            info = usage_info(self.roster.chain, tx.signer, tx.session, register[3])
            context = setup_receiver(session.encapsulation, self.session_of_period[session.period], info)
            aad = usage_aad(self.roster.chain, tx.signer, tx.session, tx.sequence, tx.timestamp_ms)
            found.setdefault(tx.signer, Counter()).update(decode_report(context.open(tx.sequence, aad, tx.argument))[1])
        return found

    # The gateways.

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        node = int(request.url.host.removeprefix("node")) - 1
        faults, served = self.faults[node], self.served[node]
        path = request.url.path
        served.requests[f"{request.method} {path.split('/')[2]}"] += 1
        if faults.is_down:
            raise httpx.ConnectError("refused", request=request)
        if faults.is_silent:
            await asyncio.Event().wait()
        if faults.http_status:
            headers = {"retry-after": str(faults.retry_after_s)} if faults.retry_after_s else {}
            return httpx.Response(faults.http_status, headers=headers)
        if path == "/v1/transactions":
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            return self._submit(node, request)
        if path.startswith("/v1/transactions/"):
            return self._receipt(bytes.fromhex(path.rsplit("/", 1)[1]))
        if path.startswith("/v1/query/"):
            return self._query(*path.split("/")[3:])
        if path == "/v1/contribute":
            return self._contribute(node, request)
        if path == "/v1/period":
            if faults.period_proof is not None:
                return _msgpack(faults.period_proof)
            if not any((tx.contract, tx.function) == ("mdms", "register") for tx in self.transactions.values()):
                return httpx.Response(404)
            return _msgpack(self.period_proof())
        if path.startswith("/v1/state/"):
            entry = self.state.get(bytes.fromhex(path.rsplit("/", 1)[1]))
            if faults.lies_in_reads:
                entry = StateEntry(encode(2**40), 1)
            value, written = (None, 0) if entry is None else (entry.value, entry.height)
            return _msgpack(QueryAnswer(len(self.blocks), value, written))
        if path == "/v1/genesis":
            return _msgpack(self.genesis)
        return httpx.Response(404)

    def _receipt(self, tx_id: bytes) -> httpx.Response:
        if tx_id not in self.places:
            return httpx.Response(404)
        result = self.result(tx_id)
        return _msgpack(SubmitAnswer((result,), (self.blocks[result.height - 1][0],)))

    def _query(self, contract: str, function: str) -> httpx.Response:
        answer = self.runtime.query(contract, function, b"", self.read)
        return httpx.Response(404) if isinstance(answer, Reason) else _msgpack(QueryAnswer(len(self.blocks), answer, 0))

    def _submit(self, node: int, request: httpx.Request) -> httpx.Response:
        faults, served = self.faults[node], self.served[node]
        transactions = SUBMIT_CODEC.decode(request.content)
        served.transactions += [encode(tx) for tx in transactions]
        ids = [transaction_id(tx, self.roster.chain, 0) for tx in transactions]
        if faults.unknowns:
            faults.unknowns -= 1
            return _msgpack(SubmitAnswer(tuple(SubmitResult(i, UNKNOWN, None, 0, 0, ()) for i in ids), ()))
        if faults.claims is not None:
            height = len(self.blocks)
            results = tuple(SubmitResult(i, COMMITTED, faults.claims, height, 0, ()) for i in ids)
            return _msgpack(SubmitAnswer(results, (self.blocks[-1][0],) if self.blocks else ()))
        refused: dict[bytes, Reason] = {}
        good: list[Transaction] = []
        for tx, tx_id in zip(transactions, ids, strict=True):
            if tx_id in self.places:
                continue
            reason = self.runtime.check(tx, tx_id, self.read, 2**62)
            if faults.refuses is not None and tx.contract == faults.refuses_contract:
                reason = faults.refuses
            if reason is None:
                good.append(tx)
            else:
                refused[tx_id] = reason
        held = {
            transaction_id(tx, self.roster.chain, 0) for tx in good if faults.holds_usage and tx.contract == "usage"
        }
        self.execute([tx for tx in good if transaction_id(tx, self.roster.chain, 0) not in held])
        if faults.drops_answers:
            faults.drops_answers -= 1
            raise httpx.ReadError("connection reset", request=request)
        said = {i: SubmitResult(i, REFUSED, reason, 0, 0, ()) for i, reason in refused.items()}
        said |= {i: SubmitResult(i, UNKNOWN, None, 0, 0, ()) for i in held}
        results = tuple(said.get(i) or self.result(i) for i in ids)
        heights = sorted({result.height for result in results if result.height})
        blocks = tuple(self.blocks[height - 1][0] for height in heights)
        return _msgpack(SubmitAnswer(results, blocks, self._signed(node, results)))

    def _signed(self, node: int, results: tuple[SubmitResult, ...]) -> RefusalSignature | None:
        match self.faults[node].signs_refusals:
            case "as itself":
                return Refusals(self.roster, node, self.keys[node]).sign(results)
            case "as another":
                return Refusals(self.roster, (node + 1) % len(self.keys), self.keys[node]).sign(results)
            case "something else":
                return Refusals(self.roster, node, self.keys[node]).sign(results * 2)
            case _:
                return None

    def _contribute(self, node: int, request: httpx.Request) -> httpx.Response:
        faults, served = self.faults[node], self.served[node]
        asked = msgspec.msgpack.decode(request.content, type=ContributionRequest)
        served.contributions.append(asked)
        answer = faults.refuses_contributions or self.contribution(node, asked)
        if isinstance(answer, Reason):
            return httpx.Response(403, json={"reason": answer.value})
        return _msgpack(faults.change_share(answer) if faults.change_share else answer)


def _msgpack(value: object) -> httpx.Response:
    return httpx.Response(200, content=encode(value), headers={"content-type": "application/msgpack"})


__all__ = ["CHAINCODE", "Cluster", "Faults", "MdmsRegisterArgument", "Served"]
