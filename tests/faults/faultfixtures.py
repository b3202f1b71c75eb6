"""Figures, printed in one block after the run. A plugin: `pytest_plugins = ["faultfixtures"]`."""

import pytest
from faultserver import Figures


class Summary:
    """What the tests have measured, by test, in the order of measuring."""

    def __init__(self) -> None:
        self.lines: dict[str, list[tuple[str, str]]] = {}

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("figures of the fault tests")
        for test, lines in self.lines.items():
            terminalreporter.write_line(test)
            for what, value in lines:
                terminalreporter.write_line(f"  {what:44} {value}")


@pytest.fixture(scope="session")
def summary(request: pytest.FixtureRequest) -> Summary:
    summary = Summary()
    request.config.pluginmanager.register(summary)
    return summary


@pytest.fixture
def figure(request: pytest.FixtureRequest, summary: Summary) -> Figures:
    """Note one figure of this test."""
    lines = summary.lines.setdefault(request.node.name, [])

    def note(what: str, value: str) -> None:
        lines.append((what, value))

    return note
