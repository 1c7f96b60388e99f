"""What the tests beside other programs share. Each is skipped where its program is not installed."""

import pytest
from known_scan import KnownScan, known_scan


@pytest.fixture(scope="session")
def known() -> KnownScan:
    return known_scan()
