"""A process of its own that works on a ledger, for tests: `python -m tests.unit.ledger.committer WHAT FOLDER`."""

import itertools
import resource
import signal
import sys
from pathlib import Path

from bcami.errors import EnvironmentFault
from bcami.ledger.lmdb_ledger import LmdbLedger
from bcami.ledger.lmdb_promises import LmdbPromises
from tests.unit.ledger.chain import GENESIS, ChainMaker, certify, guard, signer, usage

BLOCKS = 400
OWNER = b"\x02" + b"o" * 32


def commits():
    """The same chain in every process."""
    maker = ChainMaker()
    for height in range(1, BLOCKS + 1):
        who = signer(height % 7)
        txs = [usage(who, height * 10 + n, bytes([height % 256]) * 300) for n in range(5)]
        yield maker.commit(txs, {guard(who): height.to_bytes(30, "big"), b"a/" + bytes([height % 9]): who})


def commit_on(folder: Path) -> None:
    """Commit until killed, and say each height once it is durable."""
    with LmdbLedger(folder, GENESIS) as ledger:
        for commit in itertools.islice(commits(), ledger.height, None):
            ledger.commit(commit, [certify(commit)])
            print(ledger.height, flush=True)


def hold(folder: Path) -> None:
    """Keep the ledger open for writing until standard input ends."""
    with LmdbLedger(folder, GENESIS):
        print("open", flush=True)
        sys.stdin.read()


def read(folder: Path) -> None:
    """Say the height at each line of standard input, from a ledger that another process writes."""
    with LmdbLedger(folder, GENESIS, write=False) as ledger:
        for _ in sys.stdin:
            ledger.refresh()
            head = ledger.block(ledger.height)
            last = head.outcomes[-1].transaction_id if head else b""
            place = ledger.place(last) if last else None
            print(ledger.height, ledger.receipt(last) is not None, place.height if place else 0, flush=True)


def limited(folder: Path) -> None:
    """Commit until the disk refuses: no file may grow beyond a limit."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
    with LmdbLedger(folder, GENESIS) as ledger:
        first = None
        for commit in commits():
            try:
                ledger.commit(commit)
            except EnvironmentFault as fault:
                first = fault
                break
        height = ledger.height
        try:
            ledger.commit(commit)
        except EnvironmentFault as again:
            print(height, first is again, ledger.height, again.what, flush=True)


def promise_on(folder: Path) -> None:
    """Write groups of promises until killed."""
    with LmdbPromises(folder, OWNER) as promises:
        for number in itertools.count(1):
            key = number.to_bytes(8, "big")
            promises.apply([(b"a" + key, key * 20), (b"b" + key, key)], [b"b" + (number - 1).to_bytes(8, "big")])
            print(number, flush=True)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
