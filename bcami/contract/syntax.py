"""What the text of a contract must not hold, so that every node comes to the same outcome (design D6).

The package id is what makes chaincode trusted; these checks keep its authors from mistakes, not from malice. Each one
names file and line. They refuse what could make two nodes differ (floats, hash order, clocks and randomness by any
import, `assert`, state outside the ledger) and what could keep a node busy for ever (`while`, recursion, loops over
long ranges). A forgotten `await` is refused too: a coroutine is true whatever the state.

Not caught: numbers and texts that grow without bound inside a loop, and texts made from objects that show their
address in memory.
"""

import ast
from pathlib import Path
from typing import Final

import bcami.contract as api
from bcami.errors import InputError

# fmt: off
BUILTINS: Final = frozenset((
    "abs", "all", "any", "bool", "bytes", "dict", "divmod", "enumerate", "int", "isinstance", "len",
    "list", "max", "min", "range", "reversed", "sorted", "str", "sum", "tuple", "zip",
))
# fmt: on
"""All that a contract may use of Python's builtins."""

RANGE_MAX: Final = 10_000
"""Longest loop over a range that names its end."""

_SET: Final = ("a set: its order differs from node to node", "use a tuple, or a dict, which keeps its order")
_STATE: Final = ("state outside the ledger", "declare a Map")
_UNKNOWN: Final = "it is neither defined here, nor a builtin that contracts have, nor imported from bcami.contract"

_Function = ast.FunctionDef | ast.AsyncFunctionDef

_REFUSED: Final[dict[type[ast.AST], tuple[str, str]]] = {
    ast.While: ("`while`", "loop over something that has an end: `for`"),
    ast.Global: ("`global`", "keep state in a Map"),
    ast.Nonlocal: ("`nonlocal`", "keep state in a Map"),
    ast.Set: _SET,
    ast.SetComp: _SET,
    ast.Try: ("`try`: it could hide the end of the steps", "ask first, with `require`"),
    ast.TryStar: ("`try`: it could hide the end of the steps", "ask first, with `require`"),
    ast.Raise: ("`raise`", "refuse with `require`"),
    ast.Assert: ("`assert`: it depends on how Python was started", "refuse with `require`"),
    ast.With: ("`with`", "a contract holds no resources"),
    ast.AsyncWith: ("`async with`", "a contract holds no resources"),
    ast.Lambda: ("`lambda`", "write a method"),
    ast.Yield: ("`yield`", "return a tuple"),
    ast.YieldFrom: ("`yield`", "return a tuple"),
    ast.Import: ("`import`", "write `from bcami.contract import …`"),
    ast.NamedExpr: ("`:=`", "assign on a line of its own"),
    ast.Delete: ("`del`", "use `Map.delete`"),
}


class _Finding(Exception):
    """The first thing that is refused."""

    def __init__(self, node: ast.AST, what: str, do: str) -> None:
        super().__init__(what)
        self.line: int = getattr(node, "lineno", 1)
        self.what = what
        self.do = do


def check_syntax(path: Path, source: bytes) -> None:
    """Raise InputError, with file and line, for the first thing that a contract must not hold."""
    try:
        tree = ast.parse(source, filename=str(path))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise InputError(f"the contract is no valid Python: {error}", where=f"{path}:{line}") from None
    try:
        _check_module(tree)
        for node in ast.walk(tree):
            for child in ast.iter_child_nodes(node):
                _check_node(child, node)
        _check_names(tree)
        _check_calls(tree)
    except _Finding as finding:
        raise InputError(
            f"a contract must not hold {finding.what}", where=f"{path}:{finding.line}", do=finding.do
        ) from None


# The shape of a file: imports, constants, classes of the API, functions.


def _check_module(tree: ast.Module) -> None:
    for statement in tree.body:
        match statement:
            case ast.ImportFrom():
                _check_import(statement)
            case ast.ClassDef():
                _check_class(statement)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                if statement.decorator_list:
                    raise _Finding(statement, "a decorated function", "decorate methods of a Contract")
            case ast.Assign(value=value) | ast.AnnAssign(value=value) if value is not None and _is_constant(value):
                pass
            case ast.Assign() | ast.AnnAssign():
                raise _Finding(statement, *_STATE)
            case ast.Expr(value=ast.Constant(value=str())):
                pass
            case _:
                found = _REFUSED.get(type(statement), ("code that runs when it is loaded", "put it into a function"))
                raise _Finding(statement, *found)


def _check_import(statement: ast.ImportFrom) -> None:
    if statement.module != "bcami.contract" or statement.level:
        module = "." * statement.level + (statement.module or "")
        raise _Finding(statement, f"an import from {module}", "import from bcami.contract only")
    for alias in statement.names:
        if alias.name not in api.__all__:
            raise _Finding(statement, f"an import of {alias.name}", "bcami.contract.__all__ lists what there is")


def _check_class(statement: ast.ClassDef) -> None:
    match statement.bases:
        case [ast.Name(id="Contract" | "Record")] if not statement.keywords and not statement.decorator_list:
            pass
        case _:
            raise _Finding(statement, "a class that is not just a Contract or a Record", "derive it from one of them")
    for part in statement.body:
        match part:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                _check_decorators(part)
            case ast.AnnAssign(value=None) | ast.Expr(value=ast.Constant(value=str())) | ast.Pass():
                pass
            case ast.Assign(value=value) | ast.AnnAssign(value=value) if value is not None and _is_declaration(value):
                pass
            case ast.Assign() | ast.AnnAssign():
                raise _Finding(part, *_STATE)
            case _:
                raise _Finding(part, "code in the body of a class", "put it into a method")


def _check_decorators(function: _Function) -> None:
    for decorator in function.decorator_list:
        match decorator:
            case ast.Name(id="submit" | "query") | ast.Attribute(value=ast.Name(), attr="signers"):
                if isinstance(function, ast.FunctionDef):
                    raise _Finding(function, f"{function.name} without `async`", "write `async def`")
            case _:
                raise _Finding(decorator, "this decorator", "there are @submit, @query and @<submit function>.signers")


def _is_constant(value: ast.expr) -> bool:
    match value:
        case ast.Constant() | ast.Name():
            return True
        case ast.Tuple(elts=parts):
            return all(_is_constant(part) for part in parts)
        case ast.UnaryOp(operand=operand):
            return _is_constant(operand)
        case ast.BinOp(left=left, right=right):
            return _is_constant(left) and _is_constant(right)
        case _:
            return False


def _is_declaration(value: ast.expr) -> bool:
    match value:
        case ast.Call(func=ast.Name(id="Map" | "View")):
            return True
        case _:
            return _is_constant(value)


# Each node for itself, and what stands around it.


def _check_node(node: ast.AST, parent: ast.AST) -> None:
    refused = _REFUSED.get(type(node))
    if refused is not None:
        raise _Finding(node, *refused)
    match node:
        case ast.Constant(value=float() | complex()):
            raise _Finding(node, "a float", "count in whole units")
        case ast.BinOp(left=left, op=operator, right=right):
            _check_operator(node, operator, literal=_is_integer(left) and _is_integer(right))
        case ast.AugAssign(op=operator):
            _check_operator(node, operator, literal=False)
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            _check_function(node, parent)
        case ast.Attribute():
            _check_attribute(node, parent)
        case ast.Call(func=ast.Name(id="range"), args=bounds) if not all(_is_bound(bound) for bound in bounds):
            raise _Finding(node, "a range without a known end", f"use len(…) or a number up to {RANGE_MAX}")
        case ast.Call(func=ast.Attribute(attr="items")) if not _is_walked(node, parent):
            raise _Finding(node, "`.items()` outside a loop: it can become a set", "loop over it")
        case ast.Subscript(value=value, ctx=ast.Store()) if not isinstance(value, ast.Name):
            raise _Finding(node, "a change of what is not a local name", "keep state in a Map")


def _check_operator(node: ast.AST, operator: ast.operator, *, literal: bool) -> None:
    if isinstance(operator, ast.Div):
        raise _Finding(node, "`/`: it makes a float", "use `//`")
    if isinstance(operator, ast.Pow) and not literal:
        raise _Finding(node, "`**`: it can make a float, or a number without bound", "write the number")


def _is_integer(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int


def _check_function(function: _Function, parent: ast.AST) -> None:
    if not isinstance(parent, ast.ClassDef | ast.Module):
        raise _Finding(function, "a function in a function", "write a method")
    if function.name.startswith("__"):
        raise _Finding(function, f"`{function.name}`", "a contract has no special methods")
    for default in (*function.args.defaults, *function.args.kw_defaults):
        if default is not None and not _is_constant(default):
            raise _Finding(default, "a default that is no constant", "pass it")


def _check_attribute(node: ast.Attribute, parent: ast.AST) -> None:
    if node.attr.startswith("__"):
        raise _Finding(node, f"`.{node.attr}`", "use the contract API")
    if not isinstance(node.ctx, ast.Load):
        raise _Finding(node, "an attribute that is set: it would be state outside the ledger", "keep state in a Map")
    if node.attr == "keys":
        raise _Finding(node, "`.keys`: it can become a set", "loop over the dict itself")
    if node.attr == "items" and not isinstance(parent, ast.Call):
        raise _Finding(node, "`.items` that is not called", "call it in a loop")


def _is_bound(bound: ast.expr) -> bool:
    match bound:
        case ast.Constant(value=int(value)) | ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value))):
            return value <= RANGE_MAX
        case ast.Call(func=ast.Name(id="len")):
            return True
        case _:
            return False


def _is_walked(node: ast.Call, parent: ast.AST) -> bool:
    match parent:
        case ast.For() | ast.AsyncFor() | ast.comprehension():
            return parent.iter is node
        case ast.Call(func=ast.Name(id="sorted" | "tuple" | "list" | "enumerate")):
            return True
        case _:
            return False


# The names of a file, and who calls whom.


def _check_names(tree: ast.Module) -> None:
    """Every name is a builtin of the list, imported, defined here or local: so there is no `eval`, no `hash`."""
    known = set(BUILTINS)
    for statement in tree.body:
        match statement:
            case ast.ImportFrom(names=names):
                known |= {alias.asname or alias.name for alias in names}
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                known.add(name)
            case ast.Assign() | ast.AnnAssign():
                known |= _stored(statement)
            case _:
                pass
    _check_names_in(tree, known, methods=set())


def _check_names_in(node: ast.AST, known: set[str], methods: set[str]) -> None:
    if isinstance(node, ast.ClassDef):
        # Only a decorator may name a method: `@report.signers`.
        methods = {part.name for part in node.body if isinstance(part, _Function)}
    if isinstance(node, _Function):
        for decorator in node.decorator_list:
            _check_names_in(decorator, known | methods, methods)
        arguments = {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
        known = known | arguments | _stored(node)
    if isinstance(node, ast.Name):
        if isinstance(node.ctx, ast.Load) and node.id not in known:
            raise _Finding(node, f"`{node.id}`", _UNKNOWN)
        if isinstance(node.ctx, ast.Store) and node.id in BUILTINS:
            raise _Finding(node, f"a new meaning of `{node.id}`", "choose another name")
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name != "decorator_list":
                _check_names_in(child, known, methods)


def _stored(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}


def _check_calls(tree: ast.Module) -> None:
    """Refuse a forgotten `await`, and calls that come back to where they started."""
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, _Function)}
    calls: dict[str, set[str]] = {name: set() for name in functions}
    for name, function in functions.items():
        for parent in ast.walk(function):
            for node in ast.iter_child_nodes(parent):
                called = _called(node)
                waits = called == "" or isinstance(functions.get(called or ""), ast.AsyncFunctionDef)
                if waits and not isinstance(parent, ast.Await):
                    raise _Finding(node, "a call of an async function without `await`", "write `await` before it")
                if called in functions:
                    calls[name].add(called)
    for name, function in functions.items():
        reached: set[str] = set()
        ahead = calls[name]
        while ahead:
            reached |= ahead
            ahead = set().union(*(calls[other] for other in ahead)) - reached
        if name in reached:
            raise _Finding(function, f"recursion: {name} comes back to itself", "loop over a tuple")


def _called(node: ast.AST) -> str | None:
    """Return the name of the function or method of this file that is called, "" for a read of state, or None."""
    match node:
        case ast.Call(func=ast.Name(id=name)) | ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name)):
            return name
        case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Name(id="ctx"), *_]):
            return ""
        case _:
            return None
