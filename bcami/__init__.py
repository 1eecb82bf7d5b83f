"""A permissioned-blockchain backend for smart metering."""

__version__ = "0.1.0"

EXECUTION_VERSION = 1
"""Version of the rules that decide outcomes; recorded in genesis, a node of another version refuses to start."""
