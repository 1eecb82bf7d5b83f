"""Composition of the MDMS's symmetric keys: store, rules, head-end and service."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from bcami.client.nodes import NodeClient
from bcami.config import KmsPolicy, Network
from bcami.crypto.roster import Roster
from bcami.crypto.signatures import Signer
from bcami.kms import KeyServer, Scope, make_profile
from bcami.mdms.head_end import HeadEnd
from bcami.mdms.kms_chain import KmsChain
from bcami.mdms.kms_metrics import KmsMetrics
from bcami.mdms.kms_service import KmsService
from bcami.mdms.kms_store import KMS_KEY_NAME, KMS_STORE_NAME, KmsStore, load_store_key
from bcami.mdms.metrics import MdmsMetrics
from bcami.mdms.periods import Settle, Surroundings
from bcami.mdms.store import MdmsStore
from bcami.paths import HomePaths


def open_store(home: HomePaths, network: Network, roster: Roster) -> KmsStore:
    """Open HOME/mdms/kms under its key. Raises InputError or EnvironmentFault when it cannot be used."""
    store = KmsStore(home.mdms / KMS_STORE_NAME, load_store_key(home.mdms / KMS_KEY_NAME), roster.chain)
    try:
        store.require(f"{network.kms.profile} {network.kms.rekeying} {network.kms.tree_degree}")
    except BaseException:
        store.close()
        raise
    return store


def make_service(
    kms_store: KmsStore,
    meters: MdmsStore,
    nodes: Sequence[NodeClient],
    settle: Settle,
    roster: Roster,
    enrolment: Signer,
    policy: KmsPolicy,
    now_ms: Callable[[], int],
    metrics: MdmsMetrics,
    log: Any,
) -> KmsService:
    """Return the service with what the store holds taken up; changes of members wait for the next tick."""
    scope = Scope(roster.chain, roster.epoch, roster.genesis.mdms_hid)
    profile = make_profile(policy.profile, scope)
    server = KeyServer(scope, profile, degree=policy.tree_degree, changes_wait=True)
    server.restore(kms_store.rows)
    surroundings = Surroundings(now_ms, lambda: os.urandom(32))
    return KmsService(
        server,
        kms_store,
        meters,
        HeadEnd(os.urandom(8).hex()),
        KmsChain(nodes, settle, roster, enrolment, surroundings),
        scope,
        surroundings,
        KmsMetrics(metrics.registry),
        log,
        policy={"profile": policy.profile, "rekeying": policy.rekeying, "degree": policy.tree_degree},
    )
