"""What pyproject.toml cannot say: that the wheel has a library in C, compiled by zig, and can do without it.

Where it cannot be compiled, what is installed says why (`tintype devices`), and draws with ONNX Runtime's own.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = Path("kernels/native")


def _load_compiler() -> Any:
    """kernels/native/compile.py, from its file: the package that it belongs to isn't installed yet."""
    spec = importlib.util.spec_from_file_location("tintype_compile", NATIVE / "compile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


compiler = _load_compiler()


class BuildLibrary(build_ext):
    """The library in place of a module of Python, in an editable installation beside its sources."""

    def get_ext_filename(self, fullname: str) -> str:
        target = compiler.this_target()
        name = compiler.TARGETS[target].library if target is not None else compiler.MISSING
        return str(Path(*fullname.split(".")[:-1], name))

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if Path(path).exists()]

    def get_output_mapping(self) -> dict[str, str]:
        return {made: source for made, source in super().get_output_mapping().items() if Path(made).exists()}

    def build_extension(self, ext: Extension) -> None:
        folder = Path(self.get_ext_fullpath(ext.name)).parent
        folders = {folder, NATIVE} if self.inplace or self.editable_mode else {folder}
        try:
            for each in folders:  # what an earlier build left would be taken for this one's
                for name in (compiler.MISSING, *(target.library for target in compiler.TARGETS.values())):
                    (each / name).unlink(missing_ok=True)
            compiler.compile_library(folder)
        except (compiler.CompileError, OSError) as error:  # Windows lets nobody remove a library that is in use
            print(f"warning: no library of operators: {error}", file=sys.stderr)
            for each in folders:
                each.mkdir(parents=True, exist_ok=True)
                (each / compiler.MISSING).write_text(f"{error}\n", encoding="utf-8")


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3 of one system, or of all where it has no library."""

    def get_tag(self) -> tuple[str, str, str]:
        target = compiler.this_target()
        made = any(Path(self.bdist_dir or "").rglob(compiler.TARGETS[target].library)) if target is not None else False
        return ("py3", "none", compiler.TARGETS[target].wheel if made and target is not None else "any")


setup(
    ext_modules=[
        Extension(
            "tintype.kernels.native.library_in_c",
            sources=sorted(map(str, NATIVE.glob("src/*.c"))),
            depends=sorted(map(str, NATIVE.glob("src/*.h"))),
            optional=True,  # an editable installation without it is one too
        )
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
