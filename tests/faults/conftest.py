"""What the tests with real faults share: one tracking server, and the table of what was tried, survived and lost."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
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
_HEAD = ("fault", "tried", "survived", "lost", "how")
_BEGIN, _END = "<!-- faults: begin -->", "<!-- faults: end -->"


@pytest.fixture(scope="session")
def fault_report() -> FaultReport:
    return _REPORT


@pytest.fixture(scope="session")
def tracking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator["MlflowServer"]:
    """A running tracking server on PostgreSQL, artifacts through its proxy; who kills it starts it again."""
    from servers import postgres_and_server

    with postgres_and_server(tmp_path_factory.mktemp("server")) as server:
        yield server


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave them out also where another `-m` took the place of the one in pyproject.toml."""
    if "faults" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("faults"):
                item.add_marker(pytest.mark.skip(reason="a test of faults: make test-faults, or -m faults"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults-into", metavar="FILE", help="also write the table of faults into this Markdown file")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not _REPORT.rows:
        return
    table = [_HEAD, *(_cells(*row) for row in _REPORT.rows)]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    terminalreporter.section("faults")
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        terminalreporter.write_line("  ".join([*cells, row[4]]).rstrip())
    if file := config.getoption("--faults-into"):
        _write_into(Path(file), table)


def _cells(fault: str, tried: int, survived: int, note: str) -> tuple[str, str, str, str, str]:
    lost = tried - survived
    return fault, str(tried), str(survived), str(lost) if lost else "nothing", note


def _write_into(file: Path, table: list[tuple[str, str, str, str, str]]) -> None:
    """Replace what stands between the two marks in `file`."""
    rows = ["| " + " | ".join(row) + " |" for row in table]
    rows.insert(1, "|---" * len(_HEAD) + "|")
    before, _, rest = file.read_text(encoding="utf-8").partition(_BEGIN)
    _, _, after = rest.partition(_END)
    file.write_text(f"{before}{_BEGIN}\n\n" + "\n".join(rows) + f"\n\n{_END}{after}", encoding="utf-8")
