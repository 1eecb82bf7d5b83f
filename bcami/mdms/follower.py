"""Takes released blocks from whoever offers them: verifies all, stores what they say, moves the cursor.

Nothing an offer says is believed. A block must be certified by a strong quorum of the genesis members and follow the
block at the cursor; otherwise the offer is refused at that point, with the reason, and what was good before it is kept.
"""

from collections.abc import Sequence
from typing import NamedTuple

from bcami.crypto.roster import Roster
from bcami.crypto.verification import verify_bundle
from bcami.mdms.intake import BlockUnusableError, Intake
from bcami.mdms.opening import ReportOpener
from bcami.mdms.records import Stored, UnreadableReport
from bcami.mdms.store import MdmsStore
from bcami.model.chain import BlockBundle
from bcami.model.reasons import Reason


class OfferRefused(NamedTuple):
    """Why blocks of an offer were not taken."""

    height: int
    reason: Reason
    what: str
    pruned: bool = False
    """The block is certified, but its usage payloads are gone at this node."""


class Followed(NamedTuple):
    """What an offer of blocks brought."""

    blocks: int
    stored: Stored
    unreadable: Sequence[UnreadableReport]
    refused: OfferRefused | None


class Follower:
    """Moves one store along the chain. Not locked: one thread at a time calls `follow`."""

    def __init__(self, roster: Roster, store: MdmsStore, opener: ReportOpener) -> None:
        self._roster = roster
        self._store = store
        self._opener = opener

    def follow(self, bundles: Sequence[BlockBundle], *, accept_pruned: int = 0) -> Followed:
        """Store the blocks that follow the cursor, in one unit of work; blocks at or below it are passed over.

        `accept_pruned` is the height whose usage payloads may be missing, 0 for none.
        """
        intake = Intake(self._roster, self._store, self._opener)
        refused: OfferRefused | None = None
        for bundle in bundles:
            if bundle.block.header.height <= intake.cursor.height:
                continue
            refused = self._take(intake, bundle, accept_pruned)
            if refused is not None:
                break
        unit = intake.finish()
        if not unit.blocks:
            return Followed(0, Stored(0, 0, 0), (), refused)
        stored = self._store.absorb(unit)
        return Followed(unit.blocks, stored, unit.unreadable, refused)

    def _take(self, intake: Intake, bundle: BlockBundle, accept_pruned: int) -> OfferRefused | None:
        height = bundle.block.header.height
        if height != intake.cursor.height + 1:
            return OfferRefused(height, Reason.BEHIND, f"expected height {intake.cursor.height + 1}")
        reason = verify_bundle(bundle, self._roster, intake.cursor.header_hash)
        if reason is Reason.BAD_PROOF and bundle.block.header.previous != intake.cursor.header_hash:
            # Checked after the certificate, which therefore holds.
            return OfferRefused(height, reason, "certified on another parent: more than f nodes are faulty")
        if reason is not None:
            return OfferRefused(height, reason, "the block does not verify")
        try:
            intake.take(bundle, accept_pruned=height == accept_pruned)
        except BlockUnusableError as error:
            return OfferRefused(height, Reason.BAD_ARGUMENT, str(error), pruned=error.pruned)
        return None
