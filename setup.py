"""Build mproc_ext: the C core ``mproc_ext._core`` and the ``.pth`` file of MPROC_EXT_ALIAS.

The metadata is in pyproject.toml; here is what needs code.  Switches, by environment:

    MPROC_EXT_DEBUG=1         -O0 -g, assertions on
    MPROC_EXT_SANITIZE=LIST   address, undefined, thread (comma list, handed to -fsanitize)
    MPROC_EXT_COVERAGE=1      gcov's counters
    MPROC_EXT_WERROR=1        warnings are errors
    MPROC_EXT_KILL_POINTS=1   for the storms of tests/sync: a core that can be told where to die
    MPROC_EXT_PURE=1          leave the core out; the package then hands out the stdlib

The core is left out on its own where the platform is not Linux.  On Linux it is not optional:
a build that quietly came out without it would look like a slow machine, not like an error.
"""

import os
import re
import shutil
import sys
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PTH_NAME = "mproc_ext_alias.pth"

# Runs at the start of every Python of the environment, so it costs one lookup where the variable
# is not set.  -S skips .pth files; -E and -I do not: they tell Python to ignore PYTHON* variables,
# and a child that an aliased parent starts with -I has to be aliased as well.
PTH_LINE = (
    'import os; os.environ.get("MPROC_EXT_ALIAS") == "1" and '
    '__import__("_mproc_ext_alias").enable()\n'
)


def switch(name):
    """Whether the environment has MPROC_EXT_<name> set to anything but 0."""
    return os.environ.get(f"MPROC_EXT_{name}", "") not in ("", "0")


def version():
    text = (ROOT / "mproc_ext" / "_version.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE).group(1)


def files(*patterns):
    """What the patterns match, sorted (builds are reproducible) and relative (sdists need it)."""
    return sorted(name for pattern in patterns for name in glob(pattern, root_dir=ROOT))


def flags():
    """Compiler and linker flags, by the switches."""
    compile_args = ["-std=c11", "-fvisibility=hidden", "-Wall", "-Wextra"]
    # Tables of the Python API end short, and its slots have parameters that nobody needs.
    compile_args += ["-Wno-missing-field-initializers", "-Wno-unused-parameter"]
    link_args = []
    if switch("WERROR"):
        compile_args.append("-Werror")
    if switch("DEBUG"):
        compile_args += ["-O0", "-g", "-UNDEBUG"]
    sanitizers = os.environ.get("MPROC_EXT_SANITIZE", "")
    if sanitizers:
        sanitize = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
        compile_args += [*sanitize, "-g", "-O1", "-fno-omit-frame-pointer", "-UNDEBUG"]
        link_args += sanitize
    if switch("COVERAGE"):
        compile_args += ["--coverage", "-O0", "-g", "-UNDEBUG"]
        link_args.append("--coverage")
    return compile_args, link_args


def extensions():
    if switch("PURE") or not sys.platform.startswith("linux"):
        return []
    compile_args, link_args = flags()
    sources = ["src/core/*.c", "src/py/*.c"]
    macros = [("MPX_VERSION", f'"{version()}"')]
    if switch("KILL_POINTS"):
        sources.append("src/testing/*.c")
        macros.append(("MPX_KILL_POINTS", "1"))
    return [
        Extension(
            "mproc_ext._core",
            sources=files(*sources),
            depends=files("src/core/*.h", "src/py/*.h"),
            include_dirs=["src/core", "src/py"],
            define_macros=macros,
            extra_compile_args=compile_args,
            extra_link_args=link_args,
        )
    ]


class BuildPy(build_py):
    """Adds the ``.pth`` file, at the top of site-packages, to wheels and editable installs."""

    def run(self):
        # A module that was deleted, or a core that another build left, must not come along.
        shutil.rmtree(os.path.join(self.build_lib, "mproc_ext"), ignore_errors=True)
        super().run()
        self.write_pth(self.build_lib)
        if self.editable_mode:
            # An editable wheel maps packages to the source tree and takes nothing else from
            # build_lib; its own top folder is where `install` would put the library.
            self.write_pth(self.get_finalized_command("install").install_lib)

    def write_pth(self, folder):
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, PTH_NAME), "w", encoding="utf-8") as file:
            file.write(PTH_LINE)

    def get_outputs(self, include_bytecode=1):
        return [*super().get_outputs(include_bytecode), os.path.join(self.build_lib, PTH_NAME)]


class BuildExt(build_ext):
    """Always compiles: the switches are no part of what decides whether a file is up to date."""

    def finalize_options(self):
        super().finalize_options()
        self.force = True


setup(
    version=version(),
    license="MIT",
    ext_modules=extensions(),
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt},
)
