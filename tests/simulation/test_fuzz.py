"""Nothing that an authenticated peer can say makes a node raise, halt, or stop working with the honest ones."""

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bcami.codec import encode
from bcami.errors import MalformedError
from bcami.model.batch import Batch, BatchCertificate, Endorsement, endorsement_digest
from bcami.model.chain import BlockBundle
from bcami.model.consensus import Checkpoint, Commit, NewView, Prepare, PrePrepare, ViewChange
from bcami.model.events import Halted
from bcami.model.wire import PEER_CODEC, FetchBatch, FetchBlocks, Status
from bcami.pbft.statements import Statements
from tests.simulation.byzantine import Puppet
from tests.simulation.cluster import Cluster
from tests.simulation.mutations import altered
from tests.simulation.scene import Scene

LIAR = 3
KINDS = (
    PrePrepare,
    Prepare,
    Commit,
    Checkpoint,
    ViewChange,
    NewView,
    Batch,
    Endorsement,
    BatchCertificate,
    Status,
    FetchBatch,
    FetchBlocks,
    BlockBundle,
)


def samples(scene: Scene) -> dict[type, list[Any]]:
    """Return true messages of each kind, the newest of each sender: from a view change and a catch-up."""
    cluster = scene.cluster
    heard: dict[tuple[type, int], Any] = {}
    cluster.drop = lambda sender, receiver, message: heard.update({(type(message), sender): message}) or False
    cluster.crash(0)
    for _ in range(3):
        assert scene.commit(1, scene.reports(2)) == ["valid"] * 2
    cluster.start(0)
    cluster.drop = lambda sender, receiver, message: (
        heard.update({(type(message), sender): message}) or (isinstance(message, Batch) and receiver == 2)
    )
    assert scene.commit(1, scene.reports(2)) == ["valid"] * 2
    cluster.drop = lambda sender, receiver, message: heard.update({(type(message), sender): message}) or False
    scene.settle()
    cluster.drop = lambda sender, receiver, message: False
    found = {kind: [message for (known, _), message in heard.items() if known is kind] for kind in KINDS}
    assert all(found.values()), [kind.__name__ for kind, messages in found.items() if not messages]
    return found


def signed_by_liar(cluster: Cluster, message: Any, liar: int = LIAR) -> Any | None:
    """Return the message in the liar's own name and with its true signature, None when it carries none."""
    key = cluster.identities.consensus[liar]
    replace = msgspec.structs.replace
    if isinstance(message, Endorsement):
        mine = replace(message, replica=liar)
        digest = endorsement_digest(
            cluster.chain,
            mine.epoch,
            mine.collector,
            mine.number,
            mine.batch_digest,
            mine.count,
            liar,
            mine.refusals,
        )
        return replace(mine, signature=key.sign(digest))
    if isinstance(message, PrePrepare | Prepare | Commit | Checkpoint | ViewChange | NewView):
        mine = replace(message, replica=liar)
        return replace(mine, signature=key.sign(Statements(cluster.roster, liar, key).digest_of(mine)))
    if isinstance(message, Status):
        return replace(message, replica=liar)
    return replace(message, collector=liar) if isinstance(message, Batch) else None


def on_the_wire(message: Any) -> Any | None:
    """Return the message as a peer receives it, None when it is malformed and never gets there."""
    try:
        return PEER_CODEC.decode(encode(message))
    except (MalformedError, TypeError, OverflowError, ValueError, AttributeError):
        return None


def say(cluster: Cluster, message: Any) -> int:
    """Let node 0 hear a message and its properly signed twin; returns how many of them were well formed."""
    twins = [on_the_wire(message)]
    if twins[0] is not None:
        twins.append(signed_by_liar(cluster, twins[0]))
    heard = [item for item in twins if item is not None]
    for item in heard:
        cluster.shells[0].receive(LIAR, item)
    return len(heard)


def goes_on(scene: Scene) -> None:
    scene.settle([0, 1, 2], 120_000)
    assert scene.commit(0, scene.reports(2)) == ["valid"] * 2
    assert scene.commit(1, scene.reports(1)) == ["valid"]
    scene.settle([0, 1, 2])
    assert not [seen for _, seen in scene.cluster.observations if isinstance(seen, Halted)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_field_of_each_message_altered_in_each_way(kind: type) -> None:
    scene = Scene()
    found = samples(scene)
    Puppet(scene.cluster, LIAR)
    heard = 0
    for message in found[kind][:2]:
        heard += say(scene.cluster, message)
        for _, bad in altered(message):
            heard += say(scene.cluster, bad)
            if heard % 40 == 0:
                scene.cluster.run(5)
    assert heard > 5
    goes_on(scene)


@pytest.mark.parametrize("liar", [0, 3], ids=["primary", "backup"])
@pytest.mark.parametrize("seed", range(8))
def test_a_node_whose_words_are_altered_in_the_middle_of_things(seed: int, liar: int) -> None:
    """A working node takes part, and much of what it says is altered, most of it with a true signature."""
    scene = Scene(seed=seed)
    cluster = scene.cluster
    random = cluster.random

    def lie(to: int, message: Any) -> list[Any]:
        if random.random() < 0.6:
            return [message]
        _, bad = random.choice(list(altered(message)))
        bad = on_the_wire(bad)
        if bad is not None and random.random() < 0.8:
            bad = signed_by_liar(cluster, bad, liar) or bad
        return [item for item in ((bad, message) if random.random() < 0.5 else (bad,)) if item is not None]

    cluster.lies[liar] = lie
    honest = [i for i in range(4) if i != liar]
    for turn in range(8):
        assert scene.commit(honest[turn % 3], scene.reports(2)) == ["valid"] * 2
        cluster.submit(liar, scene.reports(1))
        if turn == 3:
            cluster.crash(honest[0])
            cluster.run(3_000)
            cluster.start(honest[0])
        cluster.check_agreement(honest)
    scene.settle(honest, 200_000)
    scene.all_certified(honest)
    assert not [seen for i, seen in cluster.observations if i in honest and isinstance(seen, Halted)]


SCENE: list[tuple[Scene, dict[type, list[Any]]]] = []


@settings(max_examples=120, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_messages_altered_in_several_places_and_mixed_with_true_ones(data: st.DataObject) -> None:
    """One cluster goes through all examples: what one leaves behind, the next one finds."""
    if not SCENE:
        scene = Scene()
        SCENE.append((scene, samples(scene)))
        Puppet(scene.cluster, LIAR)
    scene, found = SCENE[0]
    kind = data.draw(st.sampled_from(KINDS))
    message = data.draw(st.sampled_from(found[kind]))
    for _ in range(data.draw(st.integers(1, 4))):
        options = list(altered(message))
        _, message = options[data.draw(st.integers(0, len(options) - 1))]
        if (message := on_the_wire(message)) is None:
            return
    say(scene.cluster, message)
    scene.cluster.run(data.draw(st.integers(0, 700)))
    scene.cluster.check_agreement([0, 1, 2])


def test_after_all_that_the_cluster_goes_on() -> None:
    if SCENE:
        goes_on(SCENE.pop()[0])
