"""Composition of the MDMS's symmetric keys: store, rules, head-end and service."""

import os
from collections.abc import Callable, Sequence
from typing import Any, Final

from bcami.client.nodes import NodeClient
from bcami.crypto.roster import Roster
from bcami.crypto.signatures import Signer
from bcami.kms import DEGREE_DEFAULT, HardenedProfile, KeyServer, Scope
from bcami.mdms.head_end import HeadEnd
from bcami.mdms.kms_metrics import KmsMetrics
from bcami.mdms.kms_service import KmsService
from bcami.mdms.kms_store import KmsStore, load_store_key
from bcami.mdms.metrics import MdmsMetrics
from bcami.mdms.periods import Settle, Surroundings
from bcami.mdms.store import MdmsStore
from bcami.paths import HomePaths

STORE_NAME: Final = "kms"
KEY_NAME: Final = "kms.key"


def open_store(home: HomePaths, roster: Roster) -> KmsStore:
    """Open HOME/mdms/kms under its key. Raises InputError or EnvironmentFault when it cannot be used."""
    return KmsStore(home.mdms / STORE_NAME, load_store_key(home.mdms / KEY_NAME), roster.chain)


def make_service(
    kms_store: KmsStore,
    meters: MdmsStore,
    nodes: Sequence[NodeClient],
    settle: Settle,
    roster: Roster,
    enrolment: Signer,
    now_ms: Callable[[], int],
    metrics: MdmsMetrics,
    log: Any,
) -> KmsService:
    """Return the service with what the store holds taken up; changes of members wait for the next tick."""
    scope = Scope(roster.chain, roster.epoch, roster.genesis.mdms_hid)
    server = KeyServer(scope, HardenedProfile(scope), degree=DEGREE_DEFAULT, changes_wait=True)
    server.restore(kms_store.rows)
    return KmsService(
        server,
        kms_store,
        meters,
        HeadEnd(os.urandom(8).hex()),
        nodes,
        settle,
        roster,
        enrolment,
        Surroundings(now_ms, lambda: os.urandom(32)),
        KmsMetrics(metrics.registry),
        log,
    )
