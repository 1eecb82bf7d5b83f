"""The report of the attacks: a table of verdicts, then each attack with its transcript."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from bcami.report.document import Cell, Column, Report, Row, Section, Setting, Table, paragraphs
from bcami.report.security.attack import BC_AMI, Account, Attack, Finding, Kind, Verdict, carry_out, worst
from bcami.report.security.catalogue import ATTACKS
from bcami.report.security.properties import PROPERTIES, Property

TITLE: Final = (
    "What attackers can do to a metering backend: attacks carried out here, and against BC-AMI's own protocol"
)
OURS: Final = "bcami"
PAPER: Final = "the paper"
_REASONS_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class SecurityRun:
    """All findings, and what they come to."""

    report: Report
    findings: tuple[Finding, ...]

    @property
    def fallen(self) -> list[str]:
        """Return the attacks that reached what must be out of reach."""
        return [finding.attack.key for finding in self.findings if finding.ours.verdict is Verdict.FALLS]

    @property
    def void(self) -> list[str]:
        """Return the attacks that prove nothing."""
        return [finding.attack.key for finding in self.findings if finding.ours.verdict is Verdict.VOID]


def security_report(
    seed: int, setting: Setting, show: Callable[[int, int, str], None], attacks: Sequence[Attack] = ATTACKS
) -> SecurityRun:
    """Carry out all attacks (without the slow ones in a quick run). `show` gets (done, of, what is being done)."""
    chosen = [attack for attack in attacks if not (setting.quick and attack.slow)]
    findings = []
    for done, attack in enumerate(chosen):
        show(done, len(chosen), f"{attack.key}  {attack.title}")
        findings.append(carry_out(attack, seed))
    return SecurityRun(assembled(findings, setting), tuple(findings))


def assembled(findings: Sequence[Finding], setting: Setting) -> Report:
    """Return the report of findings."""
    shown = [item for item in PROPERTIES if _about(item, findings)]
    sections = (
        Section("verdicts", "Verdicts", VERDICTS, (_verdicts(shown, findings),)),
        *(_section(item, findings) for item in shown),
    )
    return Report("security", TITLE, _summary(findings, shown), METHOD, setting, sections)


def _about(item: Property, findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if item.key in finding.attack.properties]


def _at_home(item: Property, findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.attack.properties[0] == item.key]


def _papers_verdict(findings: Sequence[Finding], item: Property | None = None) -> Cell:
    """Return the worst verdict on papers' protocols; on BC-AMI's only, when it is about a property of its Table 4."""
    found = [
        finding.papers.verdict
        for finding in findings
        if finding.papers is not None and (item is None or not item.printed or _is_of_bc_ami(finding))
    ]
    return str(worst(found)) if found else None


def _is_of_bc_ami(finding: Finding) -> bool:
    return finding.attack.paper is not None and finding.attack.paper.paper == BC_AMI


def _reasons(accounts: Sequence[Account]) -> str:
    """Return what said no, each once, in the order in which it did."""
    said = list(dict.fromkeys(stopped.reason for account in accounts for stopped in account.stopped))
    more = len(said) - _REASONS_MAX
    return ", ".join(said[:_REASONS_MAX]) + (f" and {more} more" if more > 0 else "")


def _limits(accounts: Sequence[Account]) -> str:
    """Return what the attackers reached that is said beforehand not to be prevented, each reason once."""
    reached: dict[str, list[str]] = {}
    for account in accounts:
        for aim in account.aims:
            if aim.reached and aim.limit and aim.what not in reached.setdefault(aim.limit, []):
                reached[aim.limit].append(aim.what)
    return " ".join(f"The attacker can {', or '.join(whats)}: {limit}." for limit, whats in reached.items())


def _verdicts(shown: Sequence[Property], findings: Sequence[Finding]) -> Table:
    columns = (
        Column("property", "Property"),
        Column("title", "Against"),
        Column("printed", "Table 4 prints"),
        Column("paper", "Paper's protocol, attacked", "verdict"),
        Column("verdict", OURS, "verdict"),
        Column("attacks", "Attacks", "number"),
        Column("stopped_by", "What said no"),
    )
    rows = []
    for item in shown:
        about = _about(item, findings)
        verdict = worst([finding.ours.verdict for finding in about])
        cells: tuple[Cell, ...] = (
            item.key,
            item.title,
            item.printed or None,
            _papers_verdict(about, item),
            str(verdict),
            len(about),
            _reasons([finding.ours for finding in about]),
        )
        rows.append(Row(cells, note=_limits([finding.ours for finding in about])))
    text = (
        "“partly”: the attacker got only what is said beforehand not to be prevented; the footnote names it. “void”: "
        "the attack proves nothing, because a check of it failed."
    )
    return Table("verdicts", "Verdicts", columns, tuple(rows), "BC-AMI, Table 4 (third column)", text)


def _section(item: Property, findings: Sequence[Finding]) -> Section:
    home = _at_home(item, findings)
    elsewhere = [finding for finding in _about(item, findings) if finding not in home]
    text = [item.claim]
    if elsewhere:
        listed = ", ".join(f"{finding.attack.key} ({finding.ours.verdict})" for finding in elsewhere)
        text.append(f"{'Also about it' if home else 'About it'}: {listed}.")
    tables = [_overview(item, home)] if home else []
    title = item.title if item.key[1:].isdigit() is False else f"{item.key}: {item.title}"
    return Section(item.key.lower(), title, tuple(text), (*tables, *(_transcript(finding) for finding in home)))


def _overview(item: Property, findings: Sequence[Finding]) -> Table:
    columns = (
        Column("attack", "Attack"),
        Column("title", "What is tried"),
        Column("attacker", "The attacker has"),
        Column("verdict", OURS, "verdict"),
        Column("stopped_by", "What said no"),
        Column("paper", "Paper's protocol", "verdict"),
    )
    rows = [
        Row(
            (
                finding.attack.key,
                finding.attack.title,
                finding.attack.attacker,
                str(finding.ours.verdict),
                _reasons([finding.ours]),
                _papers_verdict([finding]),
            ),
            note=_limits([finding.ours]),
        )
        for finding in findings
    ]
    return Table(f"{item.key.lower()}_attacks", f"Attacks: {item.title.lower()}", columns, tuple(rows))


_WORDS: Final = {Kind.STEP: "attacker", Kind.ANSWER: "answer", Kind.CHECK: "check", Kind.AIM: "aim"}


def _transcript(finding: Finding) -> Table:
    columns = (
        Column("system", "System"),
        Column("step", "Step", "number"),
        Column("kind", "Kind"),
        Column("what", "What"),
        Column("came_of_it", "What came of it"),
    )
    attack = finding.attack
    rows = _lines(OURS, finding.ours)
    source = ""
    if finding.papers is not None and attack.paper is not None:
        rows += _lines(PAPER, finding.papers)
        source = f"{attack.paper.paper}, {attack.paper.sections}, for the attack on the paper's protocol"
    papers = "" if finding.papers is None else f" The paper's protocol: {finding.papers.verdict}."
    text = f"The attacker has {attack.attacker}. Verdict: {finding.ours.verdict}.{papers}"
    title = f"{attack.key} {attack.title}"
    return Table(attack.key.lower().replace(".", "_"), title, columns, tuple(rows), source, text)


def _lines(system: str, account: Account) -> list[Row]:
    return [
        Row((system, number, _WORDS[line.kind], line.what, line.came_of_it or None))
        for number, line in enumerate(account.lines, 1)
    ]


def _summary(findings: Sequence[Finding], shown: Sequence[Property]) -> tuple[str, ...]:
    count = {verdict: sum(finding.ours.verdict is verdict for finding in findings) for verdict in Verdict}
    bc_ami = [finding.papers.verdict for finding in findings if finding.papers and _is_of_bc_ami(finding)]
    table_4 = [item for item in shown if item.printed]
    fallen = [item.key for item in table_4 if _papers_verdict(_about(item, findings), item) == Verdict.FALLS]
    first = (
        f"{len(findings)} attacks were carried out on the running code: {count[Verdict.HOLDS]} came to nothing, "
        f"{count[Verdict.PARTLY]} reached only what is said not to be prevented, {count[Verdict.FALLS]} reached what "
        f"must be out of reach, {count[Verdict.VOID]} proved nothing."
    )
    others = [finding.papers.verdict for finding in findings if finding.papers and not _is_of_bc_ami(finding)]
    second = (
        f"{len(bc_ami)} of them were also carried out on BC-AMI's protocol as its section 4.2 has it, and "
        f"{bc_ami.count(Verdict.FALLS)} of these reached their aim; {len(others)} on the KMS paper's scheme, and "
        f"{others.count(Verdict.FALLS)} of these did. Of the {len(table_4)} properties that BC-AMI's Table 4 ticks, "
        f"{len(fallen)} fall: {', '.join(fallen) or 'none'}."
    )
    return first, second


VERDICTS: Final = paragraphs(
    """
    Table 4 of BC-AMI ticks ten properties, each argued in two or three sentences of its section 5.4. Here each is a set
    of attacks that run. A property has the worst verdict of its attacks. The rows below the ten are attacks that the
    paper does not discuss.
    """
)

METHOD: Final = paragraphs(
    """
    The attacks run in one process against the code that nodes, meters and the MDMS run: the nodes' core with ordering,
    contracts and real ECDSA signatures; the meters' key issuance, sealing and receipt checks; the MDMS's period keys on
    disk, its follower and its store; the key management's two ends. Replaced are threads, sockets and clocks: time is
    virtual and all draws come from the seed, so that two runs give the same transcripts. What TLS and the operating
    system protect is not attacked here. One attack (LEDGER.3, not in a quick run) is on a local network of processes.

    A verdict is computed from what happened. An attack writes down its steps, what said no (the reason is the one that
    metrics and answers show), and for each of its aims whether it was reached; it also checks that the same network
    serves honest users, since an attack on something that does not work proves nothing. Tests take safeguards away one
    by one and see these verdicts turn.

    The paper's protocol is a model of the paper's text, made for this report: what section 4.2 says is done, and what
    it does not say is not done; where a choice was needed, the one that is kindest to the paper was taken. Its ordering
    is the steps of section 4.2.3, not PBFT as published, which the paper names: with that, F9 would not fall. It says
    nothing about the authors' implementation, which is not published. It is in bcami/report/security/paper.py. The
    key management's paper is attacked in the profile `paper` of this system, which has that paper's formulas.

    No attack that fails proves a property. For agreement and liveness under thousands of random schedules see
    `bcami simulate`.
    """
)
