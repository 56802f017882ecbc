"""The stubs: they say what is there, and a typed program gets the types it should."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parents[1] / "pyproject.toml"

pytestmark = pytest.mark.timeout(400)


def mypy(module, *arguments, cwd):
    env = {k: v for k, v in os.environ.items() if not k.startswith("MPROC_EXT_")}
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def test_stubs_agree_with_the_package(tmp_path):
    """What of the installed package the stubs do not know, or know otherwise, is an error, but
    for the names in the allowlist; one that is needed no longer is an error too."""
    config = tmp_path / "mypy.ini"
    # Private modules have no stubs: their sources are read, and have no types to judge.
    config.write_text("[mypy]\nignore_errors = True\n")
    allowlists = ["--allowlist", HERE / "allowlist.txt"]
    if sys.version_info < (3, 14):
        allowlists += ["--allowlist", HERE / "allowlist-before-3.14.txt"]
    done = mypy(
        "mypy.stubtest", "mproc_ext", "--concise", "--mypy-config-file", config, *allowlists,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_typed_program(tmp_path):
    """mypy agrees with every assert_type, and with every error that the program expects."""
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    done = mypy(
        "mypy", "--config-file", CONFIG, "--python-version", running,
        "--cache-dir", tmp_path, HERE / "program.py",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
