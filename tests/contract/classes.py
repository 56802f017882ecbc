"""Print whose every public class of mproc_ext is, as JSON.

    python classes.py SUBMODULE...

The result is {submodule.Class: [kind, names]}: kind is "stdlib's" for the stdlib's own object,
"ours" if no class of the stdlib's is a base, "extended" else; names are those that our classes
among its bases define.
"""

import importlib
import json
import sys

# What every class definition has, and says nothing of what the class does.
FURNITURE = set(vars(type("Empty", (), {}))) | {"__slots__", "__parameters__", "__annotations__"}
FURNITURE |= {"__annotate__", "__annotate_func__", "__annotations_cache__"}
FURNITURE |= {"__static_attributes__", "__firstlineno__", "__module__", "__doc__"}
FURNITURE |= {"__builtins__"}  # what MakeProxyType makes


def package_of(cls):
    return cls.__module__.partition(".")[0]


def describe(cls, theirs):
    if cls is theirs:
        return "stdlib's", []
    ours = [base for base in cls.__mro__ if package_of(base) == "mproc_ext"]
    others = [base for base in cls.__mro__ if package_of(base) == "multiprocessing"]
    names = sorted(set().union(*(vars(base) for base in ours)) - FURNITURE)
    return ("extended" if others else "ours"), names


def main(submodules):
    found = {}
    for submodule in submodules:
        try:
            theirs = importlib.import_module(f"multiprocessing.{submodule}")
        except ImportError:
            continue  # for Windows only
        ours = importlib.import_module(f"mproc_ext.{submodule}")
        for name in dir(ours):
            cls = getattr(ours, name)
            if name.startswith("_") or not isinstance(cls, type):
                continue
            if not hasattr(theirs, name) and name not in ours.__all__:
                continue  # for its neighbours in the package
            package, _, home = cls.__module__.partition(".")
            if package in ("multiprocessing", "mproc_ext") and home == submodule:
                found[f"{submodule}.{name}"] = describe(cls, getattr(theirs, name, None))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
