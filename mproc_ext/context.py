"""Contexts: the stdlib's, with process start and every factory taken from this package.

Our classes extend the stdlib's, so that ``isinstance`` holds both ways a program may ask.  The
default start method is one for both packages: it is kept by the stdlib's default context, and
:class:`DefaultContext` here reads and writes it there.
"""

import importlib
import sys

# Not `from mproc_ext import`, here and in all that the package's __init__ imports: a thread that
# imports this module would wait for the package, and one that imports the package for this module.
from mproc_ext._modules import overlay

_std = overlay(__name__)

__all__ = ()

# Our modules of locks and of values, from the first of them on: an import statement in each factory
# would cost more than making a lock.
_synchronize = None
_sharedctypes = None


def _import(name):
    module = importlib.import_module(f"mproc_ext.{name}")
    globals()["_" + name] = module
    return module


class BaseContext(_std.BaseContext):
    """The factories of one start method.  See the stdlib's documentation of contexts."""

    def Manager(self):
        """Returns a manager associated with a running server process

        The managers methods such as `Lock()`, `Condition()` and `Queue()`
        can be used to create shared objects.
        """
        from mproc_ext.managers import SyncManager

        m = SyncManager(ctx=self.get_context())
        m.start()
        return m

    def Pipe(self, duplex=True):
        """Returns two connection object connected by a pipe"""
        from mproc_ext.connection import Pipe

        return Pipe(duplex)

    def Lock(self):
        """Returns a non-recursive lock object"""
        return (_synchronize or _import("synchronize")).Lock(ctx=self.get_context())

    def RLock(self):
        """Returns a recursive lock object"""
        return (_synchronize or _import("synchronize")).RLock(ctx=self.get_context())

    def Condition(self, lock=None):
        """Returns a condition object"""
        return (_synchronize or _import("synchronize")).Condition(lock, ctx=self.get_context())

    def Semaphore(self, value=1):
        """Returns a semaphore object"""
        return (_synchronize or _import("synchronize")).Semaphore(value, ctx=self.get_context())

    def BoundedSemaphore(self, value=1):
        """Returns a bounded semaphore object"""
        sync = _synchronize or _import("synchronize")
        return sync.BoundedSemaphore(value, ctx=self.get_context())

    def Event(self):
        """Returns an event object"""
        return (_synchronize or _import("synchronize")).Event(ctx=self.get_context())

    def Barrier(self, parties, action=None, timeout=None):
        """Returns a barrier object"""
        sync = _synchronize or _import("synchronize")
        return sync.Barrier(parties, action, timeout, ctx=self.get_context())

    def Queue(self, maxsize=0, *, max_bytes=0, zero_copy=False):
        """Returns a queue object: at most *maxsize* objects, of *max_bytes* bytes; see queues"""
        from mproc_ext.queues import Queue

        return Queue(maxsize, max_bytes=max_bytes, zero_copy=zero_copy, ctx=self.get_context())

    def JoinableQueue(self, maxsize=0, *, max_bytes=0, zero_copy=False, on_death=None):
        """Returns a queue object whose consumers say task_done() of each object; see queues"""
        from mproc_ext.queues import JoinableQueue

        return JoinableQueue(
            maxsize,
            max_bytes=max_bytes,
            zero_copy=zero_copy,
            on_death=on_death,
            ctx=self.get_context(),
        )

    def SimpleQueue(self, *, zero_copy=False):
        """Returns a queue object"""
        from mproc_ext.queues import SimpleQueue

        return SimpleQueue(ctx=self.get_context(), zero_copy=zero_copy)

    def Pool(
        self,
        processes=None,
        initializer=None,
        initargs=(),
        maxtasksperchild=None,
        *,
        worker_exit=None,
        max_memory=None,
        cpus=None,
        max_restarts=None,
        cloudpickle=False,
    ):
        """Returns a process pool object"""
        from mproc_ext.pool import Pool

        return Pool(
            *(processes, initializer, initargs, maxtasksperchild),
            context=self.get_context(),
            worker_exit=worker_exit,
            max_memory=max_memory,
            cpus=cpus,
            max_restarts=max_restarts,
            cloudpickle=cloudpickle,
        )

    def RawValue(self, typecode_or_type, *args):
        """Returns a shared object"""
        return (_sharedctypes or _import("sharedctypes")).RawValue(typecode_or_type, *args)

    def RawArray(self, typecode_or_type, size_or_initializer):
        """Returns a shared array"""
        make = (_sharedctypes or _import("sharedctypes")).RawArray
        return make(typecode_or_type, size_or_initializer)

    def Value(self, typecode_or_type, *args, lock=True):
        """Returns a synchronized shared object"""
        make = (_sharedctypes or _import("sharedctypes")).Value
        return make(typecode_or_type, *args, lock=lock, ctx=self.get_context())

    def Array(self, typecode_or_type, size_or_initializer, *, lock=True):
        """Returns a synchronized shared array"""
        make = (_sharedctypes or _import("sharedctypes")).Array
        return make(typecode_or_type, size_or_initializer, lock=lock, ctx=self.get_context())

    def freeze_support(self):
        """Check whether this is a fake forked process in a frozen executable.
        If so then run code specified by commandline and exit.
        """
        if getattr(sys, "frozen", False):
            from mproc_ext.spawn import freeze_support

            freeze_support()

    def set_forkserver_preload(self, module_names, *, on_error="ignore"):
        """Set list of module names to try to load in forkserver process.

        The on_error parameter controls how import failures are handled:
        "ignore" (default) silently ignores failures, "warn" emits warnings,
        and "fail" raises exceptions breaking the forkserver context.
        """
        from mproc_ext.forkserver import set_forkserver_preload

        # An older stdlib's, in a frozen program, has no on_error.
        set_forkserver_preload(
            module_names, **({} if on_error == "ignore" else {"on_error": on_error})
        )

    def get_context(self, method=None):
        if method is None:
            return self
        ctx = _concrete_contexts.get(method)
        if ctx is None:
            # The stdlib's table knows the contexts that other libraries registered (loky).
            return super().get_context(method)
        ctx._check_available()
        return ctx


class _NewerProcess:
    """What newer Pythons' BaseProcess has, for all of them."""

    if _std.process.BaseProcess.__init__.__defaults__[-1] is not None:

        def __init__(
            self, group=None, target=None, name=None, args=(), kwargs=None, *, daemon=None
        ):
            kwargs = {} if kwargs is None else kwargs
            super().__init__(group, target, name, args, kwargs, daemon=daemon)

        __init__.__qualname__ = "BaseProcess.__init__"  # as errors about arguments name it

    if not hasattr(_std.process.BaseProcess, "interrupt"):

        def interrupt(self):
            """
            Terminate process; sends SIGINT signal
            """
            self._check_closed()
            self._popen.interrupt()


class Process(_NewerProcess, _std.Process):
    """An activity that runs in a process of its own, by the default start method."""

    @staticmethod
    def _Popen(process_obj):
        return _default_context.get_context().Process._Popen(process_obj)

    @staticmethod
    def _after_fork():
        return _default_context.get_context().Process._after_fork()


class ForkProcess(_NewerProcess, _std.ForkProcess):
    @staticmethod
    def _Popen(process_obj):
        from mproc_ext.popen_fork import Popen

        return Popen(process_obj)


class SpawnProcess(_NewerProcess, _std.SpawnProcess):
    @staticmethod
    def _Popen(process_obj):
        from mproc_ext.popen_spawn_posix import Popen

        return Popen(process_obj)


class ForkServerProcess(_NewerProcess, _std.ForkServerProcess):
    @staticmethod
    def _Popen(process_obj):
        from mproc_ext.popen_forkserver import Popen

        return Popen(process_obj)


class ForkContext(BaseContext, _std.ForkContext):
    Process = ForkProcess


class SpawnContext(BaseContext, _std.SpawnContext):
    Process = SpawnProcess


class ForkServerContext(BaseContext, _std.ForkServerContext):
    Process = ForkServerProcess


class _Contexts(dict):
    """Our contexts by start method.  One that another library registers here (loky) is registered
    with the stdlib's too, whose code looks there in a child."""

    def __setitem__(self, name, ctx):
        super().__setitem__(name, ctx)
        _std._concrete_contexts[name] = ctx


_concrete_contexts = _Contexts(
    fork=ForkContext(), spawn=SpawnContext(), forkserver=ForkServerContext()
)


def _ours(ctx):
    """Our context for one of the stdlib's own; another library's stays what it is."""
    name = getattr(ctx, "_name", None)
    if name in _concrete_contexts and ctx is _std._concrete_contexts.get(name):
        return _concrete_contexts[name]
    return ctx


def _theirs(ctx):
    """The inverse of :func:`_ours`."""
    name = getattr(ctx, "_name", None)
    if name in _std._concrete_contexts and ctx is _concrete_contexts.get(name):
        return _std._concrete_contexts[name]
    return ctx


class DefaultContext(BaseContext, _std.DefaultContext):
    """The context of the start method that the program chose, or of the platform's.

    Where it is made without a context it has the stdlib's state, so that the choice is one.
    """

    Process = Process

    def __init__(self, context=None):
        self._state = _std._default_context if context is None else _std.DefaultContext(context)

    @property
    def _actual_context(self):
        return _ours(self._state._actual_context)

    @_actual_context.setter
    def _actual_context(self, ctx):
        self._state._actual_context = None if ctx is None else _theirs(ctx)

    @property
    def _default_context(self):
        return _ours(self._state._default_context)

    @_default_context.setter
    def _default_context(self, ctx):
        self._state._default_context = _theirs(ctx)

    def get_context(self, method=None):
        if method is None:
            chosen = self._state._actual_context  # without a property's two calls
            return _std.DefaultContext.get_context(self) if chosen is None else _ours(chosen)
        return super().get_context(method)


_default_context = DefaultContext()
