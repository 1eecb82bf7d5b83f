"""How long ago something was, from a wall clock that may be set back."""


class Elapsed:
    """Milliseconds that passed since the node started.

    A clock that is set back stands still for that one step and goes on from there: nothing that waits for a time to
    pass (a resend, a request, patience) waits for the clock to catch up with where it was.
    """

    def __init__(self) -> None:
        self.ms = 0
        self._read_ms: int | None = None

    def advance(self, now_ms: int) -> int:
        """Take a reading of the wall clock; returns the milliseconds that passed so far."""
        if self._read_ms is not None and now_ms > self._read_ms:
            self.ms += now_ms - self._read_ms
        self._read_ms = now_ms
        return self.ms
