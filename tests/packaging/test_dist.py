"""What is built and installed: sdist, wheel, pure wheel, editable install, and the .pth file.

Everything is built from a copy of the tree, and installed in new venvs.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PTH = "mproc_ext_alias.pth"
SWITCHES = ("DEBUG", "SANITIZE", "COVERAGE", "WERROR", "PURE")

pytestmark = pytest.mark.timeout(600)

# Run in a process that is started by hand, so that its children need its main module.
SMOKE = """\
import sys
import mproc_ext

def target(queue, number):
    queue.put((number + 1, mproc_ext.__file__))

if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        context = mproc_ext.get_context(method)
        queue = context.Queue()
        process = context.Process(target=target, args=(queue, 41))
        process.start()
        assert queue.get(timeout=60) == (42, mproc_ext.__file__)
        process.join(60)
        assert process.exitcode == 0, process.exitcode
    print(mproc_ext.ACCELERATED, mproc_ext.__version__, mproc_ext.__file__)
"""


def environment(**changes):
    """The environment without what would change a build or a start of Python."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MPROC_EXT_", "PYTHON", "LD_PRELOAD"))
    }
    return kept | changes


def run(*command, cwd, env=None):
    """Standard output; what went wrong is in the failure's text."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment() if env is None else env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
    )
    if done.returncode:
        pytest.fail(f"{command} gave {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def build(source, folder, *arguments, **switches):
    """Build in `source`; the path of the one file that comes out."""
    folder.mkdir(exist_ok=True)
    env = environment(**{f"MPROC_EXT_{name}": value for name, value in switches.items()})
    run(sys.executable, "-m", "build", *arguments, "--outdir", folder, source, cwd=folder, env=env)
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the source tree that builds may write to."""
    copy = tmp_path_factory.mktemp("tree") / "mproc_ext"
    skipped = shutil.ignore_patterns(
        ".git", ".venv*", "build", "dist", "__pycache__", "*.egg-info", "*.so", ".*_cache"
    )
    shutil.copytree(ROOT, copy, ignore=skipped)
    return copy


@pytest.fixture(scope="module")
def sdist(tree, tmp_path_factory):
    return build(tree, tmp_path_factory.mktemp("sdist"), "--sdist")


@pytest.fixture(scope="module")
def unpacked(sdist, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (top,) = folder.iterdir()
    return top


@pytest.fixture(scope="module")
def wheel(unpacked, tmp_path_factory):
    """Built from what the sdist holds."""
    return build(unpacked, tmp_path_factory.mktemp("wheel"), "--wheel")


class Installed:
    """A venv with the package."""

    def __init__(self, folder, *arguments):
        venv.create(folder, with_pip=True, symlinks=True)
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.site = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder)}))
        self.before = self.contents()
        self.pip("install", *arguments)

    def pip(self, *arguments):
        run(self.python, "-m", "pip", "-q", *arguments, cwd=self.folder)

    def contents(self):
        found = (path.relative_to(self.site) for path in self.site.rglob("*"))
        return {path for path in found if "__pycache__" not in path.parts}

    def run(self, *arguments, **variables):
        return run(self.python, *arguments, cwd=self.folder, env=environment(**variables))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


def tracked_files():
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: there is no list to compare with")
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}


def test_sdist_holds_every_tracked_file(unpacked):
    held = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    missing = {
        name
        for name in tracked_files() - held
        if name != ".gitignore" and not name.startswith(".github/")
    }
    assert not missing


def test_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read("mproc_ext-0.1.0.dist-info/METADATA").decode()
    sources = ROOT / "mproc_ext"
    expected = {
        str(path.relative_to(ROOT))
        for pattern in ("*.py", "*.pyi", "py.typed")
        for path in sources.rglob(pattern)
    }
    core = "mproc_ext/_core" + sysconfig.get_config_var("EXT_SUFFIX")
    assert names == expected | {PTH, "_mproc_ext_alias.py", core}
    assert "mproc_ext/py.typed" in names
    assert "License: MIT" in metadata or "License-Expression: MIT" in metadata
    assert "Requires-Dist" not in "".join(
        line for line in metadata.splitlines() if "extra ==" not in line
    ), "the package depends on nothing"


def test_every_public_module_has_a_stub():
    modules = {
        path.relative_to(ROOT).with_suffix("")
        for path in (ROOT / "mproc_ext").rglob("*.py")
        if not path.name.startswith("_") or path.name == "__init__.py"
    }
    stubs = {path.relative_to(ROOT).with_suffix("") for path in ROOT.glob("mproc_ext/**/*.pyi")}
    assert modules <= stubs, sorted(map(str, modules - stubs))
    assert Path("mproc_ext/_core") in stubs


def test_installed_package_works(installed, tmp_path):
    program = tmp_path / "smoke.py"
    program.write_text(SMOKE)
    accelerated, version, file = installed.run(program).stdout.split()
    assert accelerated == "True"
    assert version == "0.1.0"
    assert Path(file).is_relative_to(installed.site)


WHICH = "import multiprocessing, multiprocessing.pool; print(multiprocessing.__name__)"


def test_pth_does_nothing_where_the_variable_is_not_set(installed):
    code = "import sys; print([m for m in sys.modules if 'mproc' in m or 'multiproc' in m])"
    for variables in ({}, {"MPROC_EXT_ALIAS": ""}, {"MPROC_EXT_ALIAS": "0"}):
        done = installed.run("-c", code, **variables)
        assert done.stdout.strip() == "[]"
        assert done.stderr == ""
    (line,) = (installed.site / PTH).read_text().splitlines()
    assert line.startswith("import ")


@pytest.mark.parametrize("flags", [(), ("-I",), ("-E",), ("-s",)])
def test_pth_aliases_every_python_of_the_environment(installed, flags):
    done = installed.run(
        *flags,
        "-c",
        "import multiprocessing, mproc_ext, multiprocessing.pool, mproc_ext.pool;"
        "print(multiprocessing is mproc_ext, multiprocessing.pool is mproc_ext.pool)",
        MPROC_EXT_ALIAS="1",
    )
    assert done.stdout.split() == ["True", "True"]
    assert done.stderr == ""


def test_pth_is_skipped_with_site(installed):
    done = installed.run(
        "-S",
        "-c",
        "import multiprocessing, sys; print('mproc_ext' in sys.modules)",
        MPROC_EXT_ALIAS="1",
    )
    assert done.stdout.split() == ["False"]


def test_pth_serves_a_spawned_child(installed, tmp_path):
    program = tmp_path / "aliased.py"
    program.write_text(SMOKE.replace("mproc_ext", "multiprocessing"))
    done = installed.run(program, MPROC_EXT_ALIAS="1")
    assert done.stdout.split()[0] == "True"


def test_pure_wheel_hands_out_the_stdlib(unpacked, tmp_path):
    pure = build(unpacked, tmp_path / "wheel", "--wheel", PURE="1")
    assert pure.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(pure) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
        assert PTH in archive.namelist()
    installed = Installed(tmp_path / "venv", pure)
    program = tmp_path / "smoke.py"
    program.write_text(SMOKE)
    assert installed.run(program).stdout.split()[0] == "False"
    code = (
        "import multiprocessing, mproc_ext; "
        "print(mproc_ext.Process is multiprocessing.Process, mproc_ext.Queue, "
        "multiprocessing.Queue)"
    )
    assert installed.run("-c", code).stdout.split()[0] == "True"


def test_uninstalling_leaves_nothing(wheel, tmp_path):
    installed = Installed(tmp_path / "venv", wheel)
    assert (installed.site / PTH).exists()
    installed.run("-c", WHICH, MPROC_EXT_ALIAS="1")  # leaves bytecode behind
    installed.pip("uninstall", "-y", "mproc_ext")
    assert installed.contents() == installed.before
    assert not list(installed.folder.rglob("*mproc_ext*"))
    done = installed.run("-c", WHICH, MPROC_EXT_ALIAS="1")
    assert done.stdout.split() == ["multiprocessing"]
    assert done.stderr == ""


def test_editable_install_has_core_and_alias(tree, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tree, source)
    installed = Installed(tmp_path / "venv", "-e", source)
    code = (
        "import multiprocessing, mproc_ext;"
        "print(multiprocessing is mproc_ext, mproc_ext.ACCELERATED, mproc_ext.__file__)"
    )
    aliased, accelerated, file = installed.run("-c", code, MPROC_EXT_ALIAS="1").stdout.split()
    assert (aliased, accelerated) == ("True", "True")
    assert Path(file).is_relative_to(source)
    installed.pip("uninstall", "-y", "mproc_ext")
    assert installed.contents() == installed.before


@pytest.mark.parametrize(
    ("switch", "value", "flags"),
    [
        ("DEBUG", "1", ["-O0", "-g"]),
        ("SANITIZE", "undefined", ["-fsanitize=undefined"]),
        ("COVERAGE", "1", ["--coverage"]),
        ("WERROR", "1", ["-Werror"]),
    ],
)
def test_build_switch(unpacked, tmp_path, switch, value, flags):
    source = tmp_path / "source"
    shutil.copytree(unpacked, source)
    env = environment(**{f"MPROC_EXT_{switch}": value})
    done = run(
        sys.executable, "-m", "pip", "-v", "wheel", "--no-deps", "-w", tmp_path, source,
        cwd=tmp_path, env=env,
    )  # fmt: skip
    output = (done.stdout + done.stderr).splitlines()
    (compiled,) = (line for line in output if " -c src/py/module.c " in line)
    assert set(flags) <= set(compiled.split())
    if switch == "COVERAGE":
        assert list(source.rglob("*.gcno")), "gcov's notes are beside the objects"
    (made,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(made) as archive:
        archive.extractall(tmp_path / "site")
    env["PYTHONPATH"] = str(tmp_path / "site")
    code = "import mproc_ext; print(mproc_ext.ACCELERATED)"
    assert run(sys.executable, "-c", code, cwd=tmp_path, env=env).stdout == "True\n"


def test_a_failed_compilation_fails_the_build(unpacked, tmp_path):
    """Nobody is to get the package without its core by accident."""
    source = tmp_path / "source"
    shutil.copytree(unpacked, source)
    broken = next((source / "src" / "py").glob("*.c"))
    broken.write_text("#error broken\n" + broken.read_text())
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, source],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode != 0
    assert "error: #error broken" in done.stdout + done.stderr
    assert not list(tmp_path.glob("*.whl"))
