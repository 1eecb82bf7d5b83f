"""What holds for all tests: which of them wait for BCAMI_TEST_ALL."""

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "thorough: takes long; runs when BCAMI_TEST_ALL is set, as CI does")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    everything = bool(os.environ.get("BCAMI_TEST_ALL"))
    for item in items:
        if "thorough" in item.keywords and not everything:
            item.add_marker(pytest.mark.skip(reason="takes long; set BCAMI_TEST_ALL=1"))
