"""Fixtures for the tests of locks."""

import importlib
import pathlib
import sys

import pytest

# Importable by name in the children of spawn and forkserver too, whose sys.path is ours.
_FOLDER = str(pathlib.Path(__file__).parent)
if _FOLDER not in sys.path:
    sys.path.append(_FOLDER)

from both_packages import both, ctx, method, mp, nothing_left, package  # noqa: E402

__all__ = ["both", "ctx", "method", "mp", "nothing_left", "package", "synchronize"]


@pytest.fixture
def synchronize(package):
    return importlib.import_module(f"{package.__name__}.synchronize")
