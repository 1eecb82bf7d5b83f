"""The audit of a stored ledger, in a process of its own.

LMDB maps its file: a damaged page or a file cut short can end the process that reads it (SIGBUS, SIGSEGV, an assertion
of LMDB's). So the reading is done by a child that leaves its place in shared memory. A child that dies, or hangs, is a
verdict about that place; the caller lives on.

The child is `python -m bcami.ledger.audit`; it prints one JSON object. Contracts are above the ledger: what only they
know (who has to sign, what executing gives) comes from a factory, named as "module:function".
"""

import argparse
import contextlib
import importlib
import mmap
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import lmdb
import msgspec

from bcami.codec import Codec, encode
from bcami.crypto.roster import Roster
from bcami.errors import EnvironmentFault
from bcami.ledger.environment import DATA_FILE
from bcami.ledger.lmdb_promises import LmdbPromises, damaged_promises
from bcami.ledger.position import POSITION_BYTES, Position, PositionMark
from bcami.ledger.records import DamagedRecordError
from bcami.ledger.report import AuditError, AuditHooks, AuditReport, FirstError
from bcami.ledger.scan import Scan
from bcami.ledger.snapshot import Snapshot
from bcami.ledger.walk import ChainWalk, FullWalk
from bcami.model.genesis import GENESIS_BYTES_MAX, Genesis

STALL_S: Final = 120.0
"""A child that reads one record for so long hangs in a damaged page."""
POLL_S: Final = 0.1
WORDS_BYTES_MAX: Final = 2000
HooksFactory = Callable[[Genesis, Path | None], AuditHooks]
Progress = Callable[[int, int], None]
"""Called with blocks walked and blocks in all."""

_GENESIS: Final[Codec[Genesis]] = Codec(Genesis, GENESIS_BYTES_MAX)


def audit_ledger(
    path: Path,
    genesis: Genesis,
    chaincode_path: Path | None = None,
    progress: Progress | None = None,
    *,
    name: str = "",
    hooks: str = "",
    quick: bool = False,
    stall_s: float = STALL_S,
) -> AuditReport:
    """Return the verdict on the ledger in a folder, whether its node is running or not.

    `hooks` names a HooksFactory as "module:function"; without one, signatures of transactions are not checked and
    nothing is executed again. Raises EnvironmentFault when there is no ledger, or it is of another network or version.
    """
    if not (path / DATA_FILE).is_file():
        raise EnvironmentFault("there is no ledger", where=str(path), do="start the node once, or name another home")
    options = ["--name", name]
    options += ["--quick"] if quick else []
    options += ["--hooks", hooks] if hooks else []
    options += ["--chaincode", str(chaincode_path)] if chaincode_path is not None else []
    end = _run_child([str(path), *options], encode(genesis), progress, stall_s)
    if end.code == 0:
        return msgspec.json.decode(end.answer, type=AuditReport)
    return AuditReport(
        name,
        ok=False,
        mode="quick" if quick else "full",
        blocks_checked=end.last.blocks,
        records_checked=end.last.records,
        first_error=FirstError(end.last.height or None, end.last.table_name, end.how()),
    )


def check_promises(path: Path, owner: bytes, *, stall_s: float = STALL_S) -> int:
    """Return how many promises a stopped node has, all of them as they were written; `owner` is its consensus key.

    Raises EnvironmentFault when the store is missing, damaged, another key's, or its node is running.
    """
    end = _run_child([str(path), "--promises", owner.hex()], b"", None, stall_s)
    if end.code != 0:
        raise damaged_promises(path, end.how())
    return msgspec.json.decode(end.answer, type=int)


class _End(NamedTuple):
    """How a child ended."""

    code: int
    answer: bytes
    words: bytes
    last: Position
    hung: bool

    def how(self) -> str:
        if self.hung:
            return "the reader hung: a damaged page leads it in a circle"
        if self.code < 0:
            return f"the reader died of {signal.Signals(-self.code).name}: a damaged page, or a file that was cut short"
        lines = self.words.decode("utf-8", "replace").strip().splitlines()
        return f"the reader failed: {lines[-1] if lines else f'exit code {self.code}'}"


class _Fault(msgspec.Struct):
    """An EnvironmentFault on its way from the child."""

    what: str
    where: str
    likely: str
    do: str


def _run_child(arguments: list[str], given: bytes, progress: Progress | None, stall_s: float) -> _End:
    """Run the module on its arguments and return how it ended. Raises the EnvironmentFault that it met."""
    with contextlib.ExitStack() as stack:
        place, genesis, said, words = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(4))
        place.truncate(POSITION_BYTES)
        shared = stack.enter_context(mmap.mmap(place.fileno(), POSITION_BYTES))
        genesis.write(given)
        genesis.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "bcami.ledger.audit", *arguments, "--position", str(place.fileno())],
            stdin=genesis,
            stdout=said,
            stderr=words,
            pass_fds=[place.fileno()],
            start_new_session=True,
        )
        try:
            hung = _wait(child, shared, progress, stall_s)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        said.seek(0)
        words.seek(0)
        end = _End(
            child.returncode,
            said.read(),
            words.read()[-WORDS_BYTES_MAX:],
            Position.unpack(shared[:POSITION_BYTES]),
            hung,
        )
    if end.code == EnvironmentFault.exit_code:
        fault = msgspec.json.decode(end.answer, type=_Fault)
        raise EnvironmentFault(fault.what, where=fault.where, likely=fault.likely, do=fault.do)
    return end


def _wait(child: "subprocess.Popen[bytes]", shared: mmap.mmap, progress: Progress | None, stall_s: float) -> bool:
    """Wait for the child; return whether it had to be killed because it stood still."""
    steps, since = -1, time.monotonic()
    while True:
        try:
            child.wait(POLL_S)
            return False
        except subprocess.TimeoutExpired:
            at = Position.unpack(shared[:POSITION_BYTES])
        if progress is not None and at.blocks_total:
            progress(at.blocks, at.blocks_total)
        if at.steps != steps:
            steps, since = at.steps, time.monotonic()
        elif time.monotonic() - since > stall_s:
            child.kill()
            child.wait()
            return True


def inspect(
    path: Path, genesis: Genesis, name: str, hooks: AuditHooks, mark: PositionMark, *, quick: bool
) -> AuditReport:
    """Audit in this process; a damaged page may end it. Raises EnvironmentFault as `audit_ledger` does."""
    mode = "quick" if quick else "full"
    roster = Roster.from_genesis(genesis)
    walk: ChainWalk | None = None
    error: FirstError | None = None
    try:
        snapshot = Snapshot(path, genesis, mark)
        with contextlib.closing(snapshot):
            Scan(snapshot).run()
            walk = ChainWalk(snapshot, roster) if quick else FullWalk(snapshot, roster, hooks)
            walk.run()
    except AuditError as found:
        error = found.first_error
    except DamagedRecordError as damage:
        error = FirstError(mark.last.height or None, damage.table, damage.reason)
    except lmdb.Error as refusal:
        error = FirstError(mark.last.height or None, mark.last.table_name, f"the table cannot be read: {refusal}")
    full = walk if isinstance(walk, FullWalk) else None
    return AuditReport(
        name=name,
        ok=error is None,
        mode=mode,
        height=walk.height if walk else 0,
        block_hash=walk.head_hash.hex() if walk else "",
        state_root=walk.state_root.hex() if walk else "",
        certified_height=walk.certified if walk else 0,
        blocks_checked=walk.blocks_checked if walk else 0,
        transactions_checked=full.transactions_checked if full else 0,
        signatures_checked=full.signatures_checked if full else 0,
        records_checked=mark.records,
        pruned_to=walk.pruned if walk else 0,
        executed_to=full.executed_to if full else 0,
        audited_from=walk.installed if walk else 0,
        first_error=error,
    )


def _load_hooks(named: str, genesis: Genesis, chaincode: Path | None) -> AuditHooks:
    if not named:
        return AuditHooks()
    module, _, function = named.partition(":")
    factory: HooksFactory = getattr(importlib.import_module(module), function)
    return factory(genesis, chaincode)


def main(arguments: list[str] | None = None) -> int:
    """Audit as told; genesis comes on standard input. Print the report, or or the fault that there is."""
    parser = argparse.ArgumentParser(prog="python -m bcami.ledger.audit", description="Audit one ledger.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--name", default="")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--hooks", default="")
    parser.add_argument("--chaincode", type=Path)
    parser.add_argument("--position", type=int)
    parser.add_argument("--promises", type=bytes.fromhex, metavar="OWNER", help="check a promise store instead")
    given = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        answer = _answer(given)
    except EnvironmentFault as fault:
        answer = msgspec.json.encode(_Fault(fault.what, fault.where, fault.likely, fault.do))
        code = fault.exit_code
    else:
        code = 0
    sys.stdout.write(answer.decode() + "\n")
    return code


def _answer(given: argparse.Namespace) -> bytes:
    mark = PositionMark(mmap.mmap(-1 if given.position is None else given.position, POSITION_BYTES))
    if given.promises is not None:
        with LmdbPromises(given.path, given.promises, mark=mark) as promises:
            return msgspec.json.encode(len(promises))
    genesis = _GENESIS.decode(sys.stdin.buffer.read())
    hooks = _load_hooks(given.hooks, genesis, given.chaincode)
    return msgspec.json.encode(inspect(given.path, genesis, given.name, hooks, mark, quick=given.quick))


if __name__ == "__main__":
    sys.exit(main())
