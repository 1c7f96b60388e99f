"""What the tests with real faults share: one tracking server, and the table of what was tried, survived and lost."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from servers import MlflowServer


@dataclass
class FaultReport:
    """What was tried: one row a fault."""

    rows: list[tuple[str, int, int, str]] = field(default_factory=list)

    def record(self, fault: str, tried: int, survived: int, note: str = "") -> None:
        """Add a row; `note` says what was measured, or how it was survived."""
        self.rows.append((fault, tried, survived, note))


_REPORT = FaultReport()


@pytest.fixture(scope="session")
def fault_report() -> FaultReport:
    return _REPORT


@pytest.fixture(scope="session")
def tracking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator["MlflowServer"]:
    """A running tracking server on PostgreSQL, artifacts through its proxy; who kills it starts it again."""
    from servers import postgres_and_server

    with postgres_and_server(tmp_path_factory.mktemp("server")) as server:
        yield server


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _REPORT.rows:
        return
    table = [("fault", "tried", "survived", "lost", "how"), *(_cells(*row) for row in _REPORT.rows)]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    terminalreporter.section("faults")
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        terminalreporter.write_line("  ".join([*cells, row[4]]).rstrip())


def _cells(fault: str, tried: int, survived: int, note: str) -> tuple[str, str, str, str, str]:
    lost = tried - survived
    return fault, str(tried), str(survived), str(lost) if lost else "nothing", note
