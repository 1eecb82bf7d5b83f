"""A verdict is computed: with a safeguard taken away, the attack that it stops succeeds."""

from dataclasses import replace as replace_cursor

import pytest
from msgspec.structs import replace

from bcami.cli.main import run
from bcami.client.issuance import Share
from bcami.client.receipts import ReceiptVerifier
from bcami.contract import guard
from bcami.crypto import verification
from bcami.crypto.hpke import OpenError, open_from
from bcami.crypto.keys import SECRET_ACCESS, SecretKey, export_secret
from bcami.faults.simulator.disk import Disk
from bcami.kms import Step
from bcami.kms.messages import DeliveryId
from bcami.kms.meter import MeterKeys
from bcami.ledger.memory import MemoryPromises
from bcami.mdms.follower import Follower
from bcami.mdms.opening import ReportOpener
from bcami.model import transaction
from bcami.model.quorum import Quorum
from bcami.model.reasons import Reason
from bcami.model.registration import Contribution, ContributionAnswer, request_hash, share_info
from bcami.model.report import Reading, encode_report
from bcami.report.security import between, identity, paper, people, replacement
from bcami.report.security.assemble import assembled
from bcami.report.security.attack import Account, Attack, Finding, PaperRun, Verdict, carry_out, worst
from bcami.report.security.catalogue import ATTACKS
from tests.unit.report.test_folder import SETTING

BY_KEY = {attack.key: attack for attack in ATTACKS}


def verdict(key: str) -> Verdict:
    return carry_out(BY_KEY[key], 0).ours.verdict


def always(_key: bytes, _signature: bytes, _digest: bytes) -> bool:
    return True


@pytest.mark.parametrize("key", ["F2.1", "F2.4", "F3.1", "F4.1", "F4.2", "F5.1", "F5.3"])
def test_without_signature_checks_of_transactions(monkeypatch, key):
    monkeypatch.setattr("bcami.contract.runtime.verify", always)
    assert verdict(key) is Verdict.FALLS


def test_with_plain_ecdsa_the_malleated_twin_is_accepted(monkeypatch):
    monkeypatch.setattr("bcami.contract.runtime.verify", paper.is_signed)
    assert verdict("F5.1") is Verdict.FALLS


def test_without_signatures_under_requests_anybody_gets_shares(monkeypatch):
    monkeypatch.setattr("bcami.contract.context.LocalContext.is_request_of", lambda *_: True)
    assert verdict("F2.2") is Verdict.FALLS


def test_without_erasure_the_seized_mdms_opens_old_reports(monkeypatch):
    monkeypatch.setattr(people, "erase_old_periods", lambda *_: [])
    assert verdict("F1.4") is Verdict.FALLS


def test_when_a_meter_keeps_old_sessions_on_its_disk_a_thief_opens_them(monkeypatch):
    real = people.Home.keep

    def keep_all(home, writes):
        real(home, [item._replace(key=item.key + str(len(home.stored)).encode()) for item in writes if item.value])

    monkeypatch.setattr(people.Home, "keep", keep_all)
    assert verdict("F1.2") is Verdict.FALLS


def test_when_shares_are_not_checked_against_their_points(monkeypatch):
    def careless(party, request, answer):
        given = answer.contribution
        info = share_info(party.roster.chain, party.hid, request.session, request_hash(request), given.replica)
        try:
            opened = open_from(answer.encapsulation, party.kem, info, b"", answer.sealed_share)
        except OpenError:
            return Reason.BAD_CONTRIBUTION
        return Share(given, SecretKey.from_scalar_bytes(opened))

    monkeypatch.setattr(replacement, "open_share", careless)
    monkeypatch.setattr(between, "open_share", careless)
    assert verdict("F2.7") is Verdict.FALLS
    assert verdict("F6.1") is Verdict.FALLS


def test_when_a_meter_believes_any_period(monkeypatch):
    monkeypatch.setattr("bcami.client.periods.verify", always)
    monkeypatch.setattr("bcami.client.periods.verify_receipt", lambda *_: None)
    assert verdict("F2.5") is Verdict.FALLS


def test_when_the_mdms_believes_any_block(monkeypatch):
    monkeypatch.setattr("bcami.mdms.follower.verify_bundle", lambda *_: None)
    assert verdict("F3.3") is Verdict.FALLS


def test_when_certificates_are_not_checked_receipts_are_forged(monkeypatch):
    monkeypatch.setattr(verification, "verify_header", lambda *_: None)
    assert verdict("F3.4") is Verdict.FALLS


def test_when_certificates_are_not_checked_anybody_certifies(monkeypatch):
    for place in ("byzantine", "replays"):
        monkeypatch.setattr(f"bcami.report.security.{place}.verify_block_certificate", lambda *_: None)
    assert verdict("F10.1") is Verdict.FALLS
    assert verdict("F10.2") is Verdict.FALLS
    assert verdict("NODE-KEY.1") is Verdict.FALLS


def test_without_the_guard_numbers_are_used_again(monkeypatch):
    real = guard.refusal

    def forgetful(*given):
        reason = real(*given)
        return None if reason is Reason.REPLAY else reason

    monkeypatch.setattr(guard, "refusal", forgetful)
    assert verdict("F8.2") is Verdict.FALLS
    assert verdict("F8.3") is Verdict.FALLS


def test_without_the_chain_in_what_is_signed(monkeypatch):
    real = transaction.digest
    monkeypatch.setattr(transaction, "digest", lambda purpose, _chain, *rest: real(purpose, bytes(32), *rest))
    assert verdict("CROSS.1") is Verdict.FALLS


def test_with_a_plain_hash_for_a_hid_every_customer_is_named(monkeypatch):
    monkeypatch.setattr("bcami.ami.factory.hid", lambda _key, meter: paper.hashed_identity(meter))
    monkeypatch.setattr(identity, "hid", lambda _key, meter: paper.hashed_identity(meter))
    assert verdict("DICTIONARY.1") is Verdict.FALLS


def test_without_authenticated_reports_the_thief_of_pr_writes_readings(monkeypatch):
    false = encode_report([Reading(people.FIRST_START_S, 42)], 1_800)
    real = ReportOpener.open
    monkeypatch.setattr(
        ReportOpener, "open", lambda self, tx, *rest: false if tx.sequence == 5 else real(self, tx, *rest)
    )
    assert verdict("F7.1") is Verdict.FALLS


def test_when_the_audit_checks_nothing_but_checksums(monkeypatch):
    monkeypatch.setattr("bcami.ledger.audit.FullWalk.run", lambda _: None)
    assert verdict("LEDGER.1") is Verdict.FALLS


@pytest.mark.parametrize("key", ["INSIDER.1", "INSIDER.2"])
def test_without_the_mdms_signature_under_broadcasts(monkeypatch, key):
    monkeypatch.setattr("bcami.kms.hardened.verify", always)
    assert verdict(key) is Verdict.FALLS


def test_without_windows_old_commands_are_obeyed_again(monkeypatch):
    monkeypatch.setattr("bcami.kms.hardened.admit", lambda high, seen, counter: (max(high, counter), seen))
    monkeypatch.setattr("bcami.kms.standing.RECENT_MAX", 0)
    real = MeterKeys._deliver

    def forgetful(self, step, delivery, now_ms):
        self._record = replace(self._record, taken=(), taken_floor=DeliveryId(0, 0))
        return real(self, step, delivery, now_ms)

    monkeypatch.setattr(MeterKeys, "_deliver", forgetful)
    assert verdict("DESYNC.2") is Verdict.FALLS


def test_when_numbers_may_have_no_gap_lost_messages_part_both_ends(monkeypatch):
    def strict(high, _seen, counter):
        return (counter, 0) if counter == high + 1 else Reason.REPLAY

    monkeypatch.setattr("bcami.kms.hardened.admit", strict)
    assert verdict("DESYNC.1") is Verdict.FALLS


def test_when_a_node_that_lost_its_votes_signs_again(monkeypatch):
    def forget(disk):
        disk.promises = MemoryPromises()

    monkeypatch.setattr(Disk, "lose_promises", forget)
    assert verdict("F9.8") is Verdict.FALLS


def test_with_quorums_of_two_f_members_fork_the_chain(monkeypatch):
    monkeypatch.setattr(Quorum, "strong", property(lambda self: self.f + 2))
    assert verdict("F10.3") is Verdict.FALLS


def test_with_quorums_of_two_a_primary_that_says_two_things_forks_the_chain(monkeypatch):
    monkeypatch.setattr(Quorum, "strong", property(lambda _: 2))
    assert verdict("F9.1") is Verdict.FALLS


@pytest.mark.parametrize("key", ["F3.2", "F5.2"])
def test_when_refusals_of_endorsers_count_for_nothing(monkeypatch, key):
    monkeypatch.setattr("bcami.node.core.execution.absent_transactions", lambda *_: frozenset())
    monkeypatch.setattr(verification, "absent_transactions", lambda *_: frozenset())
    monkeypatch.setattr("bcami.ledger.rules.executed_transactions", verification.executed_transactions)
    assert verdict(key) is Verdict.FALLS


def test_when_a_meter_believes_any_answer(monkeypatch):
    monkeypatch.setattr(ReceiptVerifier, "outcome", lambda *_: Reason.VALID)
    assert verdict("WITHHOLD.1") is Verdict.FALLS


def test_when_the_mdms_takes_blocks_in_any_order(monkeypatch):
    monkeypatch.setattr("bcami.mdms.follower.verify_bundle", lambda *_: None)
    real = Follower._take

    def careless(self, intake, bundle, accept_pruned):
        height = bundle.block.header.height
        if height > intake.cursor.height + 1:
            intake._unit.after = replace_cursor(intake.cursor, height=height - 1)
        return real(self, intake, bundle, accept_pruned)

    monkeypatch.setattr(Follower, "_take", careless)
    assert verdict("WITHHOLD.4") is Verdict.FALLS


def test_when_the_mdms_believes_blocks_of_any_network(monkeypatch):
    monkeypatch.setattr("bcami.mdms.follower.verify_bundle", lambda *_: None)
    assert verdict("CROSS.1") is Verdict.FALLS


def test_the_papers_ordering_stands_a_leader_that_shows_two_blocks_at_once_and_falls_to_one_that_waits():
    ordering = paper.Ordering(4)
    assert ordering.propose(0, b"A", [1], [1]) < ordering.needed, "audit results are compared (4.2.3)"
    assert ordering.propose(0, b"B", [2, 3], [2, 3]) == ordering.needed
    assert ordering.chains == [[], [], [b"B"], [b"B"]]
    assert ordering.propose(1, b"C", [2, 3], [2, 3]) == 0, "4.2.3 has one leader"


def test_when_stored_readings_are_others_than_were_sent(monkeypatch):
    monkeypatch.setattr(people.Office, "energy", lambda *_: [1, 2, 3])
    assert verdict("WITHHOLD.5") is Verdict.FALLS


def test_a_share_that_is_sent_unsealed_is_found():
    key = SecretKey.generate(bytes(31) + b"\1")
    contribution = Contribution(1, key.public_key, bytes(64))
    secret = export_secret(key, SECRET_ACCESS)
    assert between._is_in_clear(ContributionAnswer(contribution, bytes(65), secret + bytes(16)))
    assert not between._is_in_clear(ContributionAnswer(contribution, bytes(65), bytes(48)))


def test_without_rekeying_a_removed_meter_goes_on_reading(monkeypatch):
    monkeypatch.setattr("bcami.kms.server.KeyServer.remove", lambda *_: Step())
    assert verdict("INSIDER.3") is Verdict.FALLS


# How verdicts come about.


def made(*aims: tuple[bool, str], checks: bool = True) -> Account:
    account = Account()
    account.check("it works", checks)
    for reached, limit in aims:
        account.aim("something", reached, limit)
    return account


@pytest.mark.parametrize(
    ("account", "expected"),
    [
        (made((False, "")), Verdict.HOLDS),
        (made((True, "")), Verdict.FALLS),
        (made((True, ""), checks=False), Verdict.FALLS),
        (made((False, "")), Verdict.HOLDS),
        (made((False, ""), (True, "a limit")), Verdict.PARTLY),
        (made((False, "a limit")), Verdict.HOLDS),
        (made((True, ""), (True, "a limit")), Verdict.FALLS),
        (made((False, ""), checks=False), Verdict.VOID),
        (made(), Verdict.VOID),
    ],
)
def test_a_verdict_follows_from_what_was_observed(account, expected):
    assert account.verdict is expected


def test_a_property_has_the_worst_verdict_of_its_attacks():
    assert worst([Verdict.HOLDS, Verdict.PARTLY]) is Verdict.PARTLY
    assert worst([Verdict.PARTLY, Verdict.VOID]) is Verdict.VOID
    assert worst([Verdict.VOID, Verdict.FALLS]) is Verdict.FALLS
    assert worst([]) is Verdict.VOID


def test_the_table_of_verdicts_says_what_fell_and_what_holds_in_part():
    fell = _finding("F1.1", made((True, "")), made((True, "")), PaperRun("4.2", lambda _: made()))
    part = _finding("F2.1", made((True, "because")))
    other = _finding("F3.1", made((False, "")), made((True, "")), PaperRun("Table 3", lambda _: made(), "KMS"))
    table = assembled([fell, part, other], SETTING).table("verdicts")
    assert table.column("property") == ("F1", "F2", "F3")
    assert table.column("verdict") == ("falls", "partly", "holds")
    assert table.column("paper") == ("falls", None, None), "another paper's fall is none of BC-AMI's"
    assert table.rows[1].note == "The attacker can something: because."


def _finding(key: str, ours: Account, papers: Account | None = None, run: PaperRun | None = None) -> Finding:
    return Finding(Attack(key, "one", "a key", lambda _: ours, run), ours, papers)


def test_a_fallen_property_ends_the_command_with_1_and_a_void_attack_with_3(monkeypatch, tmp_path):
    ends = {
        "falls": (made((True, "")), 1),
        "void": (made((False, ""), checks=False), 3),
        "holds": (made((False, "")), 0),
    }
    for name, (account, code) in ends.items():
        attack = Attack("F2.1", "one", "a key", lambda _, account=account: account)
        monkeypatch.setattr("bcami.report.security.catalogue.ATTACKS", (attack,))
        monkeypatch.setattr("bcami.cli.report_attacks.live_attacks", lambda *_: ())
        monkeypatch.setattr("sys.argv", ["bcami", "report", "security", "--out", str(tmp_path / name)])
        with pytest.raises(SystemExit) as end:
            run()
        assert end.value.code == code, name
        assert (tmp_path / name / "report.html").is_file()
