"""What a node checks of its newest blocks before it starts, beyond what the quick audit does with every record.

The quick audit finds a record that does not fit its checksum, and a header that does not fit the next one. Who changes
a record and its checksum passes it. So the newest blocks are checked against the certificates that a strong quorum
signed: they are what peers, meters and the MDMS ask for first. The certificate of the newest one stands for all headers
below it, by the hash chain. Bodies of older blocks are left to `bcami verify`, which takes as long as the chain is.
"""

from typing import Final

from bcami.crypto.roster import Roster
from bcami.crypto.verification import verify_bundle
from bcami.errors import EnvironmentFault
from bcami.ledger.store import Ledger
from bcami.model.block import header_hash

BLOCKS_MAX: Final = 32
TRANSACTIONS_MAX: Final = 5_000
"""About 0.1 s of work; at least one block is checked."""


def check_newest(ledger: Ledger, roster: Roster, name: str) -> int:
    """Check the newest certified blocks of a ledger that was just opened, and return how many there were.

    `name` is the node's. Raises EnvironmentFault when one is not what a strong quorum signed.
    """
    checked = transactions = 0
    height = ledger.certified_height
    while height > 0 and checked < BLOCKS_MAX and (transactions < TRANSACTIONS_MAX or not checked):
        bundle = ledger.bundle(height)
        below = ledger.header(height - 1)
        if bundle is None or (below is None and height > 1):
            break  # below a snapshot
        refused = verify_bundle(bundle, roster, roster.chain if below is None else header_hash(below))
        if refused is not None:
            raise EnvironmentFault(
                f"the ledger of {name} is damaged: block {height} is not what a strong quorum signed ({refused})",
                likely="somebody changed the store, checksums and all",
                do=f"bcami verify --node {name}, then bcami rebuild {name}",
            )
        checked += 1
        transactions += bundle.block.header.transaction_count
        height -= 1
    return checked
