"""Protocol 4.1 across a lost ledger: lanes start again from nothing, endorsements do not."""

from bcami.model.batch import Endorsement
from bcami.model.events import Refused
from bcami.model.reasons import Reason
from bcami.node.core import effects as out
from bcami.node.core.dissemination import Dissemination
from tests.unit.endorsement.test_lanes import KEYS, ROSTER, batch

NONE = (0, 0, 0, 0)
COLLECTOR = 0


class Node:
    """The lanes of node 1 over a disk that outlives them."""

    def __init__(self, disk: dict[bytes, bytes], lanes: tuple[int, ...]) -> None:
        self.disk = disk
        self.outbox = out.Outbox()
        self.lanes = Dissemination(ROSTER, 1, KEYS[1], lanes, lambda tx, tx_id, now_ms: None, self.outbox)
        for key, value in sorted(disk.items()):
            self.lanes.restore(key, value, lanes)
        self.take()

    def take(self) -> list[out.Effect]:
        effects = self.outbox.take()
        for effect in effects:
            if isinstance(effect, out.Persist):
                self.disk.update(effect.puts)
                for key in effect.deletes:
                    self.disk.pop(key, None)
        return effects

    def endorses(self, number: int, first: int) -> Endorsement | Reason:
        """Offer a batch of other transactions for each `first`; return the answer."""
        self.lanes.consider(batch(number, collector=COLLECTOR, first=first), 0, 0)
        self.lanes.out_of_patience(10_000)
        self.lanes.work(0)
        for effect in self.take():
            if isinstance(effect, out.Send) and isinstance(effect.message, Endorsement):
                return effect.message
            if isinstance(effect, out.Observe) and isinstance(effect.observation, Refused):
                return effect.observation.reason
        raise AssertionError("neither endorsed nor refused")


def endorsed_and_executed(numbers: int) -> dict[bytes, bytes]:
    node = Node({}, NONE)
    for number in range(1, numbers + 1):
        assert isinstance(node.endorses(number, 0), Endorsement)
    node.lanes.executed((), (numbers, 0, 0, 0))
    node.take()
    assert not any(key.startswith(b"endorsed/") for key in node.disk)
    return node.disk


def test_a_number_that_was_endorsed_is_never_endorsed_for_another_batch():
    """Else a faulty collector sends another batch under an old number, and has evidence against an honest node."""
    disk = endorsed_and_executed(3)
    for _ in range(2):
        node = Node(disk, NONE)
        for number in (1, 2, 3):
            assert node.endorses(number, 50) is Reason.STALE
    assert isinstance(node.endorses(4, 50), Endorsement)


def test_also_when_the_crash_came_before_the_promise_was_dropped():
    node = Node({}, NONE)
    assert isinstance(node.endorses(1, 0), Endorsement)
    restarted = Node(node.disk, (1, 0, 0, 0))
    assert not any(key.startswith(b"endorsed/") for key in restarted.disk)
    assert Node(restarted.disk, NONE).endorses(1, 50) is Reason.STALE
