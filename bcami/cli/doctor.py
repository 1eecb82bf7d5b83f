"""doctor: checks the machine and a network's home, and says what to do about each finding."""

import os
import platform
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from bcami.cli.options import HOME_DEFAULT, Home, Json, home_paths
from bcami.cli.screen import SCREEN

if TYPE_CHECKING:
    from bcami.paths import HomePaths

_DISK_MIB_MIN = 512
_FILES_MIN = 1024


class Finding(NamedTuple):
    check: str
    verdict: str
    """ok, warning or fault."""
    detail: str
    do: str = ""


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(doctor)


def doctor(home: Home = HOME_DEFAULT, json: Json = False) -> None:
    """Check this machine and the network's home: versions, disk, limits, keys, chaincode, ports, processes.

    Example: bcami doctor
    """
    from bcami.errors import EnvironmentFault

    paths = home_paths(home)
    findings = [_python(), _machine(), _disk(paths), _files(), *_libraries()]
    if paths.network.exists():
        findings += _home_findings(paths)
    else:
        findings.append(Finding("home", "warning", f"no network in {paths.folder}", "bcami init"))
    for finding in findings:
        sign = {"ok": "ok     ", "warning": "warning", "fault": "FAULT  "}[finding.verdict]
        SCREEN.line(
            f"{sign} {finding.check:12} {finding.detail}" + (f"\n{'':21}do: {finding.do}" if finding.do else "")
        )
    faults = [finding.check for finding in findings if finding.verdict == "fault"]
    SCREEN.result("bcami/doctor/1", {"ok": not faults, "findings": [finding._asdict() for finding in findings]})
    if faults:
        raise EnvironmentFault(f"something is wrong with: {', '.join(faults)}", do="see the lines above")


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")


def _machine() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    verdict = "ok" if cores > 1 else "warning"
    return Finding("machine", verdict, f"{platform.system()} {platform.machine()}, {cores} cores for this process")


def _disk(paths: "HomePaths") -> Finding:
    place = next(folder for folder in (paths.folder, *paths.folder.parents) if folder.exists())
    free_mib = shutil.disk_usage(place).free >> 20
    if free_mib < _DISK_MIB_MIN:
        return Finding(
            "disk", "fault", f"{free_mib} MiB free at {place}", "free some space; a node stops when it is out"
        )
    return Finding("disk", "ok", f"{free_mib} MiB free at {place}")


def _files() -> Finding:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= limit < _FILES_MIN:
        return Finding("open files", "warning", f"limit {limit}", f"ulimit -n {_FILES_MIN}")
    return Finding("open files", "ok", "no limit" if limit < 0 else f"limit {limit}")


def _libraries() -> list[Finding]:
    import importlib

    findings = []
    for name in ("coincurve", "cryptography", "blake3", "lmdb", "duckdb", "msgspec", "pyarrow", "uvicorn"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            findings.append(
                Finding("libraries", "fault", f"{name}: {error}", "make install, or pip install bcami again")
            )
    return findings or [Finding("libraries", "ok", "all there")]


def _home_findings(paths: "HomePaths") -> list[Finding]:
    from bcami.processes.home import load_mdms_secrets, load_node_secrets, load_utility, open_home

    findings = [_tried("definition", lambda: open_home(paths) and str(paths.network))]
    if findings[0].verdict == "fault":
        return findings
    network, genesis = open_home(paths)
    findings.append(_tried("chaincode", lambda: _chaincode(paths.chaincode, genesis.chaincode_package)))
    findings.append(_tried("utility", lambda: load_utility(paths) and "keys are there"))
    findings.append(_tried("mdms", lambda: load_mdms_secrets(paths) and "keys are there"))
    for place, node in enumerate(network.nodes):

        def check(name: str = node.name, pinned: bytes = genesis.members[place].consensus_key) -> str:
            return _node(paths, name, load_node_secrets(paths.node(name)).consensus.public_key == pinned)

        findings.append(_tried(node.name, check))
    return [*findings, *_votes(paths), *_ports(paths)]


def _chaincode(folder: Path, pinned: bytes) -> str:
    from bcami.contract.package import load_package

    load_package(folder, pinned)
    return f"package {pinned.hex()[:16]}… as genesis pins it"


def _node(paths: "HomePaths", name: str, is_pinned: bool) -> str:
    from bcami.errors import InputError
    from bcami.processes.amnesia import has_lost_votes
    from bcami.processes.identity import running

    if not is_pinned:
        raise InputError("the consensus key is not the one in genesis", do="restore the node's own folder")
    identity = running(paths.node(name).pid)
    stores = "keys are there, promises are lost" if has_lost_votes(paths.node(name)) else "keys and promises are there"
    return f"{stores}, " + (f"runs as pid {identity.pid}" if identity else "not running")


def _votes(paths: "HomePaths") -> list[Finding]:
    """Say which nodes have lost their vote log: a warning while the network can order, a fault when it cannot."""
    from bcami.config import load_network
    from bcami.processes.amnesia import amnesia_lines, amnesia_summary, lost_votes

    network = load_network(paths)
    summary = amnesia_summary(lost_votes(paths, network), len(network.nodes))
    verdict = "warning" if summary["can_order"] else "fault"
    do = "lose no other; leave it running as a reader" if summary["can_order"] else "read the chain, and make a new one"
    return [Finding("vote logs", verdict, line, do) for line in amnesia_lines(summary)]


def _ports(paths: "HomePaths") -> list[Finding]:
    from bcami.config import addresses, load_network
    from bcami.processes.identity import running
    from bcami.processes.ports import holder, is_free
    from bcami.processes.supervisor import services

    network = load_network(paths)
    stopped = {service.name for service in services(paths, network) if running(service.pid_file) is None}
    taken = [
        f"{port} ({whose}) {holder(port)}".rstrip()
        for whose, host, port in addresses(network)
        if whose.partition(" ")[0] in stopped and not is_free(host, port)
    ]
    if taken:
        return [Finding("ports", "fault", "taken: " + "; ".join(taken), "stop that program, or use other ports")]
    return [Finding("ports", "ok", "free, or held by this network")]


def _tried(check: str, attempt: Callable[[], object]) -> Finding:
    from bcami.errors import BcamiError

    try:
        return Finding(check, "ok", str(attempt()))
    except BcamiError as error:
        return Finding(check, "fault", error.what + (f" ({error.where})" if error.where else ""), error.do)
