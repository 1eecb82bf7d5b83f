"""What the utility does on the chain: it says who is a customer (protocol 1.2), and nothing else.

Its transactions carry its own sequence number, guarded like a meter's, so a replayed `enrol` undoes no `revoke`
(protocol 1.4). Numbers are reserved durably ahead, under a lock between processes; one that was reserved and not used
is lost, never used twice.
"""

import asyncio
import fcntl
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

import msgspec

from bcami.client.courier import Courier, Settlement
from bcami.client.nodes import NodeClient
from bcami.client.reads import weak_read
from bcami.codec import encode
from bcami.crypto.keys import load_secret, write_private
from bcami.crypto.roster import Roster
from bcami.crypto.signatures import Signer
from bcami.errors import EnvironmentFault, InputError
from bcami.model.genesis import operator_id
from bcami.model.reasons import Reason
from bcami.model.registration import EnrolArgument, Enrolment, RevokeArgument
from bcami.model.transaction import Transaction, argument_digest, transaction_id

UTILITY_KEY_KIND: Final = "utility"
"""Kind of HOME/utility/signing.key."""

_ENROLMENT: Final = msgspec.msgpack.Decoder(Enrolment)
_ATTEMPTS: Final = 3


class UtilitySequence:
    """The utility's sequence numbers, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def reserve(self, count: int) -> range:
        """Return `count` numbers that nobody else gets; durable before this returns."""
        lock = os.open(self._path.with_name(f"{self._path.name}.lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            last = self._last()
            write_private(self._path, f"{last + count}\n".encode(), replace=True)
        finally:
            os.close(lock)
        return range(last + 1, last + 1 + count)

    def _last(self) -> int:
        try:
            text = self._path.read_text().strip()
        except FileNotFoundError:
            return 0
        except (OSError, UnicodeDecodeError) as error:
            raise EnvironmentFault(f"the utility's sequence cannot be read: {error}", where=str(self._path)) from None
        if not text.isdecimal():
            raise InputError(
                "the utility's sequence file is damaged",
                where=str(self._path),
                likely="it was edited or truncated",
                do="write a number above every one that the utility ever used; the chain shows the highest",
            )
        return int(text)


class Utility:
    """Signs and submits the utility's transactions."""

    def __init__(self, key: Signer, sequence: UtilitySequence, roster: Roster) -> None:
        self._key = key
        self._sequence = sequence
        self._roster = roster
        self._signer = operator_id(key.public_key)

    @classmethod
    def open(cls, home: Path, roster: Roster) -> Self:
        """Take up the utility of a network home. Raises InputError when its key is not the one genesis names."""
        path = home / "utility" / "signing.key"
        key = load_secret(path, UTILITY_KEY_KIND)
        if key.public_key != roster.genesis.utility_key:
            raise InputError(
                "the utility's key is not the one that genesis names",
                where=str(path),
                likely="the key is of another network",
                do="check --home",
            )
        return cls(key, UtilitySequence(home / "utility" / "sequence"), roster)

    def __repr__(self) -> str:
        return f"Utility({self._signer.hex()[:16]}…)"

    async def enrol(
        self, enrolments: Sequence[EnrolArgument], courier: Courier, nodes: Sequence[NodeClient], now_ms: int
    ) -> None:
        """Record customers; those that are enrolled already under the same keys are fine.

        Raises InputError naming the first HID that cannot be enrolled, and why.
        """
        settled = await self._settle_all("enrol", {item.hid: encode(item) for item in enrolments}, courier, now_ms)
        for item in enrolments:
            settlement = settled[item.hid]
            if settlement.reason is Reason.ALREADY_ENROLLED and await self._is_enrolled(item, nodes):
                continue
            _raise_unless_valid("enrolled", item.hid, settlement)

    async def revoke(self, hid: bytes, courier: Courier, now_ms: int) -> None:
        """End a customer's right to register and to report, for good. Raises InputError with the reason of a no."""
        settled = await self._settle_all("revoke", {hid: encode(RevokeArgument(hid))}, courier, now_ms)
        _raise_unless_valid("revoked", hid, settled[hid])

    async def submit(
        self, contract: str, function: str, argument: bytes, courier: Courier, now_ms: int
    ) -> tuple[Transaction, Settlement]:
        """Sign and settle one transaction of any contract that the utility may call."""
        sequence = self._sequence.reserve(1)[0]
        tx, tx_id = self._signed(contract, function, argument, sequence, now_ms)
        return tx, await courier.settle(encode(tx), tx_id, home=sequence)

    async def _settle_all(
        self, function: str, arguments: Mapping[bytes, bytes], courier: Courier, now_ms: int
    ) -> dict[bytes, Settlement]:
        """Settle one transaction for each HID, half a replay window at a time (protocol 3.4)."""
        at_once = self._roster.genesis.parameters.replay_window // 2
        todo = list(arguments)
        settled: dict[bytes, Settlement] = {}
        for _ in range(_ATTEMPTS):
            for start in range(0, len(todo), at_once):
                hids = todo[start : start + at_once]
                numbers = self._sequence.reserve(len(hids))
                settling = [
                    self._settle(function, arguments[hid], sequence, courier, now_ms)
                    for hid, sequence in zip(hids, numbers, strict=True)
                ]
                settled.update(zip(hids, await asyncio.gather(*settling), strict=True))
            todo = [hid for hid in todo if settled[hid].reason in (Reason.REPLAY, Reason.SEQUENCE_TOO_OLD)]
            if not todo:
                break
        return settled

    async def _settle(self, function: str, argument: bytes, sequence: int, courier: Courier, now_ms: int) -> Settlement:
        tx, tx_id = self._signed("registration", function, argument, sequence, now_ms)
        return await courier.settle(encode(tx), tx_id, home=sequence)

    def _signed(
        self, contract: str, function: str, argument: bytes, sequence: int, now_ms: int
    ) -> tuple[Transaction, bytes]:
        unsigned = Transaction(
            contract=contract,
            function=function,
            signer=self._signer,
            session=0,
            sequence=sequence,
            timestamp_ms=now_ms,
            argument_hash=argument_digest(argument),
            argument=argument,
            signatures=(),
        )
        tx_id = transaction_id(unsigned, self._roster.chain, self._roster.epoch)
        return msgspec.structs.replace(unsigned, signatures=(self._key.sign(tx_id),)), tx_id

    async def _is_enrolled(self, wanted: EnrolArgument, nodes: Sequence[NodeClient]) -> bool:
        """Tell whether the chain holds exactly these keys for the HID, by weak equal answers."""
        key = b"registration/enrolments/" + wanted.hid
        agreed = await weak_read(nodes, lambda node: node.state(key), weak=self._roster.quorum.weak)
        if agreed.value is None:
            return False
        found = _ENROLMENT.decode(agreed.value)
        return found == Enrolment(wanted.enrolment_key, wanted.enrolment_kem_key, revoked=False)


def _raise_unless_valid(done: str, hid: bytes, settlement: Settlement) -> None:
    if settlement.reason is Reason.VALID:
        return
    verb = "rejected" if settlement.is_final else "refused"
    raise InputError(
        f"the meter with HID {hid.hex()} was not {done}: the nodes {verb} it as {settlement.reason}",
        likely="another fleet enrolled this meter under other keys, or it was revoked"
        if settlement.reason is Reason.ALREADY_ENROLLED
        else "",
        do=f"see `bcami show meter {hid.hex()}`",
    )
