"""Ports: is one free, who holds it, and where are enough free ones in a row."""

import contextlib
import errno
import secrets
import socket
from pathlib import Path
from typing import Final

from bcami.config import Network, addresses
from bcami.errors import EnvironmentFault

_FREE_FROM: Final = 10_000
_FREE_TO: Final = 32_000
"""Below the range that Linux uses for outgoing connections, which could take a port between the check and its use."""
_TRIES: Final = 200


def is_free(host: str, port: int) -> bool:
    """Tell whether a server could listen there now. Raises EnvironmentFault when the address is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno in {errno.EADDRINUSE, errno.EACCES}:
                return False
            raise EnvironmentFault(
                f"nothing can listen on {host}:{port}: {error.strerror or error}",
                likely="the host in network.toml is not an address of this machine",
            ) from None
    return True


def check_free(network: Network, wanted: set[str]) -> None:
    """Check every port of the processes in `wanted`. Raises EnvironmentFault naming the port and who holds it."""
    for whose, host, port in addresses(network):
        if whose.partition(" ")[0] in wanted and not is_free(host, port):
            raise EnvironmentFault(
                f"port {port} on {host} is taken; {whose} needs it",
                likely=holder(port) or "another program, or another bcami network, listens there",
                do="stop that program, or make a network on other ports: bcami init --base-port N",
            )


def free_base_port(count: int) -> int:
    """Return a port from which on `count` ports are free now on 127.0.0.1."""
    for _ in range(_TRIES):
        base = _FREE_FROM + secrets.randbelow(_FREE_TO - _FREE_FROM - count)
        if all(is_free("127.0.0.1", port) for port in range(base, base + count)):
            return base
    raise EnvironmentFault(f"found no {count} free ports in a row", where="127.0.0.1")


def holder(port: int) -> str:
    """Return a line about the process that listens on a port, as far as this user may see it; "" when unknown."""
    inodes = _listening_inodes(port)
    if not inodes:
        return ""
    for process in Path("/proc").glob("[0-9]*"):
        if _open_files(process) & inodes:
            with contextlib.suppress(OSError):  # it may end at any moment
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                return f"process {process.name} listens there: {command[:120]}"
    return ""


def _open_files(process: Path) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):  # of another user, or gone
        for entry in (process / "fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                found.add(str(entry.readlink()))
    return found


def _listening_inodes(port: int) -> set[str]:
    listening = "0A"
    found = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        try:
            rows = table.read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            if fields[3] == listening and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(f"socket:[{fields[9]}]")
    return found
