"""For all tests."""

import signal


def pytest_configure(config):
    # A shell has what it starts in the background ignore SIGINT, and children inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
