"""For every test: order and lanes, one Hypothesis profile for all, and a termination that still cleans up."""

from __future__ import annotations

import gc
import io
import signal

import pytest
from hypothesis import HealthCheck, Phase, find, settings, strategies

from tests.costs import Costs
from tests.lanes import RARE, order

pytest_plugins = ("tests.workers", "tests.system.fixtures", "tests.fakes.compiled_scripts")

signal.signal(signal.SIGTERM, signal.default_int_handler)  # fixtures clean up as after Ctrl-C
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also under nohup: what a test starts inherits whether it is ignored
signal.signal(signal.SIGINT, signal.default_int_handler)  # also in the background, for the same reason

gc.disable()  # until the tests are collected: they stay, and looking for garbage among them is a sixth of that time

COMMON = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
"""What an example may cost depends on how busy the machine is, so that no time limit fails a test."""
settings.register_profile("short", COMMON, max_examples=50)
settings.register_profile("long", COMMON, max_examples=400)
settings.register_profile(
    "reproducible",
    COMMON,
    max_examples=10,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
"""For examples that a schema makes: how many of them fit is not ours to tune."""
settings.load_profile("short")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option that `./run test --costs` gives."""
    parser.addoption("--costs", action="store_true", help="what each file and test costs in processor time")


def pytest_configure(config: pytest.Config) -> None:
    """Measures where that was asked for."""
    if config.getoption("--costs"):
        config.pluginmanager.register(Costs())


@pytest.hookimpl(tryfirst=True)  # before pytest looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that parallel workers end within moments of each other; those that
    `--fast` leaves out are marked."""
    for item in items:
        if item.location[0] in RARE:
            item.add_marker("rare")
    items.sort(key=lambda item: order(item.location[0]))


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported and collected stays to the end: nothing looks for garbage in it again. What each worker would
    make for itself is made before they are forked: Hypothesis's tables of characters and of our code's constants."""
    if session.config.getoption("--workers"):
        find(strategies.text(), lambda _: True)
    gc.freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One line about coverage, where `./run test --coverage` measured it."""
    controller = getattr(config.pluginmanager.getplugin("_cov"), "cov_controller", None)
    if controller is not None:
        total = controller.cov.report(file=io.StringIO(), output_format="total", ignore_errors=True)
        terminalreporter.write_line(f"coverage of what runs in the tests' own processes: {total:.1f} % of the lines")
