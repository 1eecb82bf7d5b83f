"""What a report was measured on: the machine, the versions, and how busy it was."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Final

from bcami import __version__
from bcami.processes.cpu import cores

_PACKAGES: Final = ("coincurve", "cryptography", "ecdsa", "py-ecc", "lmdb", "duckdb", "msgspec", "matplotlib")


def describe_machine() -> dict[str, str]:
    """Return what a reader needs to judge figures of this machine; says nothing that names it."""
    return {
        "processor": _processor(),
        "cores": str(cores()),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Return the versions of what was measured; a package that is not installed says so."""
    found = {"bcami": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def load_text() -> str:
    """Return how much runs beside: what wall-clock figures have to be read with."""
    try:
        one, five, _ = os.getloadavg()
    except OSError:
        return "not known on this system"
    return f"load average {one:.1f} (1 min), {five:.1f} (5 min) on {cores()} cores when the report began"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        return platform.processor() or "unknown"
    return platform.processor() or platform.machine()


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return "unknown"
    return f"{size / 2**30:.1f} GiB"
