"""The attack of `bcami report security` that needs real processes."""

from pathlib import Path

from bcami.cli.report_attacks import live_attacks
from bcami.report.security.attack import Verdict


def test_a_running_network_finds_out_about_a_tampered_ledger(tmp_path: Path) -> None:
    (attack,) = live_attacks(tmp_path, lambda _: None)
    account = attack.run(0)
    assert account.verdict is Verdict.PARTLY, account
    assert ("node3, at its start", "refuses to start") in {(item.where, item.reason) for item in account.stopped}
    assert ("verify: node3", "found in blocks") in {(item.where, item.reason) for item in account.stopped}
    assert [aim.what for aim in account.aims if aim.reached] == ["have the node start with an old block changed"]
    assert not list(tmp_path.iterdir()), "the network is gone"
