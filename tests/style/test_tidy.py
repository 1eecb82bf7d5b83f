"""The rules that ruff and mypy cannot say (style.md, section 5). Each message tells what to do instead.

Every rule is a function from one file to its findings, and is itself tested on a line that breaks it, so that no rule
can go quiet. Sizes are reported (`pytest -rP tests/style`), never failed.
"""

import ast
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
FOLDERS = ("bcami", "chaincode", "datasets", "tests")

SHELL = (
    "bcami/cli/",
    "bcami/processes/",
    "bcami/gateway/",
    "bcami/mdms/",
    "bcami/report/",  # it measures
    "bcami/replay/",
    "bcami/ami/",
    "bcami/client/",
    "bcami/node/driver.py",
    "bcami/node/transport.py",
    "bcami/ledger/audit.py",  # waits for its child process
    "bcami/crypto/tls.py",  # certificates are valid from now on
    "tests/",
    "datasets/",
)
"""Where a clock may be read; everything below gets the time as an argument."""
ENTRY_POINTS = {
    "bcami.cli.main",
    "bcami.cli.bench",
    "bcami.processes.node",
    "bcami.processes.mdms",
    "bcami.processes.attached",
    "bcami.contract.fabric",
}
"""Modules that are started or loaded by name."""
ABBREVIATIONS = {
    "msg": "message",
    "cfg": "config or the thing configured",
    "mgr": "what it does",
    "util": "what it does",
    "utils": "what it does",
    "helper": "what it does",
    "helpers": "what it does",
    "seqno": "sequence",
}
UNITS = {"seconds": "_s", "milliseconds": "_ms", "ms": "_ms", "bytes": "_bytes", "kwh": "_kwh"}

Finding = tuple[int, str]
Rule = Callable[[str, str, ast.Module], Iterator[Finding]]


def naming(name: str, text: str, tree: ast.Module) -> Iterator[Finding]:
    """Words are written out."""
    for node in ast.walk(tree):
        match node:
            case (
                ast.FunctionDef(name=word)
                | ast.AsyncFunctionDef(name=word)
                | ast.ClassDef(name=word)
                | ast.arg(arg=word)
            ):
                pass
            case ast.Name(id=word, ctx=ast.Store()):
                pass
            case _:
                continue
        for part in re.findall(r"[A-Z]?[a-z]+", word):
            if part.lower() in ABBREVIATIONS:
                yield node.lineno, f"{word!r}: say {ABBREVIATIONS[part.lower()]!r} instead of {part!r}"


def clocks(name: str, text: str, tree: ast.Module) -> Iterator[Finding]:
    """Time is a parameter below the shell."""
    if name.startswith(SHELL):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            read = f"{node.value.id}.{node.attr}"
            if read in {"datetime.now", "datetime.utcnow", "time.time", "time.time_ns", "time.monotonic"}:
                yield node.lineno, f"{read}: take the time as an argument"


def prints(name: str, text: str, tree: ast.Module) -> Iterator[Finding]:
    """Only the command line and data generators print."""
    if name.startswith(("bcami/cli/", "datasets/", "tests/")):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield node.lineno, "print: return the text, log it, or emit an observation"


def silence(name: str, text: str, tree: ast.Module) -> Iterator[Finding]:
    """Nothing is swallowed or ignored without saying what and why."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and [type(item) for item in node.body] == [ast.Pass]:
            yield node.lineno, "except … pass: handle it, or say contextlib.suppress with the narrowest exception"
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(r"#\s*type:\s*ignore(?!\[)", line):
            yield number, "type: ignore without a code: say which, type: ignore[code]"
        if re.search(r"#\s*noqa(?!: [A-Z])", line):
            yield number, "noqa without a code: say which rule, and why"


def promises(name: str, text: str, tree: ast.Module) -> Iterator[Finding]:
    """Nothing is left for later in the code."""
    for number, line in enumerate(text.splitlines(), 1):
        found = re.search(r"\b(TODO|FIXME|XXX|HACK)\b", line)
        if found and not re.search(r"#\d+", line):
            yield number, f"{found[1]}: do it, or open an issue and name its number"


def machines(name: str, text: str, tree: ast.Module) -> Iterator[Finding]:
    """No file knows the machine that it was written on."""
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(r"[\"' ]/(?:work|root|home)/", line):
            yield number, "a path of one machine: find it relative to the file, or take it as an option"


def sleeps(name: str, text: str, tree: ast.Module) -> Iterator[Finding]:
    """Tests wait for what they expect."""
    if not name.startswith("tests/"):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"time.sleep", "sleep"}:
            yield node.lineno, "a sleep in a test: wait for the event, with a limit"


def units(name: str, text: str, tree: ast.Module) -> Iterator[Finding]:
    """A constant that a comment gives a unit has it in its name."""
    for number, line in enumerate(text.splitlines(), 1):
        found = re.match(r"([A-Z][A-Z0-9_]*)(?:: [^=]+)? = [\d_.]+\s+#\s*(\w+)\b", line)
        if found and found[2].lower() in UNITS and not re.search(r"_(S|MS|BYTES|KWH)(_|$)", found[1]):
            yield number, f"{found[1]}: put the unit into the name ({found[1]}{UNITS[found[2].lower()].upper()})"


RULES: dict[Rule, str] = {
    naming: "def send_msg(): ...",
    clocks: "import time\nnow = time.time()",
    prints: "print(1)",
    silence: "try:\n    f()\nexcept ValueError:\n    pass",
    promises: "# " + "TODO later",
    machines: "place = '/work" + "/main'",
    sleeps: "import time\ntime.sleep(1)",
    units: "TIMEOUT = 10  # seconds",
}


def sources() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (TOP / folder).rglob("*.py"))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_sources_keep_the_rule(rule: Rule) -> None:
    findings = []
    for path in sources():
        name, text = path.relative_to(TOP).as_posix(), path.read_text(encoding="utf-8")
        findings += [f"{name}:{line}: {what}" for line, what in rule(name, text, ast.parse(text))]
    findings = [item for item in findings if not item.startswith("tests/style/test_tidy.py:")]
    assert not findings, "\n" + "\n".join(findings)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_finds_what_breaks_it(rule: Rule) -> None:
    name = "tests/test_x.py" if rule is sleeps else "bcami/model/x.py"
    assert list(rule(name, RULES[rule], ast.parse(RULES[rule])))


def test_every_module_is_imported_somewhere() -> None:
    modules = {
        path.relative_to(TOP).with_suffix("").as_posix().replace("/", ".") for path in (TOP / "bcami").rglob("*.py")
    }
    modules = {name for name in modules if not name.endswith(("__init__", "__main__"))}
    imported: set[str] = set(ENTRY_POINTS)
    for path in (*(TOP / "bcami").rglob("*.py"), *(TOP / "chaincode").rglob("*.py")):
        package = path.relative_to(TOP).parent.as_posix().replace("/", ".")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                origin = node.module or ""
                if node.level:
                    origin = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1] + [origin]).rstrip(
                        "."
                    )
                imported |= {origin} | {f"{origin}.{alias.name}" for alias in node.names}
    started = set()
    for path in (TOP / "bcami").rglob("*.py"):
        started |= set(re.findall(r"\"(bcami(?:\.\w+)+)\"", path.read_text(encoding="utf-8")))
    unused = sorted(modules - imported - started)
    assert not unused, f"imported by nothing (delete them, or use them): {', '.join(unused)}"


def test_sizes_are_reported() -> None:
    """Not a limit: a hard one invites one bag object. Read it with `pytest -rP tests/style`."""
    lengths, functions = {}, {}
    for path in (TOP / "bcami").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(TOP).as_posix()
        lengths[name] = text.count("\n")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions[f"{name}:{node.name}"] = (node.end_lineno or node.lineno) - node.lineno + 1
    for title, sizes in (("file", lengths), ("function", functions)):
        longest = sorted(sizes, key=lambda key: -sizes[key])[:5]
        print(
            f"{title}: median {statistics.median(sizes.values())} lines; longest:",
            *(f"{key} {sizes[key]}" for key in longest),
        )
    assert lengths
    assert functions
