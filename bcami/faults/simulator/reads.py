"""I14: what is read during a run holds. Somebody reads all the time; every answer is kept and judged against the chain.

One node's answer    is what the final chain says of the height on its label: a value, a contract's answer, or a header.
An outcome           is certified, proved under the block's results, and the first one for ever (I15 does the rest).
Weak equal answers   each at least as high as was asked for, stood in the chain at such a height (protocol 5.6), also
                     when the liars agree: they all give what is gone, under the label of a later height.

Answers above the end of the chain wait for the end of the next phase. Only honest nodes are held to what they say;
those that lost their votes serve reads like others (protocol 6.3).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Final, TypeVar

from bcami.client.reads import Agreed, Tally
from bcami.contract.guard import guard_key
from bcami.crypto import merkle
from bcami.faults.simulator.agreement import Violation
from bcami.faults.simulator.events import Events
from bcami.faults.simulator.load import Clients
from bcami.faults.simulator.node import Machine
from bcami.faults.simulator.oracles import Oracles
from bcami.faults.simulator.replay import Auditor
from bcami.model.api import CertifiedHeader, QueryAnswer, SubmitResult
from bcami.model.block import Header, Outcome, header_hash, result_leaf
from bcami.model.chain import StateEntry
from bcami.model.reasons import Reason
from bcami.node.core import reads
from bcami.node.core.core import NodeCore
from bcami.node.core.execution import lane_key

EVERY_MS: Final = (100, 700)
"""Between two reads."""
FAR_HEIGHT: Final = 2**40
"""What liars write on their labels."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Question:
    """What somebody wants to know of the state: a key, or the answer of a contract's query."""

    key: bytes
    query: tuple[str, str] | None = None
    """Contract and function; the key is its argument then."""

    def ask(self, node: NodeCore) -> QueryAnswer:
        if self.query is None:
            return reads.state(node, self.key)
        answer = reads.query(node, *self.query, self.key)
        return QueryAnswer(reads.height(node), None, 0) if isinstance(answer, Reason) else answer


@dataclass(frozen=True, slots=True)
class _Told:
    """One node's answer about the state."""

    node: int
    question: Question
    answer: QueryAnswer


@dataclass(frozen=True, slots=True)
class _Agreed:
    """What weak nodes said of a key, when everything below a height did not count."""

    key: bytes
    at_least: int
    value: Agreed


class Reads:
    """Reads, and keeps what was said."""

    def __init__(
        self, machines: Sequence[Machine], oracles: Oracles, clients: Clients, events: Events, draw: Random
    ) -> None:
        self._machines = machines
        self._oracles = oracles
        self._clients = clients
        self._events = events
        self._draw = draw
        hids = [meter.hid for meter in clients.meters]
        self._questions = (
            *(Question(lane_key(collector)) for collector in range(len(machines))),
            *(Question(guard_key(hid, session)) for hid in hids for session in (0, 1)),
            *(Question(hid, ("registration", "meter")) for hid in hids),
            Question(b"", ("mdms", "period")),
        )
        self._told: list[_Told] = []
        self._agreed: list[_Agreed] = []
        self._headers: list[tuple[int, Header]] = []
        self._oldest: dict[Question, QueryAnswer] = {}
        """The first answer to each question that anybody got: what liars go on to say."""
        self.judged = 0
        """Answers that were compared with the chain."""

    def begin(self) -> None:
        self._events.after(self._draw.randint(*EVERY_MS), self._read)

    def _read(self) -> None:
        draw = self._draw
        self._events.after(draw.randint(*EVERY_MS), self._read)
        honest = [machine for machine in self._machines if self._is_honest(machine)]
        if not honest:
            return
        question = draw.choice(self._questions)
        if draw.random() < 0.25:
            self._read_weak(question, honest)
            return
        machine = draw.choice(honest)
        self._ask(machine, question)
        self._read_outcome(machine)
        self._read_header(machine)

    def _is_honest(self, machine: Machine) -> bool:
        life = machine.life
        return life is not None and not life.is_paused and machine.index not in self._oracles.excused

    # One node.

    def _ask(self, machine: Machine, question: Question) -> QueryAnswer:
        assert machine.core is not None
        answer = question.ask(machine.core)
        self._oldest.setdefault(question, answer)
        self._told.append(_Told(machine.index, question, answer))
        return answer

    def _read_outcome(self, machine: Machine) -> None:
        """Ask for the outcome of a transaction that somebody sent, here or elsewhere."""
        if not self._clients.requests or machine.core is None:
            return
        known = machine.core.known_result(self._draw.choice(list(self._clients.requests)))
        if known is None:
            return
        result, block = known
        self._check_path(machine.index, result, block)
        self._oracles.answered(machine.index, (result,), (block,))

    def _check_path(self, node: int, result: SubmitResult, block: CertifiedHeader) -> None:
        assert result.reason is not None
        leaf = result_leaf(Outcome(result.transaction_id, result.reason), result.index)
        root = merkle.root_from_path(leaf, result.index, block.header.transaction_count, result.path)
        if root != block.header.results_root:
            raise Violation("I14", f"node {node} answers an outcome of block {result.height} that its proof is not of")

    def _read_header(self, machine: Machine) -> None:
        ledger = machine.disk.ledger
        if not ledger.certified_height:
            return
        height = self._draw.randint(1, ledger.certified_height)
        header, certificate = ledger.header(height), ledger.certificate(height)
        if header is None or certificate is None:
            return
        self._oracles.check_certificate(certificate, f"node {machine.index}, asked for header {height}")
        if header_hash(header) != certificate.header_hash:
            raise Violation("I14", f"node {machine.index} shows header {height} with the certificate of another one")
        self._headers.append((machine.index, header))

    # Many nodes.

    def _read_weak(self, question: Question, honest: Sequence[Machine]) -> None:
        """Ask everybody, liars included, until weak nodes agree (protocol 5.6)."""
        heights = [item.result.height for item in self._clients.requests.values() if item.result is not None]
        at_least = self._draw.choice(heights) if heights and self._draw.random() < 0.7 else 0
        answers = [(machine.index, self._ask(machine, question)) for machine in honest]
        lowest = min((answer for _, answer in answers), key=lambda answer: answer.height)
        old = self._draw.choice((lowest, self._oldest[question]))
        lie = QueryAnswer(FAR_HEIGHT, old.value, old.written)
        answers += [(node, lie) for node in sorted(self._oracles.excused)]
        self._draw.shuffle(answers)
        tally = Tally(self._oracles.roster.quorum.weak, at_least)
        for node, answer in answers:
            agreed = tally.add(node, answer)
            if agreed is not None:
                if question.query is None:
                    self._agreed.append(_Agreed(question.key, at_least, agreed))
                return

    # The end of a phase.

    def check(self, auditor: Auditor) -> None:
        """Judge what was said about heights that the chain has reached. Raises Violation."""
        height = auditor.ledger.height
        self._told = self._judge(self._told, lambda item: item.answer.height, height, auditor, self._check_told)
        self._agreed = self._judge(self._agreed, lambda item: item.value.written, height, auditor, self._check_agreed)
        self._headers = self._judge(self._headers, lambda item: item[1].height, height, auditor, self._check_header)

    def _judge(
        self,
        items: Iterable[Item],
        height_of: Callable[[Item], int],
        height: int,
        auditor: Auditor,
        check: Callable[[Item, Auditor], None],
    ) -> list[Item]:
        """Check what can be; returns what speaks of later heights."""
        later = []
        for item in items:
            if height_of(item) > height:
                later.append(item)
            else:
                check(item, auditor)
                self.judged += 1
        return later

    def _check_told(self, item: _Told, auditor: Auditor) -> None:
        answer, question = item.answer, item.question
        truth = _answer_at(answer.height, question, auditor)
        if answer != truth:
            said = f"{_shown(answer)} at height {answer.height}, where the chain has {_shown(truth)}"
            raise Violation("I14", f"node {item.node} answers {_name(question)} with {said}")

    def _check_agreed(self, item: _Agreed, auditor: Auditor) -> None:
        stood = auditor.history.standing(item.key, item.at_least)
        if item.value not in [Agreed(None, 0) if entry is None else Agreed(*_pair(entry)) for entry in stood]:
            where = f"no height from {item.at_least} on"
            raise Violation("I14", f"weak nodes agree on what stood at {where} under {item.key.hex()[:16]}")

    def _check_header(self, item: tuple[int, Header], auditor: Auditor) -> None:
        node, header = item
        if header != auditor.ledger.header(header.height):
            raise Violation("I14", f"node {node} showed another header at height {header.height}")


def _answer_at(height: int, question: Question, auditor: Auditor) -> QueryAnswer:
    """Return what a node that has executed the chain up to a height must answer."""
    history = auditor.history
    written = 0

    def read(key: bytes) -> StateEntry | None:
        nonlocal written
        entry = history.at(height, key)
        written = max(written, 0 if entry is None else entry.height)
        return entry

    def scan(prefix: bytes, limit: int) -> Iterable[tuple[bytes, StateEntry]]:
        below = ((key, read(key)) for key in sorted(history.keys()) if key.startswith(prefix))
        return list(islice(((key, entry) for key, entry in below if entry is not None), limit))

    if question.query is None:
        entry = read(question.key)
        return QueryAnswer(height, None if entry is None else entry.value, written)
    answer = auditor.runtime.query(*question.query, question.key, read, scan)
    return QueryAnswer(height, None, 0) if isinstance(answer, Reason) else QueryAnswer(height, answer, written)


def _pair(entry: StateEntry) -> tuple[bytes, int]:
    return entry.value, entry.height


def _name(question: Question) -> str:
    return question.key.hex()[:16] if question.query is None else ".".join(question.query)


def _shown(answer: QueryAnswer) -> str:
    value = "nothing" if answer.value is None else f"{answer.value.hex()[:16]}…"
    return f"{value} written at {answer.written}"
