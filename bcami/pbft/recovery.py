"""What a peer lacks, judged by its status (protocol 6.1).

Votes are never acknowledged. A replica says where it stands, and others send again what gets it further: so a lost
message, the last one of an idle chain included, always heals.
"""

from bcami.model.consensus import ConsensusMessage
from bcami.model.wire import Status
from bcami.pbft.checkpoints import Checkpoints
from bcami.pbft.effects import NeedBlocks, Outbox
from bcami.pbft.ordering import Ordering
from bcami.pbft.records import votes_in
from bcami.pbft.timers import CATCH_UP, Timers
from bcami.pbft.views import ViewState


class Recovery:
    """Answers statuses; votes go only to a peer that stood still since its last status."""

    def __init__(self, views: ViewState, checkpoints: Checkpoints, ordering: Ordering) -> None:
        self._views = views
        self._checkpoints = checkpoints
        self._ordering = ordering
        self._seen: dict[int, int] = {}
        """Certified height in the last status of each peer."""

    def answer(self, status: Status) -> list[ConsensusMessage]:
        """Return what the sender of the status lacks: view messages first, then checkpoints, then votes."""
        stands_still = self._seen.get(status.replica, status.certified) == status.certified
        self._seen[status.replica] = status.certified
        answer = self._view_messages(status)
        if stands_still:
            if status.certified < self._checkpoints.low:
                answer += votes_in(self._checkpoints.stable)
            for height, votes in sorted(self._checkpoints.collected.items()):
                if height > status.certified:
                    answer += [vote for _, vote in sorted(votes.items())]
            answer += self._ordering.held(max(status.certified, status.executed))
        return [message for message in answer if message.replica != status.replica]

    def _view_messages(self, status: Status) -> list[ConsensusMessage]:
        views = self._views
        lacks_view = status.view < views.active or (status.view == views.active and status.in_view_change)
        found: list[ConsensusMessage] = []
        if lacks_view and views.new_view is not None:
            found.append(views.new_view)
        if views.is_changing and views.own_change is not None and status.view <= views.target:
            found.append(views.own_change)
        return found


class CatchUp:
    """Asks for blocks where votes cannot help: at once when others are out of reach, else after a while."""

    def __init__(self, timers: Timers, out: Outbox, patience_ms: int) -> None:
        self._timers = timers
        self._out = out
        self._patience_ms = patience_ms
        self._urgent = 0
        """Height whose proposals will not be voted on again."""
        self._asked = 0
        self._is_late = False

    def need(self, height: int) -> None:
        """Say that the proposals up to `height` will not be voted on again."""
        self._urgent = max(self._urgent, height)

    def ask_again(self) -> None:
        """Say that neither votes nor an answer came in time."""
        self._is_late = True

    def check(self, checkpoints: Checkpoints, decided: int) -> None:
        """Ask for blocks when others are certified above what is decided here and waiting is of no use."""
        certified = checkpoints.certified
        self.need(checkpoints.far_target())
        if certified > checkpoints.high:
            self.need(certified)
        target = max(self._urgent, certified)
        if target <= decided:
            self._asked = 0
        elif self._is_late or self._urgent > max(decided, self._asked):
            self._asked = target
            self._out.add(NeedBlocks(target))
        self._is_late = False
        self._timers.keep(CATCH_UP, target > decided, self._patience_ms)
