"""Batches that the next height needs and this node lacks: whom to ask, and when to ask the next one.

A certificate names a strong quorum of endorsers, so at least f + 1 honest nodes hold the batch (design D2). They are
asked one after another, so that a missing batch comes once and not n times.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bcami.model.batch import BatchCertificate

FETCH_AGAIN_MS: Final = 200
"""An endorser that has not sent the batch after this long is followed by the next one."""


@dataclass(slots=True)
class _Asked:
    attempts: int
    at_ms: int


class Fetching:
    """Requests for batches on their way."""

    def __init__(self, replica: int) -> None:
        self._replica = replica
        self._asked: dict[bytes, _Asked] = {}

    def due(self, wanted: Mapping[bytes, BatchCertificate], elapsed_ms: int) -> list[tuple[int, BatchCertificate]]:
        """Return (peer, certificate) of each request that is to be sent now; forgets what is wanted no more."""
        self._asked = {digest: asked for digest, asked in self._asked.items() if digest in wanted}
        found = []
        for digest, certificate in wanted.items():
            asked = self._asked.setdefault(digest, _Asked(0, elapsed_ms - FETCH_AGAIN_MS))
            holders = [vote.replica for vote in certificate.votes if vote.replica != self._replica]
            if not holders or elapsed_ms - asked.at_ms < FETCH_AGAIN_MS:
                continue
            start = self._replica + certificate.number
            found.append((holders[(start + asked.attempts) % len(holders)], certificate))
            asked.attempts += 1
            asked.at_ms = elapsed_ms
        return found
