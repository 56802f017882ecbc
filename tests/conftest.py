"""For all tests."""

import gc
import signal


def pytest_configure(config):
    # A shell has what it starts in the background ignore SIGINT, and children inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    # What there are of tests would be walked by each gc.collect(), and copied by forked children
    # that do: most of what a run takes.
    gc.freeze()
