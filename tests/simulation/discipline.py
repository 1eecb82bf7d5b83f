"""No core ever says two different things where it may say one: across restarts, losses and power failures."""

from bcami.codec import encode
from bcami.endorsement.pool import hold
from bcami.model.batch import Batch, Endorsement
from bcami.model.consensus import Checkpoint, Commit, NewView, Prepare, PrePrepare, ViewChange


class Discipline:
    """What each node has said in its own name, by what may be said once only (protocol 4.1, 5.2)."""

    def __init__(self, chain: bytes) -> None:
        self._chain = chain
        self._said: dict[tuple, bytes] = {}

    def heard(self, sender: int, message: object) -> None:
        """Take note of a message of a correct node; an assertion fails when it contradicts an earlier one."""
        match message:
            case PrePrepare() | Prepare() | Commit() if message.replica == sender:
                self._hold(sender, message, (message.view, message.height), message.digest)
            case Checkpoint() if message.replica == sender:
                self._hold(sender, message, (message.height,), message.header_hash)
            case ViewChange() | NewView() if message.replica == sender:
                self._hold(sender, message, (message.view,), encode(message))
            case Batch() if message.collector == sender:
                self._hold(sender, message, (message.number,), hold(message, self._chain).digest)
            case Endorsement() if message.replica == sender:
                self._hold(sender, message, (message.collector, message.number), encode(message))

    def _hold(self, sender: int, message: object, place: tuple, said: bytes) -> None:
        key = (sender, type(message).__name__, *place)
        assert self._said.setdefault(key, said) == said, f"node {sender} contradicts itself: {key[1:]}"
