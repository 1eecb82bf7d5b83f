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
from typing import Final

import lmdb
import msgspec

from bcami.codec import Codec, encode
from bcami.crypto.roster import Roster
from bcami.errors import BcamiError, EnvironmentFault
from bcami.ledger.environment import DATA_FILE
from bcami.ledger.records import DamagedRecordError
from bcami.ledger.report import AuditError, AuditHooks, AuditReport, FirstError
from bcami.ledger.scan import Scan
from bcami.ledger.snapshot import POSITION_BYTES, Position, PositionMark, Snapshot
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
    command = [sys.executable, "-m", "bcami.ledger.audit", str(path), "--name", name]
    command += ["--quick"] if quick else []
    command += ["--hooks", hooks] if hooks else []
    command += ["--chaincode", str(chaincode_path)] if chaincode_path is not None else []
    with contextlib.ExitStack() as stack:
        place, given, said, words = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(4))
        place.truncate(POSITION_BYTES)
        shared = stack.enter_context(mmap.mmap(place.fileno(), POSITION_BYTES))
        given.write(encode(genesis))
        given.seek(0)
        command += ["--position", str(place.fileno())]
        child = subprocess.Popen(
            command, stdin=given, stdout=said, stderr=words, pass_fds=[place.fileno()], start_new_session=True
        )
        try:
            hung = _wait(child, shared, progress, stall_s)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        last = Position.unpack(shared[:POSITION_BYTES])
        said.seek(0)
        words.seek(0)
        answer, errors = said.read(), words.read()[-WORDS_BYTES_MAX:]
    if child.returncode == 0:
        return msgspec.json.decode(answer, type=AuditReport)
    if child.returncode == EnvironmentFault.exit_code:
        raise EnvironmentFault(errors.decode("utf-8", "replace").strip(), where=str(path))
    return _post_mortem(name, "quick" if quick else "full", last, child.returncode, errors, hung=hung)


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


def _post_mortem(name: str, mode: str, last: Position, code: int, errors: bytes, *, hung: bool) -> AuditReport:
    """Return the verdict that a dead child leaves."""
    if hung:
        how = "the reader hung: a damaged page leads it in a circle"
    elif code < 0:
        how = f"the reader died of {signal.Signals(-code).name}: a damaged page, or a file that was cut short"
    else:
        lines = errors.decode("utf-8", "replace").strip().splitlines()
        how = f"the reader failed: {lines[-1] if lines else f'exit code {code}'}"
    return AuditReport(
        name,
        ok=False,
        mode=mode,
        blocks_checked=last.blocks,
        records_checked=last.records,
        first_error=FirstError(last.height or None, last.table_name, how),
    )


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
        first_error=error,
    )


def _load_hooks(named: str, genesis: Genesis, chaincode: Path | None) -> AuditHooks:
    if not named:
        return AuditHooks()
    module, _, function = named.partition(":")
    factory: HooksFactory = getattr(importlib.import_module(module), function)
    return factory(genesis, chaincode)


def main(arguments: list[str] | None = None) -> int:
    """Audit as told; genesis comes on standard input. Print the report, or to standard error why there is none."""
    parser = argparse.ArgumentParser(prog="python -m bcami.ledger.audit", description="Audit one ledger.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--name", default="")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--hooks", default="")
    parser.add_argument("--chaincode", type=Path)
    parser.add_argument("--position", type=int)
    given = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    shared = mmap.mmap(-1 if given.position is None else given.position, POSITION_BYTES)
    try:
        genesis = _GENESIS.decode(sys.stdin.buffer.read())
        hooks = _load_hooks(given.hooks, genesis, given.chaincode)
        report = inspect(given.path, genesis, given.name, hooks, PositionMark(shared), quick=given.quick)
    except BcamiError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
