"""Print what a package that claims to be multiprocessing looks like, as JSON.

    python facts.py PACKAGE SUBMODULE...

The result is {group: {fact: value}}, where a group is a submodule, or what a factory makes, and
every value is a string.  The package's name is replaced in all of them, so that two packages that
look the same give the same facts.  It runs as a program of its own so that nothing that pytest
or another test has imported or started can be seen in the result.
"""

import importlib
import inspect
import json
import re
import sys
import types

PLAIN = (int, float, str, bytes, bool, type(None))

# Special methods that are part of what a class can do.
SPECIAL = {
    "__call__", "__class_getitem__", "__contains__", "__delitem__", "__enter__", "__eq__",
    "__exit__", "__getattr__", "__getitem__", "__getstate__", "__iter__", "__ior__", "__len__",
    "__missing__", "__next__", "__or__", "__reduce__", "__repr__", "__reversed__", "__ror__",
    "__setattr__", "__setitem__", "__setstate__", "__delattr__", "__del__", "__new__",
    "__deepcopy__",
}  # fmt: skip

# Names with an underscore that other projects use: they belong to the contract like public ones.
# (module: names, a dot stands before an attribute of a class or an instance)
PRIVATE = {
    "connection": "_ForkingPickler",
    "context": "_concrete_contexts _default_context _force_start_method",
    "heap": "Arena.__init__ BufferWrapper._heap",
    "pool": "Pool._setup_queues Pool._repopulate_pool Pool._repopulate_pool_static "
    "Pool._get_sentinels Pool._get_tasks Pool._help_stuff_finish Pool._terminate_pool "
    "Pool._guarded_task_generation Pool._wait_for_updates Pool._join_exited_workers "
    "Pool._handle_workers Pool._handle_tasks Pool._handle_results Pool.Process "
    "Pool._wrap_exception",
    "popen_fork": "Popen._launch Popen._send_signal",
    "popen_forkserver": "Popen._launch _DupFd",
    "popen_spawn_posix": "Popen._launch _DupFd",
    "process": "_current_process _parent_process _process_counter _children _dangling _cleanup "
    "_ParentProcess AuthenticationString BaseProcess._bootstrap "
    "BaseProcess._after_fork BaseProcess._Popen BaseProcess._check_closed",
    "queues": "_ForkingPickler _sentinel Queue._after_fork Queue._feed Queue._start_thread "
    "Queue._on_queue_feeder_error Queue._finalize_join Queue._finalize_close "
    "Queue._terminate_broken Queue._reset",
    "reduction": "ForkingPickler._extra_reducers",
    "resource_sharer": "_resource_sharer _ResourceSharer",
    "resource_tracker": "_resource_tracker _CLEANUP_FUNCS ResourceTracker._stop "
    "ResourceTracker._send ResourceTracker._check_alive",
    "shared_memory": "_SHM_NAME_PREFIX _make_filename _USE_POSIX",
    "spawn": "_main _fixup_main_from_name _fixup_main_from_path old_main_modules",
    "synchronize": "SemLock._make_name SemLock._rand SemLock._make_methods",
    "util": "_exit_function _exiting _finalizer_registry _finalizer_counter _run_finalizers "
    "_afterfork_registry _afterfork_counter _run_after_forkers _logger _log_to_stderr "
    "_args_from_interpreter_flags _flush_std_streams _close_stdin _cleanup_tests",
}

# And those that only an instance has. (factory: names)
PRIVATE_OF_INSTANCES = {
    "Process()": "_config _identity _parent_pid _parent_name _popen _target _args _kwargs _name "
    "_closed",
    "Queue()": "_reader _writer _sem _rlock _wlock _buffer _notempty _thread _jointhread _opid "
    "_maxsize _ignore_epipe _close _closed _joincancelled _send_bytes _recv_bytes _poll",
    "JoinableQueue()": "_unfinished_tasks _cond _reader _writer _sem _rlock _wlock",
    "SimpleQueue()": "_reader _writer _rlock _wlock _poll",
    "Lock()": "_semlock",
    "RLock()": "_semlock",
    "Semaphore()": "_semlock",
    "BoundedSemaphore()": "_semlock",
    "Condition()": "_lock _sleeping_count _woken_count _wait_semaphore",
    "Barrier(2)": "_cond _state _count",
    "Lock()._semlock": "_is_mine _count _is_zero _get_value _after_fork",
    "Pool(1)": "_pool _inqueue _outqueue _quick_put _quick_get _taskqueue _cache _state "
    "_processes _maxtasksperchild _initializer _initargs _ctx _terminate _worker_handler "
    "_task_handler _result_handler _change_notifier",
}

INSTANCES = {
    "Process()": lambda mp: mp.Process(name="facts"),
    "Queue()": lambda mp: mp.Queue(),
    "JoinableQueue()": lambda mp: mp.JoinableQueue(),
    "SimpleQueue()": lambda mp: mp.SimpleQueue(),
    "Lock()": lambda mp: mp.Lock(),
    "Lock()._semlock": lambda mp: mp.Lock()._semlock,
    "RLock()": lambda mp: mp.RLock(),
    "Semaphore()": lambda mp: mp.Semaphore(),
    "BoundedSemaphore()": lambda mp: mp.BoundedSemaphore(),
    "Condition()": lambda mp: mp.Condition(),
    "Event()": lambda mp: mp.Event(),
    "Barrier(2)": lambda mp: mp.Barrier(2),
    "Value('i')": lambda mp: mp.Value("i"),
    "Value(c_char)": lambda mp: mp.Value("c"),
    "Array('i', 2)": lambda mp: mp.Array("i", 2),
    "Array('c', 2)": lambda mp: mp.Array("c", 2),
    "RawValue('i')": lambda mp: mp.RawValue("i"),
    "RawArray('i', 2)": lambda mp: mp.RawArray("i", 2),
    "Pipe()[0]": lambda mp: mp.Pipe()[0],
    "Pipe(False)[1]": lambda mp: mp.Pipe(False)[1],
    "Pool(1)": lambda mp: mp.Pool(1),
    "Pool(1).apply_async": lambda mp: _through_pool(mp, lambda p: p.apply_async(len, ([],))),
    "Pool(1).map_async": lambda mp: _through_pool(mp, lambda p: p.map_async(len, [[]])),
    "Pool(1).imap": lambda mp: _through_pool(mp, lambda p: p.imap(len, [[]])),
    "Pool(1).imap_unordered": lambda mp: _through_pool(mp, lambda p: p.imap_unordered(len, [[]])),
    "current_process()": lambda mp: mp.current_process(),
    "current_process().authkey": lambda mp: mp.current_process().authkey,
    "get_context()": lambda mp: mp.get_context(),
    "get_context('fork')": lambda mp: mp.get_context("fork"),
    "get_context('spawn')": lambda mp: mp.get_context("spawn"),
    "get_context('forkserver')": lambda mp: mp.get_context("forkserver"),
    "get_logger()": lambda mp: mp.get_logger(),
    "Manager()": lambda mp: _manager(mp),
    "Manager().list()": lambda mp: _manager(mp).list(),
    "Manager().dict()": lambda mp: _manager(mp).dict(),
    "Manager().Namespace()": lambda mp: _manager(mp).Namespace(),
    "Manager().Lock()": lambda mp: _manager(mp).Lock(),
    "Manager().Queue()": lambda mp: _manager(mp).Queue(),
    "Manager().Value('i', 0)": lambda mp: _manager(mp).Value("i", 0),
    "Manager().Event()": lambda mp: _manager(mp).Event(),
}

started = {}


def _manager(mp):
    if "manager" not in started:
        started["manager"] = mp.get_context("fork").Manager()
    return started["manager"]


def _through_pool(mp, use):
    with mp.get_context("fork").Pool(1) as pool:
        result = use(pool)
        pool.close()
        pool.join()  # the stdlib hangs now and then where it terminates a worker that has a task
        return result


def normal(text):
    """The text without addresses, and with one name for both packages."""
    text = re.sub(r"\b0x[0-9a-f]{6,}\b", "0x...", text)
    return re.sub(r"\bmproc_ext\b(\._stdlib\b)?", "multiprocessing", text)


def kind(value):
    if inspect.ismodule(value):
        return "module"
    if inspect.isclass(value):
        return "class"
    if isinstance(value, property) or inspect.isdatadescriptor(value):
        return "data descriptor"
    if inspect.ismethod(value):
        return "bound method"
    if inspect.isroutine(value) or isinstance(value, (staticmethod, classmethod)):
        return "routine"
    return "object of type " + type(value).__name__


def is_plain(value):
    if isinstance(value, (tuple, list)):
        return all(isinstance(item, PLAIN) for item in value)
    return isinstance(value, PLAIN)


def signature(value):
    try:
        return str(inspect.signature(value))
    except (TypeError, ValueError) as error:
        return type(error).__name__


def exported(module):
    """The public names of a module, without the modules that it has merely imported."""
    names = (name for name in dir(module) if not name.startswith("_"))
    return [name for name in names if not inspect.ismodule(getattr(module, name, None))]


def bases(cls):
    """Names of a class and its bases, each once: ours and the stdlib's have the same names."""
    names = (normal(f"{base.__module__}.{base.__qualname__}") for base in cls.__mro__)
    return " ".join(dict.fromkeys(names))


class Facts:
    def __init__(self, package):
        self.package = package
        self.groups = {}

    def add(self, group, fact, value):
        self.groups.setdefault(group, {})[fact] = normal(str(value))

    def module(self, short):
        """What there is to say of one submodule ('' is the package itself)."""
        group = short or "(package)"
        full = f"{self.package}.{short}" if short else self.package
        try:
            module = importlib.import_module(full)
        except BaseException as error:
            self.add(group, "import", type(error).__name__)
            return
        self.add(group, "import", "works")
        self.add(group, "__all__", sorted(module.__all__) if hasattr(module, "__all__") else None)
        private = PRIVATE.get(short, "").split()
        names = [*exported(module), *(name for name in private if "." not in name)]
        for name in names:
            self.name(group, module, name)
        for path in private:
            if "." in path:
                class_name, _, name = path.partition(".")
                self.attribute(group, path, getattr(module, class_name, None), name)

    def name(self, group, module, name):
        if not hasattr(module, name):
            self.add(group, name, "missing")
            return
        value = getattr(module, name)
        self.add(group, name, kind(value))
        if inspect.isclass(value):
            if value.__module__.partition(".")[0] in ("multiprocessing", "mproc_ext"):
                self.cls(group, name, value)
        elif callable(value):
            self.add(group, f"{name} signature", signature(value))
        elif is_plain(value):
            self.add(group, f"{name} value", repr(value))

    def cls(self, group, name, cls):
        self.add(group, f"{name} bases", bases(cls))
        self.add(group, f"{name} signature", signature(cls))
        for attribute in dir(cls):
            if attribute.startswith("_") and attribute not in SPECIAL:
                continue
            if getattr(object, attribute, None) is getattr(cls, attribute, None):
                continue  # `object`'s own
            self.attribute(group, f"{name}.{attribute}", cls, attribute)

    def attribute(self, group, path, owner, name):
        try:
            value = inspect.getattr_static(owner, name)
        except AttributeError:
            self.add(group, path, "missing")
            return
        self.add(group, path, kind(value))
        try:
            value = getattr(owner, name)
        except Exception as error:
            self.add(group, f"{path} raises", f"{type(error).__name__}: {error}")
            return
        if inspect.isroutine(value):
            self.add(group, f"{path} signature", signature(value))

    def instance(self, group, make, package):
        try:
            instance = make(package)
        except BaseException as error:
            self.add(group, "make", type(error).__name__)
            return
        cls = type(instance)
        self.add(group, "type", cls.__name__)
        self.add(group, "bases", bases(cls))
        for name in dir(instance):
            if not name.startswith("_"):
                self.attribute(group, name, instance, name)
        for name in PRIVATE_OF_INSTANCES.get(group, "").split():
            self.add(group, name, "there" if hasattr(instance, name) else "missing")
        if hasattr(instance, "terminate") and "Pool" in cls.__name__:
            instance.terminate()


def collect(package_name, modules):
    facts = Facts(package_name)
    package = importlib.import_module(package_name)
    assert isinstance(package, types.ModuleType)
    for short in ["", *modules]:
        facts.module(short)
    for group, make in INSTANCES.items():
        facts.instance(group, make, package)
    if "manager" in started:
        started["manager"].shutdown()
    return facts.groups


if __name__ == "__main__":
    package_name, *modules = sys.argv[1:]
    json.dump(collect(package_name, modules), sys.stdout)
