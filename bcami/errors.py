"""The exceptions that reach a user, and the exit code each one ends a command with (design, section 4).

    BcamiError
    ├── ExpectationError      1   an expectation failed: a difference, a failed audit
    ├── InputError            2   wrong usage or invalid input: names file, line, key
    ├── InconclusiveError     3   not enough to judge
    ├── EnvironmentFault      4   port taken, store locked, disk full
    └── MalformedError        2   bytes that are not what they should be

Expected refusals by a contract or a node are values (`bcami.model.reasons`), never exceptions.
"""


class BcamiError(Exception):
    """What happened, where, why probably, and what to do."""

    exit_code = 70

    def __init__(self, what: str, *, where: str = "", likely: str = "", do: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.likely = likely
        self.do = do

    def __str__(self) -> str:
        lines = [self.what]
        for label, text in (("where", self.where), ("likely", self.likely), ("do", self.do)):
            if text:
                lines.append(f"  {label + ':':8}{text}")
        return "\n".join(lines)


class ExpectationError(BcamiError):
    """An expectation did not hold."""

    exit_code = 1


class InputError(BcamiError):
    """A file, an option or a value given by the user is not valid."""

    exit_code = 2


class InconclusiveError(BcamiError):
    """Too little was seen to judge."""

    exit_code = 3


class EnvironmentFault(BcamiError):
    """The machine refused: a port, a lock, a disk."""

    exit_code = 4


class MalformedError(InputError):
    """Bytes do not decode to the canonical form of what they should be."""
