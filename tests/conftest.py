"""What holds for all tests: which wait for BCAMI_TEST_ALL, and which must not run beside each other."""

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "thorough: takes long; runs when BCAMI_TEST_ALL is set, as CI does")


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    everything = bool(os.environ.get("BCAMI_TEST_ALL"))
    for item in items:
        if "thorough" in item.keywords and not everything:
            item.add_marker(pytest.mark.skip(reason="takes long; set BCAMI_TEST_ALL=1"))
        if item.nodeid.startswith("tests/processes/"):
            item.add_marker(pytest.mark.xdist_group("clusters"))  # two clusters at once starve each other
