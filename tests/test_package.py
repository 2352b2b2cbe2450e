"""What an installation holds: every package, the kernels, the zoo."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOP = ("models", "runtime", "demos")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def setup_script() -> Any:
    spec = importlib.util.spec_from_file_location("dreamloop_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package_map() -> dict[str, str]:
    return dict(setup_script().package_map())


def test_every_folder_with_python_files_is_a_package() -> None:
    folders = {path.parent.relative_to(ROOT).as_posix() for top in TOP for path in (ROOT / top).rglob("*.py")}
    assert package_map() == {f"dreamloop.{folder.replace('/', '.')}": folder for folder in folders}


def test_dreamloop_itself_stays_a_namespace() -> None:
    assert not (ROOT / "dreamloop").exists()


@pytest.mark.parametrize("broken", [(), ("cuda",), ("cuda", "cpu")])
def test_an_nvcc_that_cannot_build_costs_no_more_than_the_cuda_kernels(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
        broken: tuple[str, ...]) -> None:
    from setuptools import Extension
    from setuptools.dist import Distribution
    build = setup_script().BuildKernels(Distribution())
    build.build_lib, build.build_temp = str(tmp_path / "lib"), str(tmp_path / "temp")
    asked: list[tuple[str, ...]] = []

    def cmake(target: Path, folder: Path, *options: str) -> None:
        asked.append(options)
        if ("cpu" if options else "cuda") in broken:
            raise subprocess.CalledProcessError(1, "cmake", "nvcc fatal: unsupported architecture")
    monkeypatch.setattr(build, "_cmake", cmake)
    build.build_extension(Extension("dreamloop.runtime._kernels", []))
    assert asked == [(), ("-DDREAMLOOP_CUDA=OFF",)][: 1 + bool(broken)]
    said = capsys.readouterr().err
    assert ("once more, without CUDA" in said) == bool(broken) and ("no compiled kernels" in said) == ("cpu" in broken)


def test_playing_needs_no_torch_and_no_game() -> None:
    """By the metadata: the base requirements name neither, the extras do."""
    def bare(requirements: list[str]) -> set[str]:
        return {re.split(r"[^A-Za-z0-9_-]", entry)[0] for entry in requirements}
    assert bare(PROJECT["dependencies"]) == {
        "numpy", "safetensors", "pygame-ce", "av", "rich", "onnx", "ml_dtypes", "onnxruntime"}
    extras = PROJECT["optional-dependencies"]
    assert "torch" in bare(extras["train"]) and "vizdoom" in bare(extras["games"])


def test_no_registry_is_named() -> None:
    """Whoever builds decides where packages come from; links to projects are not addresses of packages."""
    for name in ("pyproject.toml", "setup.py", "Makefile", ".ci/run", "CMakeLists.txt"):
        text = (ROOT / name).read_text("utf-8")
        assert not re.search(r"index-url|find-links|https?://", text), name


@pytest.mark.long
def test_a_wheel_plays_from_another_folder(tmp_path: Path) -> None:
    """Build a wheel of a clean copy, install it into an empty environment that borrows only
    third-party packages, and import from elsewhere: the kernels run, every world of the zoo loads."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(
        ".*", "build", "dist", "runs", "recordings", "*.so", "*.egg-info", "__pycache__"))
    built = subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "-v", "-w", str(tmp_path), str(source)],
                           capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    assert "absent from the `packages` configuration" not in built.stdout + built.stderr
    (wheel,) = tmp_path.glob("dreamloop-*.whl")
    files = {path.relative_to(source).as_posix() for top in TOP for path in (source / top).rglob("*")
             if path.is_file() and (path.suffix == ".py" or "zoo" in path.parts)}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("dreamloop/")}
    kernels_file = {name for name in held if "/_kernels." in name}
    assert len(kernels_file) == 1
    assert held - kernels_file == {f"dreamloop/{path}" for path in files}

    target = tmp_path / "env"
    venv.create(target, with_pip=False)
    python = target / "bin" / "python"
    site = next((target / "lib").glob("python*")) / "site-packages"
    zipfile.ZipFile(wheel).extractall(site)
    borrowed = next(path for path in sys.path if path.endswith("site-packages"))
    # appended as a plain folder: its .pth files, the editable install among them, do not run
    code = (f"import sys; sys.path.append({borrowed!r}); from dreamloop.models import load_world, zoo_names;"
            "from dreamloop.models.core import world; from dreamloop.runtime import kernels;"
            "[load_world(name) for name in zoo_names()]; print(world.__file__); print(kernels.available())")
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment,
                          check=True)
    where, kernels_missing = done.stdout.splitlines()
    assert Path(where).is_relative_to(site)
    assert kernels_missing == "None"
