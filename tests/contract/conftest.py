"""Shared by the contract tests: both packages' facts, and the lists of what may differ."""

import functools
import json
import os
import pkgutil
import re
import runpy
import subprocess
import sys
import sysconfig
import types
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
LIMIT = 60  # seconds for any program started here
METHODS = ("fork", "spawn", "forkserver")


def run_python(*args, env=None, **kwargs):
    """Run this Python with args, away from the source tree; what it prints and its exit status."""
    environ = {**os.environ, "MPROC_EXT_ALIAS": "", **(env or {})}
    return subprocess.run(
        [sys.executable, *map(str, args)],
        env=environ,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        cwd=HERE,  # not the source tree, where an unbuilt package would be found first
        text=True,
        timeout=LIMIT,
        **kwargs,
    )


def json_of(*args, **kwargs):
    result = run_python(*args, **kwargs)
    assert result.returncode == 0, f"exit status {result.returncode}:\n{result.stderr}"
    return json.loads(result.stdout)


def stdlib_submodules():
    """Every submodule that this Python's multiprocessing has on disk, dummy's too."""
    path = [os.path.join(sysconfig.get_path("stdlib"), "multiprocessing")]
    found = [module.name for module in pkgutil.iter_modules(path)]
    dummy = pkgutil.iter_modules([os.path.join(path[0], "dummy")])
    return sorted([*found, *(f"dummy.{module.name}" for module in dummy)])


def once(function):
    """Like functools.cache, for errors too: what takes long to fail does it once."""
    results = {}

    @functools.wraps(function)
    def cached(*args):
        if args not in results:
            try:
                results[args] = function(*args), None
            except (AssertionError, subprocess.TimeoutExpired) as error:
                results[args] = None, error
        value, error = results[args]
        if error is not None:
            raise error
        return value

    return cached


def described_by(program, package, *args):
    """What one of the programs here prints of a package; "alias" is what `python -m mproc_ext`
    makes of multiprocessing."""
    if package == "alias":
        return json_of("-m", "mproc_ext", HERE / program, "multiprocessing", *args)
    return json_of(HERE / program, package, *args)


@once
def facts(package):
    """What facts.py prints: {group: {fact: value}}."""
    return described_by("facts.py", package, *stdlib_submodules())


@once
def misuse(package, method):
    """What misuse.py prints: {case: [type, message]}."""
    return described_by("misuse.py", package, method)


lists = runpy.run_path(str(HERE / "differences.py"))


def newer(group, fact):
    """Whether this is one of the names that a newer Python's stdlib has, and that we add here."""
    return any(
        sys.version_info < version and re.fullmatch(f"(?:{groups})/(?:{names})", f"{group}/{fact}")
        for version, groups, names in lists["NEWER"]
    )


def same(fact, theirs, ours):
    """Whether the two values of a fact are equal, up to what is allowed everywhere."""
    if theirs == ours:
        return True
    if fact.rpartition(" ")[2] == "bases" and theirs and ours:
        # Ours may have more bases.  The name of the class and the order have to be the same.
        theirs, ours = theirs.split(), ours.split()
        return ours[0] == theirs[0] and [name for name in ours if name in theirs] == theirs
    return False


def differences(group):
    """{name: (the stdlib's value, ours)} of all that is not the same in a group."""
    theirs = facts("multiprocessing").get(group, {})
    ours = facts("mproc_ext").get(group, {})
    # A name that only one of them has is one difference: its signature and members are none.
    alone = {fact for fact in theirs.keys() ^ ours.keys() if not re.search(r"[ .]", fact)}
    # What a module of ours defines for its neighbours, and does not export, is no difference.
    internal = {
        fact
        for fact in alone & ours.keys()
        if ours.get("__all__", "None") != "None" and f"'{fact}'" not in ours["__all__"]
    }
    return {
        f"{group}/{fact}": (theirs.get(fact), ours.get(fact))
        for fact in dict.fromkeys([*theirs, *ours])
        if not same(fact, theirs.get(fact), ours.get(fact))
        and not newer(group, fact)
        and fact not in internal
        and re.split(r"[ .]", fact)[0] not in alone - {fact}
    }


def unused_differences():
    """Entries of DIFFERENCES for names that are the same by now; test_misuse.py sees to its own."""
    listed = {
        name
        for name in lists["DIFFERENCES"]
        if not name.startswith("misuse/")
        and (name not in lists["ONLY_ON"] or lists["ONLY_ON"][name](sys.version_info))
    }
    real = set()
    for group in {name.partition("/")[0] for name in listed}:
        real.update(differences(group))
    return sorted(listed - real)


def groups():
    """What the facts are about: the package, its submodules, and what its factories make."""
    instances = runpy.run_path(str(HERE / "facts.py"))["INSTANCES"]
    return ["(package)", *stdlib_submodules(), *instances]


def pytest_generate_tests(metafunc):
    if "group" in metafunc.fixturenames:
        metafunc.parametrize("group", groups())
    if "submodule" in metafunc.fixturenames:
        metafunc.parametrize("submodule", stdlib_submodules())
    if "method" in metafunc.fixturenames:
        metafunc.parametrize("method", METHODS)


@pytest.fixture(scope="session")
def contract():
    """The functions above, for the tests: with importlib mode they cannot import them."""
    return types.SimpleNamespace(**{**globals(), **lists})
