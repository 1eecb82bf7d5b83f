"""Dispatch, the endorser's check, steps, faults and the order of the guard."""

from pathlib import Path

import pytest

from bcami.codec import encode
from bcami.contract.guard import guard_key
from bcami.contract.package import load_package
from bcami.contract.runtime import Runtime
from bcami.errors import InputError
from bcami.model.genesis import Parameters
from bcami.model.ids import NO_HASH
from bcami.model.reasons import Reason
from bcami.model.transaction import ARGUMENT_BYTES_MAX, Transaction, argument_digest
from tests.unit.contract.world import World, make_genesis, package, reporting_meter, signing_key

PRELUDE = """
from bcami.contract import HASH, NUMBER, ONLY, Context, Contract, Hash, Map, Reason, Record, U63, View
from bcami.contract import found, pair, query, require, submit

class Note(Record):
    owner: Hash
    value: U63

class Notes(Contract):
    name = "notes"
    notes = Map(Note, pair(HASH, NUMBER))
    last = Map(int, ONLY)
"""

SIGNERS = """
    @write.signers
    async def write_signers(self, ctx: Context, argument: Note) -> tuple[bytes, ...]:
        return (ctx.network.utility_key,)
"""

MANIFEST = '{name}version = "1"\n[[contracts]]\nfile = "notes.py"\nclass = "Notes"\n'


def load(folder: Path, *bodies: str):
    (folder / "notes.py").write_text(PRELUDE + "".join(bodies))
    (folder / "manifest.toml").write_text(MANIFEST.format(name='name = "notes"\n'))
    return load_package(folder, None)


class NotesWorld(World):
    """A world whose package is the contract `Notes` with the given functions."""

    def __init__(self, folder: Path, *bodies: str, parameters: Parameters | None = None) -> None:
        super().__init__(parameters)
        self.runtime = Runtime(load(folder, *bodies), self.genesis)

    def write(self, sequence: int, value: int = 7) -> Transaction:
        argument = encode((signing_key("utility").public_key[1:], value))
        return self.transaction("notes", "write", bytes(32), 0, sequence, argument, [signing_key("utility")])


def submit_of(*lines: str) -> str:
    body = "".join(f"        {line}\n" for line in lines)
    return f"\n    @submit\n    async def write(self, ctx: Context, argument: Note) -> None:\n{body}{SIGNERS}"


class TestCheck:
    """Every refusal has its own reason, and the cheap ones come before the signature."""

    @pytest.fixture
    def world(self):
        return World()

    @pytest.fixture
    def party(self, world):
        return reporting_meter(world)

    def changed(self, tx, **changes):
        fields = {name: getattr(tx, name) for name in tx.__struct_fields__} | changes
        return Transaction(**fields)

    def test_fine(self, world, party):
        assert world.check(party.report(1, 1)) is None

    def test_unknown_contract(self, world, party):
        assert world.check(self.changed(party.report(1, 1), contract="billing")) is Reason.UNKNOWN_CONTRACT

    @pytest.mark.parametrize("function", ["delete", "report_signers", "_open_session", "name"])
    def test_unknown_function(self, world, party, function):
        assert world.check(self.changed(party.report(1, 1), function=function)) is Reason.UNKNOWN_FUNCTION

    def test_query_is_no_submit_function(self, world, party):
        tx = self.changed(party.report(1, 1), contract="registration", function="meter")
        assert world.check(tx) is Reason.UNKNOWN_FUNCTION

    def test_oversized(self, world, party):
        data = bytes(ARGUMENT_BYTES_MAX + 1)
        assert world.check(self.changed(party.report(1, 1), argument=data)) is Reason.OVERSIZED

    def test_altered_argument(self, world, party):
        tx = party.report(1, 1)
        assert world.check(self.changed(tx, argument=tx.argument[:-1] + b"x")) is Reason.HASH_MISMATCH

    def test_altered_hash(self, world, party):
        tx = party.report(1, 1)
        assert world.check(self.changed(tx, argument_hash=NO_HASH)) is Reason.HASH_MISMATCH

    def test_altered_argument_with_its_hash(self, world, party):
        tx = party.report(1, 1)
        data = tx.argument[:-1] + bytes([tx.argument[-1] ^ 1])
        altered = self.changed(tx, argument=data, argument_hash=argument_digest(data))
        assert world.check(altered) is Reason.BAD_SIGNATURE

    def test_timestamp_ahead(self, world, party):
        skew_ms = world.genesis.parameters.clock_skew_ms
        assert world.check(party.report(1, 1, timestamp_ms=world.time_ms + skew_ms)) is None
        ahead = party.report(1, 1, timestamp_ms=world.time_ms + skew_ms + 1)
        assert world.check(ahead) is Reason.TIMESTAMP_AHEAD

    def test_age_is_no_reason(self, world, party):
        assert world.submit(party.report(1, 1, timestamp_ms=0)) is Reason.VALID

    def test_argument_that_does_not_decode(self, world):
        world.utility_sequence = 5
        tx = world.utility("enrol", b"\x93\x01\x02\x03")
        assert world.check(tx) is Reason.BAD_ARGUMENT
        assert world.execute(tx).reason is Reason.BAD_ARGUMENT

    def test_argument_in_other_than_canonical_form(self, world):
        canonical = encode((bytes(32),))
        tx = world.utility("revoke", b"\xdc\x00\x01" + canonical[1:])
        assert world.check(tx) is Reason.BAD_ARGUMENT

    @pytest.mark.parametrize("session", ["sequence", "timestamp_ms", "session"])
    def test_every_field_is_signed(self, world, party, session):
        tx = party.report(1, 5)
        assert world.check(self.changed(tx, **{session: getattr(tx, session) - 1})) in (
            Reason.BAD_SIGNATURE,
            Reason.UNKNOWN_SESSION,
        )

    def test_signature_of_another_chain(self, world, party):
        other = World(Parameters(replay_window=64))
        tx = other.transaction("usage", "report", party.hid, 1, 1, party.report(1, 1).argument, [party.keys[1]])
        assert world.check(tx) is Reason.BAD_SIGNATURE

    @pytest.mark.parametrize("count", [0, 2])
    def test_number_of_signatures(self, world, party, count):
        tx = party.report(1, 1)
        assert world.check(self.changed(tx, signatures=tx.signatures * count)) is Reason.BAD_SIGNATURE

    def test_signatures_in_the_other_order(self, world, party):
        tx = party.register(2)
        assert world.check(self.changed(tx, signatures=tx.signatures[::-1])) is Reason.BAD_SIGNATURE

    def test_replay_is_seen_before_ordering(self, world, party):
        tx = party.report(1, 1)
        assert world.submit(tx) is Reason.VALID
        assert world.check(tx) is Reason.REPLAY
        assert world.submit(party.report(1, 5000)) is Reason.VALID
        assert world.check(party.report(1, 5000 - 1024)) is Reason.SEQUENCE_TOO_OLD

    def test_signers(self, world, party):
        keys = world.runtime.signers(party.register(2), world.read)
        assert keys == (party.enrolment.public_key, party.keys[2].public_key)


class TestExecute:
    def test_guard_comes_first_and_changes_nothing(self):
        world = World()
        party = reporting_meter(world)
        tx = party.report(1, 1)
        assert world.execute(tx).reason is Reason.VALID
        again = world.execute(tx)
        assert (again.reason, dict(again.writes)) == (Reason.REPLAY, {})

    def test_rejection_consumes_the_number(self):
        world = World()
        party = reporting_meter(world)
        bad = world.transaction("usage", "report", party.hid, 1, 9, b"short", [party.keys[1]])
        rejected = world.execute(bad)
        assert rejected.reason is Reason.BAD_ARGUMENT
        assert set(rejected.writes) == {guard_key(party.hid, 1)}
        assert world.execute(party.report(1, 9)).reason is Reason.REPLAY

    def test_unknown_function_consumes_too(self):
        world = World()
        party = reporting_meter(world)
        for number, (contract, function, reason) in enumerate(
            [("usage", "none", Reason.UNKNOWN_FUNCTION), ("none", "none", Reason.UNKNOWN_CONTRACT)], start=1
        ):
            tx = world.transaction(contract, function, party.hid, 1, number, b"", [])
            assert world.execute(tx).reason is reason
            assert world.execute(tx).reason is Reason.REPLAY

    def test_writes_see_committed_state_only(self, tmp_path):
        body = submit_of(
            "self.last.put(ctx, None, argument.value)",
            "seen = await self.last.get(ctx, None)",
            "require(seen is None, Reason.DUPLICATE)",
        )
        world = NotesWorld(tmp_path, body)
        assert world.submit(world.write(1)) is Reason.VALID
        assert world.submit(world.write(2)) is Reason.DUPLICATE

    def test_rejected_writes_are_dropped(self, tmp_path):
        body = submit_of("self.last.put(ctx, None, 1)", "require(argument.value == 7, Reason.BAD_ARGUMENT)")
        world = NotesWorld(tmp_path, body)
        assert world.submit(world.write(1, value=8)) is Reason.BAD_ARGUMENT
        assert b"notes/last/" not in world.state
        assert world.submit(world.write(2, value=7)) is Reason.VALID
        assert world.state[b"notes/last/"].value == encode(1)

    def test_delete_and_last_write_win(self, tmp_path):
        body = submit_of(
            "key = (argument.owner, argument.value)",
            "self.notes.put(ctx, key, argument)",
            "self.notes.put(ctx, key, Note(argument.owner, 1))",
            "self.last.delete(ctx, None)",
        )
        world = NotesWorld(tmp_path, body)
        execution = world.execute(world.write(1))
        owner = signing_key("utility").public_key[1:]
        assert execution.writes[b"notes/notes/" + owner + (7).to_bytes(8, "big")] == encode((owner, 1))
        assert execution.writes[b"notes/last/"] is None

    @pytest.mark.parametrize(("steps", "reason"), [(20, Reason.VALID), (19, Reason.STEPS_EXCEEDED)])
    def test_steps_are_bounded(self, tmp_path, steps, reason):
        body = submit_of("for _ in range(10):", "    ctx.sha256(await self._owner(ctx, argument))") + (
            "\n    async def _owner(self, ctx: Context, argument: Note) -> bytes:\n"
            "        await self.last.get(ctx, None)\n"
            "        return argument.owner\n"
        )
        world = NotesWorld(tmp_path, body, parameters=Parameters(contract_steps_max=steps))
        assert world.submit(world.write(1)) is reason
        assert world.execute(world.write(1)).reason is Reason.REPLAY

    @pytest.mark.parametrize(
        ("line", "what"),
        [
            ("argument.value // 0", "ZeroDivisionError"),
            ("self.last.put(ctx, None, True)", "TypeError"),
            ("self.notes.put(ctx, (b'short', 1), argument)", "ValueError"),
            ("self.notes.put(ctx, (argument.owner, 0 - 1), argument)", "ValueError"),
            ("ctx.network.nothing", "AttributeError"),
            ("require(False, Reason.VALID)", "rejected with `valid`"),
            ("self.last.put(ctx, None, 2**70)", "OverflowError"),
        ],
    )
    def test_bug_of_a_contract_is_an_outcome(self, tmp_path, line, what):
        world = NotesWorld(tmp_path, submit_of(line))
        tx = world.write(1)
        assert world.check(tx) is None
        execution = world.execute(tx)
        assert execution.reason is Reason.CONTRACT_FAULT
        assert set(execution.writes) == {guard_key(tx.signer, 0)}
        assert "height 1: notes.write" in execution.fault
        assert what in execution.fault

    def test_value_larger_than_the_ledger_takes(self, tmp_path):
        body = submit_of("require(len(bytes(2000000)) > 0, Reason.BAD_ARGUMENT)", "ctx.write(b'k', bytes(2000000))")
        world = NotesWorld(tmp_path, body)
        assert world.execute(world.write(1)).reason is Reason.CONTRACT_FAULT

    def test_nodes_own_fault_is_no_outcome(self):
        world = World()
        party = reporting_meter(world)
        tx = party.report(1, 1)

        def broken(key: bytes):
            if key.startswith(b"registration/"):
                raise OSError("the disk is gone")
            return world.read(key)

        for call in (
            lambda: world.runtime.execute(tx, world.id_of(tx), broken, 1, 1),
            lambda: world.runtime.check(tx, world.id_of(tx), broken, world.time_ms),
            lambda: world.runtime.query("registration", "meter", party.hid, broken),
        ):
            with pytest.raises(OSError, match="the disk is gone"):
                call()

    def test_damaged_state_is_no_outcome(self):
        world = World()
        party = reporting_meter(world)
        key = b"registration/enrolments/" + party.hid
        world.state[key] = type(world.state[key])(b"\xc1", 1)
        with pytest.raises(Exception, match="[Mm]essagePack|malformed"):
            world.execute(party.report(1, 1))

    def test_memory_is_no_outcome(self):
        world = World()
        tx = reporting_meter(world).report(1, 1)

        def exhausted(_: bytes):
            raise MemoryError

        with pytest.raises(MemoryError):
            world.runtime.execute(tx, world.id_of(tx), exhausted, 1, 1)

    def test_signers_function_writes_nothing(self, tmp_path):
        world = NotesWorld(
            tmp_path,
            "\n    @submit\n    async def write(self, ctx: Context, argument: Note) -> None:\n        pass\n"
            "\n    @write.signers\n"
            "    async def write_signers(self, ctx: Context, argument: Note) -> tuple[bytes, ...]:\n"
            "        self.last.put(ctx, None, 1)\n        return (argument.owner,)\n",
        )
        assert world.check(world.write(1)) is Reason.CONTRACT_FAULT

    def test_nobody_has_to_sign_is_a_fault(self, tmp_path):
        world = NotesWorld(
            tmp_path,
            "\n    @submit\n    async def write(self, ctx: Context, argument: Note) -> None:\n        pass\n"
            "\n    @write.signers\n"
            "    async def write_signers(self, ctx: Context, argument: Note) -> tuple[bytes, ...]:\n"
            "        return ()\n",
        )
        assert world.check(world.write(1)) is Reason.CONTRACT_FAULT


class TestQuery:
    BODY = submit_of("self.notes.put(ctx, (argument.owner, argument.value), argument)") + (
        "\n    @query\n    async def all(self, ctx: Context, argument: bytes) -> tuple[int, ...]:\n"
        "        values = []\n"
        "        async for _, note in self.notes.items(ctx, argument, 100):\n"
        "            values.append(note.value)\n"
        "        return tuple(values)\n"
    )

    def test_scan_yields_in_the_order_of_keys(self, tmp_path):
        world = NotesWorld(tmp_path, self.BODY)
        for number, value in enumerate((5, 300, 7), start=1):
            assert world.submit(world.write(number, value)) is Reason.VALID
        owner = signing_key("utility").public_key[1:]
        assert world.query("notes", "all", owner) == encode((5, 7, 300))
        assert world.query("notes", "all", b"\xff") == encode(())

    def test_items_are_steps(self, tmp_path):
        world = NotesWorld(tmp_path, self.BODY, parameters=Parameters(contract_steps_max=2))
        for number in (1, 2, 3):
            assert world.submit(world.write(number, number)) is Reason.VALID
        assert world.query("notes", "all", b"") is Reason.STEPS_EXCEEDED

    def test_submit_functions_do_not_scan(self, tmp_path):
        body = submit_of("async for _, note in self.notes.items(ctx, argument.owner, 10):", "    pass")
        world = NotesWorld(tmp_path, body)
        assert world.execute(world.write(1)).reason is Reason.CONTRACT_FAULT

    def test_unknown(self):
        world = World()
        assert world.query("registration", "register", b"") is Reason.UNKNOWN_FUNCTION
        assert world.query("billing", "meter", b"") is Reason.UNKNOWN_CONTRACT
        assert world.query("registration", "contribute", b"junk") is Reason.BAD_ARGUMENT

    def test_contribute_needs_a_node(self):
        world = World()
        party = reporting_meter(world)
        assert world.query("registration", "contribute", encode(party.request(2))) is Reason.NOT_READY


class TestConstruction:
    @pytest.mark.parametrize(
        ("bodies", "what"),
        [
            (("\n    @submit\n    async def write(self, ctx: Context, argument: Note) -> None: pass\n",), "signers"),
            (("    other = View('notes', 'nothing', Note, HASH)\n",), "views notes/nothing"),
            (("    other = View('notes', 'last', Note, ONLY)\n",), "views notes/last"),
            (("    other = View('notes', 'last', int, HASH)\n",), "views notes/last"),
            (("    other = View('elsewhere', 'last', int, ONLY)\n",), "views elsewhere/last"),
            (("    name = 'guard'\n",), "cannot be named 'guard'"),
            (("    name = 'system'\n",), "cannot be named 'system'"),
            (("    name = 'Notes'\n",), "no transaction could name"),
            ((submit_of("pass").replace("write", "Write"),), "no transaction could name"),
        ],
    )
    def test_refused(self, tmp_path, bodies, what):
        loaded = load(tmp_path, *bodies)
        with pytest.raises(InputError, match=what):
            Runtime(loaded, make_genesis())

    def test_grace_must_be_longer_than_the_gap(self):
        with pytest.raises(InputError, match="period_grace_ms"):
            Runtime(package(), make_genesis(Parameters(period_grace_ms=1000, session_gap_ms=1000)))
