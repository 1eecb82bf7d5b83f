"""What holds for all tests: which of them wait for BCAMI_TEST_ALL, under which a skip is a failure.

Examples of hypothesis are the same in every run of the suite, so that nobody's change fails by another's luck; new ones
are drawn by `make soak`, and no example has a time limit.
"""

import os
import signal
from collections.abc import Generator

import hypothesis
import pytest

EVERYTHING = bool(os.environ.get("BCAMI_TEST_ALL"))
SOAK = "BCAMI_FUZZ_EXAMPLES" in os.environ

hypothesis.settings.register_profile(
    "suite", deadline=None, derandomize=True, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("soak", deadline=None)
hypothesis.settings.load_profile("soak" if SOAK else "suite")


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A suite that a shell runs in the background ignores Ctrl-C, and so would every process that a test interrupts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "thorough: takes long; runs when BCAMI_TEST_ALL is set, as CI does")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "thorough" in item.keywords and not EVERYTHING:
            item.add_marker(pytest.mark.skip(reason="takes long; set BCAMI_TEST_ALL=1"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if EVERYTHING and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and everything has to run: {report.longrepr}"
    return report
