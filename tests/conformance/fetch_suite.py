"""Fetch the part of CPython's tests that the running Python was installed without.

Some builds come without test_concurrent_futures. Debian packages 3.11's: its copy serves 3.11,
and 3.12, for which nothing nearer is packaged (a test that does not fit 3.12 fails with the
stdlib too, and is reported so). Needs apt-get and the network, not root. Does nothing where
there is nothing to do.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import _suite

PACKAGES = {(3, 11): "libpython3.11-testsuite", (3, 12): "libpython3.11-testsuite"}
WANTED = "test_concurrent_futures.py"


def main() -> int:
    version = sys.version_info[:2]
    target = _suite.fetched_folder(version)
    folders = [_suite.own_test_folder(), target]
    if _suite.find_module("test_concurrent_futures", folders):
        return 0
    package = PACKAGES.get(version)
    if package is None or not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        print(f"{WANTED}: not in this installation, and nowhere to fetch it from")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(
                ["apt-get", "download", "-q", package], cwd=folder, check=True, timeout=300
            )
            (archive,) = Path(folder).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", str(archive), folder], check=True, timeout=300)
            (found,) = Path(folder).glob(f"usr/lib/python*/test/{WANTED}")
        except (subprocess.SubprocessError, ValueError) as error:
            print(f"{WANTED}: {package} could not be fetched: {error}")
            return 1
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(found, target / WANTED)
    print(f"{WANTED} of {package} is now in {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
