"""Run CPython's own multiprocessing tests against mproc_ext. See README.md beside this file."""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import _suite
from excused import EXCUSED, excuse, race

HERE = Path(__file__).resolve().parent
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
DURATIONS = HERE / "durations.json"
FLOORS = HERE / "floors.json"

STARTUP = 0.6  # seconds to start a process for a class and import its tests
SPLIT_ABOVE = 45.0  # a class that takes longer is run in parts
GRACE = 5.0  # for processes that end on their own after their class has ended
SHOWN = 25  # tracebacks printed at the end
TRIES = 8  # of the stdlib, for a test that fails now and then
RACY_TRIES = 4  # for a test that is known to fail now and then
RERUNS = 40  # more failures than this are not tried again: something is broken

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
EXCUSED_STATE, STALE, STDLIB, FLAKY = "excused", "stale excuse", "stdlib fails", "FLAKY"
BAD = (FAILED, STALE, FLAKY)

WARNING = re.compile(r"^Warning -- .*", re.MULTILINE)
MARKER = "MPROC_EXT_CONFORMANCE"


@dataclass
class Unit:
    """What one process runs: some methods of one class."""

    group: str
    module: str
    cls: str
    methods: list[str]
    estimate: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.group}.{self.cls}"


@dataclass
class Outcome:
    state: str
    time: float = 0.0
    detail: str = ""


@dataclass
class Mode:
    """A prepared folder of tests and the way to start Python for it."""

    name: str
    root: Path
    groups: list[_suite.Group] = field(default_factory=list)
    classes: dict[str, list[tuple[str, str, list[str]]]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    counter: int = 0

    def command(self, spec: Path) -> list[str]:
        program = [str(self.root / "_child.py"), str(spec)]
        if self.name == "alias":
            return [sys.executable, "-m", _suite.OUR_NAME, *program]
        return [sys.executable, *program]

    def environment(self, folder: Path) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if k != "MPROC_EXT_ALIAS"}
        env["TMPDIR"] = str(folder / "t")
        env[MARKER] = str(folder)
        return env

    def folder(self, ours: str | None) -> Path:
        """A new folder for one process: t is its TMPDIR, w its current folder.

        Some tests start Python with -E -S, where only the current folder is on the path: where
        the tests are copies it holds links to the package and to the tests.
        """
        self.counter += 1
        folder = self.root / str(self.counter)
        (folder / "t").mkdir(parents=True)
        (folder / "w").mkdir()
        if self.name in _suite.COPIED and ours:
            os.symlink(ours, folder / "w" / _suite.OUR_NAME)
            os.symlink(self.root / _suite.PACKAGE, folder / "w" / _suite.PACKAGE)
        return folder


# -- processes --------------------------------------------------------------------------------


def belongs(pid: int, session: int, folder: Path) -> bool:
    """Is the process part of a class's run: of its session, or with its environment?"""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        if fields[0] in "ZX":
            return False
        if int(fields[3]) == session:
            return True
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except (OSError, IndexError):
        return False
    return f"{MARKER}={folder}".encode() in environ.split(b"\0")


def relatives(session: int, folder: Path) -> list[int]:
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return [pid for pid in pids if pid != os.getpid() and belongs(pid, session, folder)]


def kill_all(session: int, folder: Path) -> list[int]:
    """SIGKILL until nothing of the class is left."""
    killed: set[int] = set()
    for _ in range(100):
        pids = relatives(session, folder)
        if not pids:
            break
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            except ProcessLookupError:
                pass
        time.sleep(0.02)
    return sorted(killed)


def describe(pid: int) -> str:
    try:
        command = (
            Path(f"/proc/{pid}/cmdline")
            .read_bytes()
            .replace(b"\0", b" ")
            .decode("utf-8", "replace")
        )
    except OSError:
        command = ""
    return f"{pid}: {command.strip()[:200]}"


class Running:
    """One unit in its process."""

    def __init__(self, mode: Mode, unit: Unit, ours: str | None, limit: float, stdlib: str):
        self.mode, self.unit, self.limit = mode, unit, limit
        self.folder = mode.folder(ours)
        self.results = self.folder / "results"
        self.output = self.folder / "output"
        spec = self.folder / "spec"
        spec.write_text(
            json.dumps(
                {
                    "action": "run",
                    "mode": mode.name,
                    "module": unit.module,
                    "class": unit.cls,
                    "methods": unit.methods,
                    "results": str(self.results),
                    "stdlib": stdlib,
                }
            )
        )
        with open(self.output, "wb") as out:
            self.process = subprocess.Popen(
                mode.command(spec),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self.folder / "w",
                env=mode.environment(self.folder),
                start_new_session=True,
            )
        self.started = time.monotonic()
        self.seen = self.started  # when the last line of results came
        self.size = 0
        self.ended: float | None = None
        self.timed_out = ""
        self.left_over: list[str] = []

    def done(self) -> bool:
        """Has it ended, with all that it started? Kills what takes too long."""
        now = time.monotonic()
        if self.ended is None:
            if self.process.poll() is not None:
                self.ended = now
                return self.done()
            size = self.results.stat().st_size if self.results.exists() else 0
            if size != self.size:
                self.size, self.seen = size, now
            if now - self.seen > self.limit:
                self.timed_out = f"no test began or ended for {self.limit:.0f} s"
                self.stop()
                return True
            return False
        pids = relatives(self.process.pid, self.folder)
        if not pids:
            return True
        if now - self.ended < GRACE:
            return False
        self.left_over = [describe(pid) for pid in pids]
        kill_all(self.process.pid, self.folder)
        return True

    def stop(self) -> None:
        """Ask for tracebacks, then kill everything."""
        session = self.process.pid
        try:
            os.kill(session, signal.SIGABRT)  # faulthandler writes where each thread is
            self.process.wait(2)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass
        kill_all(session, self.folder)
        self.process.wait()
        self.ended = time.monotonic()

    def collect(self) -> tuple[dict[str, Outcome], list[str]]:
        """What came out: outcomes by method (or <what happened>), and the methods still to run."""
        output = self.output.read_text(encoding="utf-8", errors="replace")
        outcomes: dict[str, Outcome] = {}
        current = None
        ended = altered = False
        fixture: tuple[str, Outcome] | None = None
        lines = self.results.read_text().splitlines() if self.results.exists() else []
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # cut off by a kill
            if record["pid"] != self.process.pid:
                outcomes["<left the test>"] = Outcome(
                    FAILED, 0.0, f"a child ran on into the runner of the tests: {line}"
                )
                continue
            event = record["event"]
            if event == "start":
                current = record["method"]
            elif event == "stop":
                current = None
                outcomes[record["method"]] = Outcome(
                    record["state"], record["time"], record["detail"]
                )
            elif event == "fixture":
                fixture = (record["name"], Outcome(record["state"], 0.0, record["detail"]))
                if record["state"] == FAILED:
                    outcomes[f"<{record['name'].split()[0]}>"] = fixture[1]
            elif event == "end":
                ended, altered = True, record["altered"]

        tail = output[-4000:]
        rest: list[str] = []
        missing = [m for m in self.unit.methods if m not in outcomes and m != current]
        code = self.process.returncode
        how = self.timed_out or (
            f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        )
        if current:  # it died, or hung, in a test: the others get another process
            outcomes[current] = Outcome(
                FAILED, time.monotonic() - self.started, f"the process ended: {how}\n{tail}"
            )
            rest = missing
        elif missing and fixture:
            for method in missing:
                outcomes[method] = Outcome(fixture[1].state, 0.0, fixture[1].detail)
            if fixture[1].state == FAILED:  # counted once for each test
                outcomes.pop(f"<{fixture[0].split()[0]}>", None)
        elif missing:
            for method in missing:
                outcomes[method] = Outcome(FAILED, 0.0, f"did not run: {how}\n{tail}")
        elif not ended or code:
            outcomes["<exit>"] = Outcome(FAILED, 0.0, f"the process ended: {how}\n{tail}")
        warnings = WARNING.findall(output)
        if warnings or altered:
            detail = "\n".join(warnings) or "test.support.environment_altered is set"
            outcomes["<environment>"] = Outcome(FAILED, 0.0, detail)
        if self.left_over:
            outcomes["<left-over processes>"] = Outcome(FAILED, 0.0, "\n".join(self.left_over))
        shutil.rmtree(self.folder, ignore_errors=True)
        return outcomes, rest


def run_units(
    mode: Mode,
    units: list[Unit],
    *,
    jobs: int,
    limit: float,
    ours: str | None,
    stdlib: str,
    progress=None,
) -> dict[str, Outcome]:
    """Run them, the longest first, `jobs` at a time; the outcomes by full name."""
    waiting = sorted(units, key=lambda u: -u.estimate)
    running: list[Running] = []
    outcomes: dict[str, Outcome] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(Running(mode, waiting.pop(0), ours, limit, stdlib))
            for one in [r for r in running if r.done()]:
                running.remove(one)
                found, rest = one.collect()
                for method, outcome in found.items():
                    name = f"{one.unit.name}.{method}"
                    if name in outcomes and outcomes[name].state == FAILED:
                        continue  # <environment> of an earlier part of the class
                    outcomes[name] = outcome
                if rest:
                    waiting.insert(0, Unit(one.unit.group, one.unit.module, one.unit.cls, rest))
                if progress:
                    progress(one, found, len(waiting) + len(running))
            time.sleep(0.03)
    finally:
        for one in running:
            one.stop()
    return outcomes


# -- what there is to run ---------------------------------------------------------------------


def stdlib_origin() -> str:
    """The file of the stdlib's package, whatever this environment makes of its name."""
    import sysconfig

    return os.path.join(sysconfig.get_path("stdlib"), "multiprocessing", "__init__.py")


def our_folder(mode: str) -> str | None:
    """Where the package under test is; None for the stdlib."""
    if mode == "baseline":
        return None
    code = (
        "import mproc_ext, os; print(os.path.dirname(mproc_ext.__file__));"
        "print(mproc_ext.__version__, mproc_ext.ACCELERATED)"
    )
    found = {}
    for flags in ((), ("-I",)):
        done = subprocess.run(
            [sys.executable, *flags, "-c", code], capture_output=True, text=True, cwd="/"
        )
        found[flags] = done
    if found[()].returncode:
        sys.exit(f"mproc_ext cannot be imported:\n{found[()].stderr}")
    if found[("-I",)].returncode:
        print(
            "note: mproc_ext is on PYTHONPATH only; tests that run Python with -I will fail."
            " Install it."
        )
    folder, about = found[()].stdout.splitlines()[-2:]
    version, accelerated = about.split()
    print(f"mproc_ext {version} from {folder}, ACCELERATED={accelerated}")
    return folder


def prepare(name: str, root: Path, ours: str | None, stdlib: str) -> Mode:
    mode = Mode(name, root / name)
    mode.groups = _suite.prepare(mode.root, name)
    modules = [m for group in mode.groups for m in group.modules]
    folder = mode.folder(ours)
    spec = folder / "spec"
    spec.write_text(
        json.dumps(
            {
                "action": "list",
                "mode": name,
                "modules": modules,
                "executor_users": _suite.EXECUTOR_USERS,
                "results": str(folder / "results"),
                "stdlib": stdlib,
            }
        )
    )
    done = subprocess.run(
        mode.command(spec),
        cwd=folder / "w",
        env=mode.environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    if done.returncode:
        sys.exit(f"the tests could not be listed ({name}):\n{done.stdout}")
    groups = {group.name: group for group in mode.groups}
    for entry in json.loads((folder / "results").read_text()):
        group = groups[_suite.group_of(entry["module"])]
        if entry["error"]:
            mode.classes.setdefault(group.name, []).append((entry["module"], "<import>", []))
            mode.notes[f"{group.name}.<import>.{entry['module']}"] = entry["error"]
        if entry["skipped"]:
            group.source += f"; {entry['module']} skipped: {entry['skipped']}"
        for cls, methods in entry["classes"]:
            if group.only is not None:
                methods = [m for m in methods if m in group.only.get(cls, ())]
            if methods:
                mode.classes.setdefault(group.name, []).append((entry["module"], cls, methods))
    return mode


def durations() -> dict[str, float]:
    try:
        return json.loads(DURATIONS.read_text())
    except FileNotFoundError:
        return {}


def split(unit: Unit, times: dict[str, float], most: float = SPLIT_ABOVE) -> list[Unit]:
    """A class that takes long in parts, its methods in their order."""
    parts: list[Unit] = []
    for method in unit.methods:
        cost = times.get(f"{unit.name}.{method}", 0.02)
        if not parts or parts[-1].estimate + cost > most:
            parts.append(Unit(unit.group, unit.module, unit.cls, [], STARTUP))
        parts[-1].methods.append(method)
        parts[-1].estimate += cost
    return parts


def select(mode: Mode, patterns: list[str]) -> list[Unit]:
    """The classes to run. A pattern matches anywhere in the name of a test, * and ? allowed."""
    times = durations()
    units = []
    for group, classes in mode.classes.items():
        for module, cls, methods in classes:
            if patterns:
                methods = [
                    m
                    for m in methods
                    if any(fnmatch.fnmatch(f"{group}.{cls}.{m}", f"*{p}*") for p in patterns)
                ]
            if methods:
                units += split(Unit(group, module, cls, methods), times)
    names = Counter((u.name, m) for u in units for m in u.methods)
    twice = [key for key, count in names.items() if count > 1]
    assert not twice, f"two tests of one name: {twice}"
    return units


# -- judgement --------------------------------------------------------------------------------


def unit_for(mode: Mode, name: str) -> Unit | None:
    """A unit for one test; for <what happened> to a class, the whole class."""
    group, cls, method = name.split(".", 2)
    for module, found, methods in mode.classes.get(group, ()):
        if found == cls and (method in methods or method.startswith("<")):
            return Unit(group, module, cls, methods if method.startswith("<") else [method])
    return None


def passes(mode: Mode, name: str, same: bool, **settings) -> bool:
    """Run one test alone. `same`: in the mode in which it failed, not on the stdlib.

    What is left over at the end of a class is found by running all of it, excused tests too.
    """
    unit = unit_for(mode, name)
    if unit is None:
        # A module that could not be imported: the stdlib vouches for it where it can import it,
        # and nothing is excused by a test that the stdlib does not even have.
        return not same and name not in mode.notes
    found = run_units(mode, [unit], jobs=1, **settings)
    return all(
        outcome.state in (PASSED, SKIPPED) or (same and excuse(each, mode.name, PYTHON))
        for each, outcome in found.items()
    )


def judge(
    outcomes: dict[str, Outcome],
    mode: str,
    again,
    python: str = PYTHON,
    most: int = RERUNS,
) -> None:
    """Give every failure its due, in place.

    `again(mode, name)` runs one test alone and says whether it passes. A test that the
    stdlib fails here is not ours to answer for; one that passes when tried again is FLAKY, unless
    the stdlib fails it in one of TRIES more, or is known to fail it now and then (RACY).
    """
    for name, outcome in outcomes.items():
        reason = excuse(name, mode, python) if mode != "baseline" else None
        if reason and outcome.state == FAILED:
            outcome.state, outcome.detail = EXCUSED_STATE, reason
        elif reason and outcome.state == PASSED:
            outcome.state, outcome.detail = STALE, f"it passes, but is excused: {reason}"
    failed = [name for name, outcome in outcomes.items() if outcome.state == FAILED]
    races = {name for name in failed if race(name, mode, python)}
    racy = {name.rpartition(".")[0] for name in races}

    def known_to_fail(name):
        # A process that a racy test has left over is found at the end of its class.
        left_over = name.endswith(".<environment>") and name.rpartition(".")[0] in racy
        return name in races or left_over or not all(again("baseline", name) for _ in range(TRIES))

    if len(failed) > most:
        print(f"{len(failed)} tests failed: the first {most} are tried again")
    for name in failed[:most]:
        outcome = outcomes[name]
        if mode != "baseline" and not again("baseline", name):
            outcome.state = STDLIB
        elif any(again(mode, name) for _ in range(RACY_TRIES if name in races else 1)):
            # Some tests hang with the stdlib now and then (3.12.1: test_shutdown_deadlock_pickle).
            known = mode != "baseline" and known_to_fail(name)
            outcome.state = STDLIB if known else FLAKY


def missing_excuses(
    groups: list[_suite.Group], outcomes: dict[str, Outcome], mode: str, python: str = PYTHON
) -> list[str]:
    """Excuses for tests that do not exist, in the groups of this mode."""
    names = {group.name for group in groups}
    return [
        name
        for name in EXCUSED
        if name.split(".")[0] in names and excuse(name, mode, python) and name not in outcomes
    ]


def below_floor(
    groups: list[_suite.Group], found: dict[str, int], mode: str, python: str = PYTHON
) -> list[str]:
    """Groups in which fewer tests were found than this Python is known to have."""
    floors = json.loads(FLOORS.read_text()) if FLOORS.exists() else {}
    if mode == "executor":  # a part of the group
        floors = floors.get(mode, {})
    present = {group.name for group in groups if group.modules}
    return [
        f"{name}: {found.get(name, 0)} tests found, at least {floor} expected"
        for name, floor in floors.get(python, {}).items()
        if (name in present or name in _suite.ALWAYS) and found.get(name, 0) < floor
    ]


def table(groups: list[_suite.Group], outcomes: dict[str, Outcome], times: dict[str, float]) -> str:
    columns = ("passed", "failed", "skipped", "excused", "stdlib fails", "time")
    lines = [f"{'':36}" + "".join(f"{c:>14}" for c in columns)]
    total: Counter[str] = Counter()
    for group in groups:
        own = [o for n, o in outcomes.items() if n.split(".")[0] == group.name]
        if not own:
            if not group.modules:
                lines.append(f"{group.name:36}  {group.source}")
            continue
        counts = Counter(FAILED if o.state in BAD else o.state for o in own)
        total.update(counts)
        lines.append(row(group.name, counts, times.get(group.name, 0.0)))
    lines.append(row("total", total, sum(times.values())))
    return "\n".join(lines)


def row(name: str, counts: Counter[str], seconds: float) -> str:
    states = (PASSED, FAILED, SKIPPED, EXCUSED_STATE, STDLIB)
    return f"{name:36}" + "".join(f"{counts[s]:>14}" for s in states) + f"{seconds:>12.0f} s"


def closing_line(outcomes: dict[str, Outcome]) -> str:
    """Excused tests and those that the stdlib fails too are none of the three."""
    counts = Counter(FAILED if o.state in BAD else o.state for o in outcomes.values())
    return f"{counts[PASSED]} passed, {counts[FAILED]} failed, {counts[SKIPPED]} skipped"


def record(outcomes: dict[str, Outcome]) -> None:
    """Keep what took time, for the order and the parts of later runs."""
    times = durations()
    for name, outcome in outcomes.items():
        if outcome.state == PASSED and outcome.time >= 0.5:
            times[name] = max(times.get(name, 0.0), round(outcome.time, 1))
    DURATIONS.write_text(json.dumps(times, indent=0, sort_keys=True) + "\n")


def main(argv: list[str] | None = None) -> int:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell
        signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=_suite.MODES, default="name")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="classes at a time (2)")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN")
    parser.add_argument("--list", action="store_true", help="print the tests, run nothing")
    parser.add_argument("--json", metavar="FILE", help="write every outcome there")
    parser.add_argument(
        "--time-limit",
        type=float,
        default=180.0,
        metavar="S",
        help="kill a class in which no test began or ended for so long (180)",
    )
    parser.add_argument("--allow-flaky", action="store_true")
    parser.add_argument("--no-rerun", action="store_true", help="do not try failures again")
    parser.add_argument(
        "--fetch", action="store_true", help="first fetch the tests this Python came without"
    )
    parser.add_argument("--record-durations", action="store_true")
    parser.add_argument("-v", "--verbose", action="store_true")
    options = parser.parse_args(argv)

    # Whoever starts this in the background of a shell makes every child ignore SIGINT, and the
    # tests that send it fail, with the stdlib too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if options.fetch:
        import fetch_suite

        fetch_suite.main()  # where that fails, the table says what is missing
    started = time.monotonic()
    stdlib = stdlib_origin()
    ours = our_folder(options.mode)
    print(
        f"Python {sys.version.split()[0]}, mode {options.mode}, {options.jobs} at a time",
        flush=True,
    )
    root = Path(tempfile.mkdtemp(prefix="mpxc-", dir=os.environ.get("TMPDIR")))
    try:
        return run(options, root, ours, stdlib, started)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def run(options, root: Path, ours: str | None, stdlib: str, started: float) -> int:
    modes = {options.mode: prepare(options.mode, root, ours, stdlib)}
    mode = modes[options.mode]
    units = select(mode, options.only)
    count = sum(len(u.methods) for u in units)
    if options.list:
        for unit in units:
            for method in unit.methods:
                print(f"{unit.name}.{method}")
        for group in mode.groups:
            number = sum(len(u.methods) for u in units if u.group == group.name)
            print(f"{group.name}: {number} ({group.source})", file=sys.stderr)
        return 0

    times: Counter[str] = Counter()
    methods_done = 0

    def progress(one: Running, found: dict[str, Outcome], left: int) -> None:
        nonlocal methods_done
        methods_done += sum(not m.startswith("<") for m in found)
        took = time.monotonic() - one.started
        times[one.unit.group] += took
        bad = [m for m, o in found.items() if o.state == FAILED]
        if options.verbose or bad:
            print(
                f"[{methods_done}/{count}] {one.unit.name} {took:.1f} s"
                + "".join(f"\n    {m}: {last_line(found[m].detail)}" for m in bad),
                flush=True,
            )

    settings = {"limit": options.time_limit, "stdlib": stdlib}
    outcomes = run_units(mode, units, jobs=options.jobs, ours=ours, progress=progress, **settings)
    for name, error in mode.notes.items():
        if not options.only:
            outcomes[name] = Outcome(FAILED, 0.0, error)

    def again(where: str, name: str) -> bool:
        if where not in modes:
            modes[where] = prepare(where, root, None, stdlib)
        folder = ours if where == options.mode else None
        limit = min(options.time_limit, 60.0)
        return passes(
            modes[where], name, where == options.mode, ours=folder, limit=limit, stdlib=stdlib
        )

    if options.no_rerun:
        judge(outcomes, options.mode, again, most=0)
    else:
        judge(outcomes, options.mode, again)

    problems = []
    if not options.only:
        found = Counter(u.group for u in units for _ in u.methods)
        problems += below_floor(mode.groups, found, mode.name)
        missing = missing_excuses(mode.groups, outcomes, mode.name)
        problems += [f"excused, but not there: {name}" for name in missing]
    report(options, mode, outcomes, times, time.monotonic() - started)
    if options.record_durations:
        record(outcomes)
    if options.json:
        data = {n: vars(o) for n, o in sorted(outcomes.items())}
        Path(options.json).write_text(json.dumps(data, indent=1))
    flaky = [n for n, o in outcomes.items() if o.state == FLAKY]
    bad = [n for n, o in outcomes.items() if o.state in (FAILED, STALE)]
    if not any(o.state == PASSED for o in outcomes.values()):
        problems.append("no test passed: nothing ran")
    for problem in problems:
        print(f"ERROR: {problem}")
    print(closing_line(outcomes), flush=True)
    return 1 if bad or problems or (flaky and not options.allow_flaky) else 0


def last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def report(options, mode: Mode, outcomes, times, wall: float) -> None:
    bad = [item for item in sorted(outcomes.items()) if item[1].state in BAD]
    for name, outcome in bad[:SHOWN]:
        print(f"\n== {outcome.state.upper()}: {name}\n{outcome.detail.strip()}")
    if len(bad) > SHOWN:
        print(f"\n{len(bad) - SHOWN} more tracebacks: --json")
    print()
    for state in (STDLIB, EXCUSED_STATE, STALE, FLAKY, FAILED):
        for name, outcome in sorted(outcomes.items()):
            if outcome.state == state:
                print(f"{state}: {name}: {last_line(outcome.detail)}")
    print()
    print(table(mode.groups, outcomes, times))
    for group in mode.groups:
        if group.source not in ("own", "own script"):
            print(f"{group.name}: {group.source}")
    print(f"{wall:.0f} s in all, {options.mode} mode, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    sys.exit(main())
