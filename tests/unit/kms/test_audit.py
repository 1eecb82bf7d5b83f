"""The audit log: whole, cut, changed, replaced, and gone on with after a restore, each as seen from an anchor."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from bcami.kms.audit import AUDIT_ENTRY, RESUMED, AuditEntry, AuditLog, check_log, gaps
from bcami.kms.records import Step


def add(log: AuditLog, entries: list[AuditEntry], count: int, word: str = "send") -> None:
    for _ in range(count):
        step = Step()
        log.append(step, 1, word, f"{len(entries) + 1}")
        collect(step, entries)


def collect(step: Step, entries: list[AuditEntry]) -> None:
    entries += [AUDIT_ENTRY.decode(write.value) for write in step.writes if write.value is not None]


@pytest.fixture
def whole() -> tuple[list[AuditEntry], bytes]:
    """Five entries, and the head after three."""
    log, entries = AuditLog(), list[AuditEntry]()
    add(log, entries, 3)
    head = log.head
    add(log, entries, 2)
    return entries, head


Change = Callable[[list[AuditEntry]], list[AuditEntry]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda e: e, None),
        (lambda e: e[:3], None),
        (lambda e: e[:2], "the log ends at 2, and 3 entries were anchored"),
        (lambda e: [], "the log ends at 0, and 3 entries were anchored"),
        (lambda e: e[1:], "entry 1 does not follow"),
        (lambda e: [*e[:1], *e[2:]], "entry 2 does not follow"),
        (lambda e: [e[1], e[0], *e[2:]], "entry 1 does not follow"),
        (lambda e: [*e[:3], replace(e[3], subject="other"), e[4]], "entry 5 does not follow"),
        (lambda e: [*e[:2], replace(e[2], subject="other")], "not those that were anchored"),
        (lambda e: [*e, e[4]], "entry 6 does not follow"),
    ],
)
def test_what_is_wrong_with_a_log(whole: tuple[list[AuditEntry], bytes], change: Change, says: str | None) -> None:
    entries, head = whole
    found = check_log(change(entries), head, 3)
    assert found == says or (says is not None and found is not None and says in found)


def test_without_an_anchor_only_the_chain_of_hashes_counts(whole: tuple[list[AuditEntry], bytes]) -> None:
    entries, _ = whole
    assert check_log(entries) is None
    assert check_log([], bytes(32), 0) is None


@pytest.mark.parametrize("added", [0, 1, 4])
def test_a_log_that_was_set_back_goes_on_with_a_gap_that_stays(
    whole: tuple[list[AuditEntry], bytes], added: int
) -> None:
    """Two entries are left of three that were anchored; some were added before anybody noticed."""
    entries, head = whole
    log = AuditLog()
    left: list[AuditEntry] = []
    add(log, left, 2)
    assert left == entries[:2]
    add(log, left, added, "other")
    assert check_log(left, head, 3) is not None
    step = Step()
    log.resume(step, 2, 3, head)
    collect(step, left)
    assert check_log(left, head, 3) is None
    add(log, left, 2)
    assert check_log(left, log.head, log.length) is None
    assert [entry.sequence for entry in gaps(left)] == [max(3, 2 + added) + 1]
    forged = [replace(entry, detail="0" * 64) if entry.action == RESUMED else entry for entry in left]
    assert check_log(forged, log.head, log.length) is not None, "it binds what was left"
    assert check_log([*left[:1], *left[2:]], log.head, log.length) is not None
