"""Who replaces a name of one of our modules for a while gets it back, in the stdlib's too."""

import importlib
from unittest import mock

import pytest

# Not defined by the package itself, and: defined by it.
NAMES = [("queues", "threading"), ("pool", "INIT"), ("managers", "Token"), ("queues", "Queue")]


@pytest.fixture(params=NAMES, ids=".".join)
def found(request):
    """The module, the name, and a function that says what both packages have under it."""
    submodule, name = request.param
    ours, theirs = (
        importlib.import_module(f"{package}.{submodule}")
        for package in ("mproc_ext", "multiprocessing")
    )
    assert hasattr(theirs, name)
    return ours, name, lambda: (getattr(ours, name, None), getattr(theirs, name, None))


def test_monkeypatch(found):
    module, name, values = found
    before = values()
    with pytest.MonkeyPatch.context() as outer:
        outer.setattr(module, name, False)
        assert getattr(module, name) is False
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(module, name, 2)
            inner.setattr(module, name, before[0])  # as it was, in between
            inner.setattr(module, name, 3)
            assert getattr(module, name) == 3
            inner.delattr(module, name)
        assert getattr(module, name) is False
        outer.delattr(module, name)
    assert values() == before
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(module, name)
    assert values() == before


def test_mock(found):
    module, name, values = found
    before = values()
    with mock.patch.object(module, name, 1), mock.patch.object(module, name, before[0]):
        pass
    assert values() == before


def test_set_by_hand_and_set_back(found):
    module, name, values = found
    before = values()
    for number in range(100):
        setattr(module, name, number)
    setattr(module, name, before[0])
    assert values() == before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, 1)
    assert values() == before


def test_a_new_name(found):
    module = found[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "new", 1, raising=False)
        assert module.new == 1
    assert not hasattr(module, "new")
