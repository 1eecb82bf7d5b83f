"""Evidence of equivocation: kept on disk, brought to the chain once, shown with proof."""

import asyncio
from pathlib import Path

import httpx
import msgspec
import pytest

from bcami.codec import encode
from bcami.config import load_network
from bcami.contract.guard import consume, guard_key
from bcami.crypto.evidence import check_evidence, verify_evidence
from bcami.crypto.roster import Roster
from bcami.errors import EnvironmentFault
from bcami.model.api import COMMITTED, REFUSED, UNKNOWN, SubmitResult
from bcami.model.chain import StateEntry
from bcami.model.events import EquivocationSeen
from bcami.model.evidence import (
    EVIDENCE_CODEC,
    KEPT_EVIDENCE_CODEC,
    RECORDS_PER_REPLICA_MAX,
    Evidence,
    KeptEvidence,
    StatementKind,
    count_key,
    record_key,
)
from bcami.model.genesis import operator_id
from bcami.model.reasons import Reason
from bcami.model.transaction import Transaction
from bcami.processes.evidence import SEEN_MAX, EvidenceFolder, EvidenceReporter
from bcami.processes.home import load_genesis
from tests import virtual
from tests.processes.cluster import COMMAND_S, SINGLY, Cluster, wait_until
from tests.unit.contract.world import World, make_genesis, signing_key
from tests.unit.crypto.statements import contradiction

ROSTER = Roster.from_genesis(make_genesis())
ACCUSED = 1


def seen(height: int, kind: StatementKind = StatementKind.PREPARE) -> EquivocationSeen:
    pair = contradiction(ROSTER, signing_key("node", ACCUSED), ACCUSED, kind, height=height)
    return EquivocationSeen(ACCUSED, kind.value, *pair)


def evidence(height: int) -> Evidence:
    item = seen(height)
    found = verify_evidence(item.first, item.second, ROSTER)
    assert isinstance(found, Evidence)
    return found


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, event: str, **fields: object) -> None:
        self.lines.append(event)

    warning = info


class Chain:
    """A chain that answers reports as a test says, and otherwise executes them with the real contract."""

    def __init__(self) -> None:
        self.world = World()
        self.submitted: list[Transaction] = []
        self.asked = asyncio.Event()
        self.answers: list[tuple[str, Reason | None]] = []
        """What to answer to the next reports, instead of executing them."""

    async def submit(self, transactions):
        results = []
        self.asked.set()
        for tx in transactions:
            self.submitted.append(tx)
            status, reason = self.answers.pop(0) if self.answers else (COMMITTED, None)
            if status == COMMITTED and reason is None:
                refused = self.world.check(tx)
                status = COMMITTED if refused is None else REFUSED
                reason = refused or self.world.execute(tx).reason
            results.append(SubmitResult(self.world.id_of(tx), status, reason, 1, 0, ()))
        return results, []

    def holds(self, height: int) -> bool:
        return record_key(ROSTER.chain, evidence(height).place) in self.world.state


class Station:
    """One node's reporter on a chain."""

    def __init__(
        self, folder: Path, chain: Chain, replica: int = 2, turn_s: float = 0.01, *, may_sign: bool = True
    ) -> None:
        self.chain = chain
        self.log = Log()
        self.folder = EvidenceFolder(folder / "evidence", ROSTER)
        self.reporter = EvidenceReporter(
            self.folder,
            ROSTER,
            signing_key("node", replica) if may_sign else None,
            replica,
            chain.world.read,
            chain.submit,
            lambda: chain.world.time_ms,
            self.log,
            turn_s=turn_s,
        )

    async def settled(self, count: int) -> list[KeptEvidence]:
        """Run until so many are settled, and return all that is kept."""
        running = asyncio.create_task(self.reporter.run())
        while sum(item.outcome is not None for item in self.reporter.held) < count:
            await asyncio.sleep(0.001)
            assert not running.done()
        running.cancel()
        return self.reporter.held


@pytest.fixture
def chain() -> Chain:
    return Chain()


class TestReporter:
    def test_keeps_and_reports_once(self, tmp_path, chain):
        async def run() -> None:
            station = Station(tmp_path, chain)
            for _ in range(3):
                station.reporter.observe(seen(9))
            (kept,) = await station.settled(1)
            assert (kept.outcome, kept.evidence) == (Reason.VALID, evidence(9))
            again = Station(tmp_path, chain)
            assert again.reporter.held == [kept]
            again.reporter.observe(seen(9))
            again.reporter.observe(seen(10))
            await again.settled(2)

        virtual.run(run())
        assert len(chain.submitted) == 2
        assert chain.holds(9)
        assert chain.holds(10)

    def test_what_does_not_hold_is_not_kept(self, tmp_path, chain):
        async def run() -> None:
            station = Station(tmp_path, chain)
            good = seen(9)
            station.reporter.observe(EquivocationSeen(ACCUSED, "prepare", good.first, good.first))
            station.reporter.observe(EquivocationSeen(ACCUSED, "prepare", b"junk", good.first))
            station.reporter.observe(seen(10))
            (kept,) = await station.settled(1)
            assert kept.evidence == evidence(10)
            assert station.log.lines.count("contradiction does not hold") == 2

        virtual.run(run())

    def test_nothing_is_sent_when_the_chain_has_it(self, tmp_path, chain):
        async def run() -> None:
            for replica in (2, 3, 0):
                station = Station(tmp_path / f"{replica}", chain, replica)
                station.reporter.observe(seen(9))
                (kept,) = await station.settled(1)
                assert kept.outcome is Reason.VALID

        for replica in (2, 3, 0):
            (tmp_path / f"{replica}").mkdir()
        virtual.run(run())
        assert len(chain.submitted) == 1

    def test_a_node_without_its_vote_log_keeps_it_and_signs_no_report(self, tmp_path, chain):
        async def run() -> None:
            station = Station(tmp_path, chain, may_sign=False)
            station.reporter.observe(seen(9))
            running = asyncio.create_task(station.reporter.run())
            while not station.reporter.held:
                await asyncio.sleep(0.001)
                assert not running.done()
            assert station.reporter._sleep_s() is None, "nothing is ever due"
            running.cancel()

        virtual.run(run())
        assert chain.submitted == []

    def test_asks_again_with_the_same_bytes_until_it_is_recorded(self, tmp_path, chain):
        chain.answers = [(UNKNOWN, None), (REFUSED, Reason.QUEUE_FULL), (REFUSED, Reason.NOT_READY)]

        async def run() -> None:
            station = Station(tmp_path, chain, turn_s=0.001)
            station.reporter.observe(seen(9))
            await station.settled(1)

        virtual.run(run())
        assert len(chain.submitted) == 4
        assert len(set(chain.submitted)) == 1
        assert chain.holds(9)

    def test_a_restarted_node_goes_on_with_the_same_report(self, tmp_path, chain):
        async def run() -> None:
            station = Station(tmp_path, chain, turn_s=100)
            chain.answers = [(UNKNOWN, None)]
            station.reporter.observe(seen(9))
            running = asyncio.create_task(station.reporter.run())
            await chain.asked.wait()
            running.cancel()
            await Station(tmp_path, chain).settled(1)

        virtual.run(run())
        assert len(chain.submitted) == 2
        assert chain.submitted[0] == chain.submitted[1]

    def test_a_used_number_is_replaced(self, tmp_path, chain):
        """The folder was lost, and an earlier report had the number."""
        signer = operator_id(signing_key("node", 2).public_key)
        window = ROSTER.genesis.parameters.replay_window
        chain.answers = [(REFUSED, Reason.REPLAY)]

        async def run() -> None:
            station = Station(tmp_path, chain, turn_s=0.001)
            station.reporter.observe(seen(9))
            chain.world.state[guard_key(signer, 0)] = StateEntry(consume(None, 0, 41, window), 1)
            await station.settled(1)

        virtual.run(run())
        assert [tx.sequence for tx in chain.submitted] == [42, 42]
        assert chain.holds(9)

    @pytest.mark.parametrize("reason", [Reason.OVER_QUOTA, Reason.UNKNOWN_CONTRACT, Reason.NOT_AUTHORIZED])
    def test_a_final_no_is_noted_and_not_tried_again(self, tmp_path, chain, reason):
        chain.answers = [(REFUSED, reason)]

        async def run() -> None:
            station = Station(tmp_path, chain)
            station.reporter.observe(seen(9))
            (kept,) = await station.settled(1)
            assert kept.outcome is reason
            station = Station(tmp_path, chain)
            station.reporter.observe(seen(10))
            await station.settled(2)

        virtual.run(run())
        assert len(chain.submitted) == 2

    def test_everything_is_bounded(self, tmp_path, chain):
        async def run() -> None:
            station = Station(tmp_path, chain)
            for height in range(SEEN_MAX + 50):
                station.reporter.observe(seen(height))
            kept = await station.settled(RECORDS_PER_REPLICA_MAX)
            assert len(kept) == RECORDS_PER_REPLICA_MAX == len(list((tmp_path / "evidence").iterdir()))

        virtual.run(run())
        assert len(chain.submitted) == RECORDS_PER_REPLICA_MAX
        numbers = [tx.sequence for tx in chain.submitted]
        assert sorted(set(numbers)) == numbers

    def test_a_full_account_is_not_asked_again(self, tmp_path, chain):
        count = StateEntry(encode(RECORDS_PER_REPLICA_MAX), 1)
        chain.world.state[count_key(evidence(9).place)] = count

        async def run() -> None:
            station = Station(tmp_path, chain)
            station.reporter.observe(seen(9))
            (kept,) = await station.settled(1)
            assert kept.outcome is Reason.OVER_QUOTA

        virtual.run(run())
        assert not chain.submitted

    def test_a_disk_that_refuses_does_not_stop_the_report(self, tmp_path, chain, monkeypatch):
        async def run() -> None:
            station = Station(tmp_path, chain)

            def put(kept: KeptEvidence) -> None:
                raise EnvironmentFault("no space")

            monkeypatch.setattr(station.folder, "put", put)
            station.reporter.observe(seen(9))
            (kept,) = await station.settled(1)
            assert kept.outcome is Reason.VALID
            assert "evidence not written" in station.log.lines

        virtual.run(run())


class TestFolder:
    def test_damaged_and_false_files_are_named_and_left(self, tmp_path):
        folder = EvidenceFolder(tmp_path / "evidence", ROSTER)
        good = KeptEvidence(evidence(9), 5, None, None)
        folder.put(good)
        (path,) = (tmp_path / "evidence").iterdir()
        data = path.read_bytes()
        false = msgspec.structs.replace(evidence(10).first, signature=bytes(64))
        forged = KeptEvidence(Evidence(evidence(10).place, false, evidence(10).second), 5, None, None)
        (tmp_path / "evidence" / "a.evidence").write_bytes(data)
        (tmp_path / "evidence" / "b.evidence").write_bytes(data[:-3])
        (tmp_path / "evidence" / "c.evidence").write_bytes(encode(forged))
        (tmp_path / "evidence" / "d.evidence").write_bytes(b"")
        again = EvidenceFolder(tmp_path / "evidence", ROSTER)
        assert list(again.kept.values()) == [good]
        assert again.unreadable == ["a.evidence", "b.evidence", "c.evidence", "d.evidence"]
        assert KEPT_EVIDENCE_CODEC.decode(data) == good

    def test_files_are_private(self, tmp_path):
        EvidenceFolder(tmp_path / "evidence", ROSTER).put(KeptEvidence(evidence(9), 5, None, None))
        (path,) = (tmp_path / "evidence").iterdir()
        assert path.stat().st_mode & 0o077 == 0
        assert path.parent.stat().st_mode & 0o077 == 0

    def test_a_folder_that_cannot_be_used(self, tmp_path):
        (tmp_path / "evidence").write_text("not a folder")
        with pytest.raises(EnvironmentFault):
            EvidenceFolder(tmp_path / "evidence", ROSTER)


def test_a_live_liar_is_convicted_on_the_chain(tmp_path):
    """A backup signs two votes for each height. Everybody can check it; a restart neither loses nor repeats it."""
    cluster = Cluster(tmp_path / "home")
    cluster.init("--allow-faults")
    try:
        cluster.run("up", "--detach")
        assert "no evidence against anybody" in cluster.run("show", "evidence")
        liar = next(name for name in cluster.status() if name != cluster.primary())
        cluster.run("fault", "inject", liar, "equivocating_voter", "--for", "90")
        cluster.json("replay", "sample", *SINGLY, "--meters", "3")
        cluster.run("fault", "stop")

        def told():
            return cluster.json("show", "evidence")

        headers = {"authorization": f"Bearer {cluster.home.operator_token.read_text().strip()}"}
        urls = [f"{node.url}/v1/operator/evidence" for node in load_network(cluster.home).nodes]

        def is_settled() -> bool:
            """Every witness keeps something, and knows what became of all of it."""
            answers = [httpx.get(url, headers=headers, trust_env=False, timeout=COMMAND_S).json() for url in urls]
            kept = [item for answer in answers for item in answer["evidence"]]
            return bool(kept) and all(item["outcome"] for item in kept)

        wait_until(is_settled, "what nodes keep is on the chain", within_s=300)
        recorded = told()["recorded"]
        assert len(recorded) <= RECORDS_PER_REPLICA_MAX
        assert {item["accused"] for item in recorded} == {liar}
        assert len({(item["kind"], item["view"], item["height"]) for item in recorded}) == len(recorded)
        roster = Roster.from_genesis(load_genesis(cluster.home))
        for item in recorded:
            shown = EVIDENCE_CODEC.decode(bytes.fromhex(item["evidence"]))
            assert check_evidence(shown, roster.chain, roster.epoch, roster.keys) is None
        assert f"{liar} signed two contradicting" in cluster.run("show", "evidence")

        witness = next(name for name in cluster.status() if name != liar)
        files = {path.name for path in cluster.home.node(witness).evidence.iterdir()}
        assert files
        cluster.run("down")
        cluster.run("up", "--detach")
        cluster.wait_level()
        assert {path.name for path in cluster.home.node(witness).evidence.iterdir()} == files
        assert told()["recorded"] == recorded
        cluster.run("verify")
    finally:
        cluster.stop()
