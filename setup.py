"""Package map and kernel build: `pip install .`, `pip install -e .`, `pip wheel .`.

The folders models/, runtime/ and demos/ are the packages dreamloop.models, dreamloop.runtime and
dreamloop.demos; there is no dreamloop/ folder. CMake builds dreamloop.runtime._kernels and, where nvcc is found, the
CUDA kernels beside it. Without a compiler the build says so in one line and goes on: a world then plays through ONNX
Runtime.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TOP = ("models", "runtime", "demos")
CUDA_FILES = ("_cuda.so", "_cuda.ptx")  # that CMake leaves beside the module where nvcc is found


def package_map() -> dict[str, str]:
    """Package name -> folder, for every folder with an `__init__.py` below the three top ones."""
    inner = {top: [name.replace(".", "/") for name in find_packages(top)] for top in TOP}
    folders = [path for top in TOP for path in (top, *(f"{top}/{name}" for name in inner[top]))]
    return {f"dreamloop.{path.replace('/', '.')}": path for path in folders}


class BuildKernels(build_ext):
    """Calls CMake, and goes on without the kernels where it cannot."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        folder = Path(self.build_temp).resolve() / "kernels"
        for stale in (target, *(target.parent / name for name in CUDA_FILES)):
            stale.unlink(missing_ok=True)  # a stale module must not outlive a build that fails
        try:
            try:
                self._cmake(target, folder)
            except subprocess.CalledProcessError as error:  # an nvcc that is too old must not cost the CPU's kernels
                print(error.stdout, "dreamloop: once more, without CUDA", sep="\n", file=sys.stderr)
                self._cmake(target, folder, "-DDREAMLOOP_CUDA=OFF")
        except (OSError, ImportError) as error:
            self._go_on(str(error))
        except subprocess.CalledProcessError as error:
            print(error.stdout, file=sys.stderr)
            self._go_on(f"cmake failed with status {error.returncode}")

    def copy_extensions_to_source(self) -> None:
        """Of an editable installation: the module, which setuptools knows of, and what lies beside it."""
        super().copy_extensions_to_source()
        for name in CUDA_FILES:
            built, used = Path(self.build_lib, "dreamloop", "runtime", name), ROOT / "runtime" / name
            used.unlink(missing_ok=True)
            if built.is_file():
                shutil.copy2(built, used)

    @staticmethod
    def _go_on(reason: str) -> None:
        print(f"dreamloop: no compiled kernels ({reason}); worlds play through ONNX Runtime", file=sys.stderr)

    def _cmake(self, target: Path, folder: Path, *options: str) -> None:
        import pybind11  # a build requirement, absent when only metadata is asked for

        folder.mkdir(parents=True, exist_ok=True)
        configure = ["cmake", "--fresh", "-S", str(ROOT), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release",
                     f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                     f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}", *options]
        build = ["cmake", "--build", str(folder), "--parallel", str(os.cpu_count() or 1)]
        target.parent.mkdir(parents=True, exist_ok=True)
        for command in (configure, build):
            subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


if __name__ == "__main__":
    packages = package_map()
    setup(
        packages=list(packages),
        package_dir=packages,
        package_data={"dreamloop.models": ["zoo/**/*"]},
        include_package_data=False,  # what MANIFEST.in names is for the sources; the zoo is data, no package
        ext_modules=[Extension("dreamloop.runtime._kernels", [], optional=True)],
        cmdclass={"build_ext": BuildKernels},
    )
