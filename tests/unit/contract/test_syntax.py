"""Every thing that a contract must not hold is refused with its file and line."""

import re
from pathlib import Path

import pytest

from bcami.contract.syntax import BUILTINS, check_syntax
from bcami.errors import InputError

HEAD = """from bcami.contract import HASH, Context, Contract, Map, Record, Reason, View, found, query, require, submit
LIMIT = 2**20
NAMES = ("a", "b")


class Notes(Contract):
    name = "notes"
    notes = Map(int, HASH)
    FIRST = -1

    @submit
    async def write(self, ctx: Context, argument: bytes) -> None:
"""
TAIL = """
    @write.signers
    async def write_signers(self, ctx: Context, argument: bytes) -> tuple[bytes, ...]:
        return (argument,)

    async def _owner(self, ctx: Context) -> bytes:
        return b""

    def _limit(self, number: int) -> int:
        return number


def double(number: int) -> int:
    return number * 2
"""
API = "from bcami.contract import Contract\n"
LINE = HEAD.count("\n") + 1


def check(text: str) -> None:
    check_syntax(Path("chain/notes.py"), text.encode())


def in_function(*lines: str) -> str:
    return HEAD + "".join(f"        {line}\n" for line in lines) + TAIL


@pytest.mark.parametrize(
    "lines",
    [
        ["pass"],
        [
            "value = found(await self.notes.get(ctx, argument), Reason.MALFORMED)",
            "self.notes.put(ctx, argument, value)",
        ],
        ["total = 0", "for part in (1, 2, 3):", "    total += part"],
        ["for i in range(len(argument)):", "    require(i < LIMIT, Reason.MALFORMED)"],
        ["for i in range(-5, 10000, 2):", "    double(self._limit(i))"],
        ["table = {1: 2}", "for key, value in table.items():", "    table[key] = value // 2"],
        [
            "pairs = sorted({b'a': 1}.items())",
            "numbers = [x & 1 for x in argument if x > 1]",
            "require(pairs, numbers)",
        ],
        ["require(await self._owner(ctx) == argument, Reason.NOT_AUTHORIZED)"],
        ["match argument:", "    case b'':", "        return", "    case _:", "        pass"],
        ["text = f'{len(argument)}'", "require(text, Reason.MALFORMED)"],
        ["if argument and not ctx.session:", "    return"],
    ],
)
def test_fine(lines):
    check(in_function(*lines))


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        (["while True:", "    pass"], "`while`"),
        (["x = 0.5"], "a float"),
        (["x = 2j"], "a float"),
        (["x = 1 / 2"], "`/`"),
        (["x = 1", "x /= 2"], "`/`"),
        (["x = len(argument) ** 2"], "`**`"),
        (["x = float(1)"], "`float`"),
        (["x = {1, 2}"], "a set"),
        (["for x in {b for b in argument}:", "    pass"], "a set"),
        (["for x in set(argument):", "    pass"], "`set`"),
        (["x = frozenset(argument)"], "`frozenset`"),
        (["x = {}.keys() & {}.keys()"], "`.keys`"),
        (["x = {}.items() & {}.items()"], "`.items()` outside a loop"),
        (["x = {}.items"], "`.items` that is not called"),
        (["eval('1')"], "`eval`"),
        (["exec('1')"], "`exec`"),
        (["open('x')"], "`open`"),
        (["x = hash(argument)"], "`hash`"),
        (["x = id(argument)"], "`id`"),
        (["print(argument)"], "`print`"),
        (["x = getattr(ctx, 'time_ms')"], "`getattr`"),
        (["x = __import__('time')"], "`__import__`"),
        (["x = globals()"], "`globals`"),
        (["x = type(argument)"], "`type`"),
        (["x = self.__class__"], "`.__class__`"),
        (["import time"], "`import`"),
        (["global LIMIT", "LIMIT = 1"], "`global`"),
        (["self.count = 1"], "an attribute that is set"),
        (["self.notes.cache = 1"], "an attribute that is set"),
        (["ctx.writes[b'k'] = b'v'"], "a change of what is not a local name"),
        (["try:", "    pass", "finally:", "    pass"], "`try`"),
        (["try:", "    pass", "except* TypeError:", "    pass"], "`try`"),
        (["raise Reason"], "`raise`"),
        (["assert argument"], "`assert`"),
        (["with ctx:", "    pass"], "`with`"),
        (["async with ctx:", "    pass"], "`async with`"),
        (["x = lambda: 1"], "`lambda`"),
        (["yield 1"], "`yield`"),
        (["if (x := 1):", "    pass"], "`:=`"),
        (["x = 1", "del x"], "`del`"),
        (["def inner() -> None:", "    pass"], "a function in a function"),
        (["for i in range(10001):", "    pass"], "a range without a known end"),
        (["for i in range(ctx.sequence):", "    pass"], "a range without a known end"),
        (["len = 1"], "a new meaning of `len`"),
        (["require(self.notes.get(ctx, argument), Reason.MALFORMED)"], "without `await`"),
        (["self._owner(ctx)"], "without `await`"),
        (["require(unknown, Reason.MALFORMED)"], "`unknown`"),
    ],
)
def test_refused_in_a_function(lines, what):
    with pytest.raises(InputError, match=re.escape(what)) as caught:
        check(in_function(*lines))
    path, line = caught.value.where.rsplit(":", 1)
    assert path == "chain/notes.py"
    assert LINE <= int(line) < LINE + len(lines)
    assert caught.value.do


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("import time\n", 1, "`import`"),
        ("from time import time\n", 1, "an import from time"),
        ("from . import other\n", 1, "an import from ."),
        ("from bcami.crypto.keys import SecretKey\n", 1, "an import from bcami.crypto.keys"),
        ("from bcami.contract import runtime\n", 1, "an import of runtime"),
        ("from bcami.contract import *\n", 1, "an import of *"),
        ("from __future__ import annotations\n", 1, "an import from __future__"),
        ("\nSEEN = []\n", 2, "state outside the ledger"),
        ("SEEN = dict()\n", 1, "state outside the ledger"),
        ("x: list\n", 1, "state outside the ledger"),
        ("if True:\n    x = 1\n", 1, "code that runs when it is loaded"),
        ("for x in (1,):\n    pass\n", 1, "code that runs when it is loaded"),
        ("while True:\n    pass\n", 1, "`while`"),
        ("class A:\n    pass\n", 1, "not just a Contract or a Record"),
        ("class A(dict):\n    pass\n", 1, "not just a Contract or a Record"),
        ("@submit\nclass A(Contract):\n    pass\n", 2, "not just a Contract or a Record"),
        ("class A(Contract):\n    seen = {}\n", 2, "state outside the ledger"),
        ("class A(Contract):\n    if True:\n        pass\n", 2, "code in the body of a class"),
        ("class A(Contract):\n    @property\n    def a(self):\n        pass\n", 2, "this decorator"),
        ("class A(Contract):\n    @submit\n    def a(self):\n        pass\n", 3, "a without `async`"),
        ("class A(Contract):\n    def __init__(self):\n        pass\n", 2, "`__init__`"),
        ("class A(Contract):\n    def a(self, x=[]):\n        pass\n", 2, "a default that is no constant"),
        (API + "class A(Contract):\n    name = other\n", 3, "`other`"),
        ("@cache\ndef a():\n    pass\n", 2, "a decorated function"),
        ("def a():\n    return a()\n", 1, "recursion: a comes back to itself"),
        ("def a():\n    b()\ndef b():\n    c()\ndef c():\n    a()\n", 1, "recursion: a"),
        (
            API + "class A(Contract):\n    def a(self):\n        self.b()\n    def b(self):\n        self.a()\n",
            3,
            "recursion",
        ),
        ("def a(:\n", 1, "no valid Python"),
        ("x = 1\n\x00", 1, "no valid Python"),
    ],
)
def test_refused_in_a_file(text, line, what):
    with pytest.raises(InputError, match=re.escape(what)) as caught:
        check(text)
    assert caught.value.where == f"chain/notes.py:{line}"


def test_builtins_hold_nothing_that_differs_between_nodes():
    assert not BUILTINS & {
        "set",
        "frozenset",
        "hash",
        "id",
        "float",
        "complex",
        "open",
        "eval",
        "exec",
        "getattr",
        "type",
    }
