"""Memory that was freed goes back to the system, so that a process is as large as what it holds."""

import ctypes
import sys
from typing import Any, Final

TRIM_S: Final = 5.0
"""Between two calls. The allocator's holes grow by some megabytes a minute under load; a call takes milliseconds."""


class Trimmer:
    """Asks the C library for what it keeps of freed memory; does nothing where it cannot be asked (not glibc)."""

    def __init__(self) -> None:
        self._trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None

    def trim(self) -> bool:
        """Give back free pages anywhere in the heap; True when there were some."""
        return self._trim is not None and bool(self._trim(ctypes.c_size_t(0)))
