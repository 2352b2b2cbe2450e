"""Who may import whom: the table of docs/design.md section 5, held against the source of every file.

An import is lazy when it stands inside a function (or under TYPE_CHECKING): it runs only for whoever
calls. All others run when the module is imported, so they decide what playing needs.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOP = ("models", "runtime", "demos")


@dataclass(frozen=True)
class Layer:
    """What the files under one path may import: names of packages, everything below them included.
    lazy: only inside a function. `dreamloop.models` with a `!` is that module alone, not what is below."""

    path: str
    eager: frozenset[str]
    lazy: frozenset[str] = frozenset()


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


CORE, NETWORKS, TRAINING = "dreamloop.models.core", "dreamloop.models.networks", "dreamloop.models.training"
# the first layer whose path holds a file is the file's layer
TABLE = (
    Layer("models/core/hub.py", names(CORE), names("huggingface_hub")),
    Layer("models/core", names(f"{CORE} numpy safetensors")),
    Layer("models/networks", names(f"{CORE} {NETWORKS} numpy safetensors torch")),
    Layer("models/training", names(f"{CORE} {NETWORKS} {TRAINING} dreamloop.models! numpy safetensors torch rich av "
                                   "vizdoom gymnasium"), names("ale_py skimage matplotlib")),
    Layer("models", names(CORE)),
    Layer("runtime/engines/torch_engine.py",
          names(f"{CORE} dreamloop.models! dreamloop.runtime {NETWORKS} numpy torch")),
    Layer("runtime/engines/triton", names(f"{CORE} dreamloop.models! dreamloop.runtime {NETWORKS} numpy torch")),
    Layer("runtime/bench_cuda", names(f"{CORE} dreamloop.models! dreamloop.runtime {NETWORKS} numpy torch"),
          names("rich matplotlib")),
    # triton: where it is missing, or there is no GPU, runtime/gpu/__init__.py hands out plain.py
    Layer("runtime/gpu/__init__.py", names("dreamloop.runtime"), names("torch triton")),
    Layer("runtime/gpu", names(f"{CORE} {NETWORKS} dreamloop.runtime numpy torch triton")),
    Layer("runtime/engines/trt", names(f"{CORE} dreamloop.models! dreamloop.runtime numpy"), names("torch")),
    # google.protobuf is what onnx files are made of, ml_dtypes holds its low precisions; both come with onnx
    Layer("runtime/engines",
          names(f"{CORE} dreamloop.models! dreamloop.runtime numpy onnx onnxruntime ml_dtypes google.protobuf"),
          names("openvino")),  # compared with by `dreamloop bench`; nothing plays on it
    Layer("runtime/evaluate", names(f"{CORE} dreamloop.models! dreamloop.runtime numpy"),
          names(f"{TRAINING}.games {NETWORKS} torch av skimage matplotlib rich safetensors")),
    Layer("runtime", names(f"{CORE} dreamloop.models! dreamloop.runtime numpy"),
          names("torch onnx onnxruntime av skimage matplotlib rich safetensors")),
    Layer("demos/environment.py", names("dreamloop numpy gymnasium"), names("pygame")),  # a Gymnasium class is one
    Layer("demos/agent.py", names("dreamloop numpy gymnasium")),
    Layer("demos", names("dreamloop numpy rich av pygame matplotlib"),
          names("torch vizdoom gymnasium onnx onnxruntime")))

# engines whose module needs more than playing does: imported lazily or not at all
HEAVY = ("dreamloop.runtime.engines.torch_engine", "dreamloop.runtime.engines.triton_engine")


def sources() -> list[str]:
    """Every Python file of the packages, relative to the root."""
    return sorted(str(path.relative_to(ROOT)) for top in TOP for path in (ROOT / top).rglob("*.py"))


def layer_of(file: str) -> Layer:
    return next(layer for layer in TABLE
                if file == layer.path or file.startswith((layer.path + "/", layer.path + ".", layer.path + "_")))


def is_module(name: str) -> bool:
    path = ROOT / name.removeprefix("dreamloop.").replace(".", "/")
    return name.startswith("dreamloop.") and (path.is_dir() or path.with_suffix(".py").is_file())


def imports(source: str, file: str) -> Iterator[tuple[str, bool, int]]:
    """(module, lazy, line) of every import; `from package import module` is an import of the module."""
    def visit(node: ast.AST, lazy: bool) -> Iterator[tuple[str, bool, int]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, lazy, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import; write dreamloop.<path>"
            module = node.module or ""
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield inner if is_module(inner) else module, lazy, node.lineno
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, lazy or inside or checking)
    yield from visit(ast.parse(source, file), False)


def allowed(module: str, packages: frozenset[str]) -> bool:
    return any(module == name.removesuffix("!") or module.startswith(name + ".") for name in packages)


def faults(source: str, file: str) -> list[str]:
    """Imports of one file that its layer does not allow, one line each."""
    layer, found = layer_of(file), []
    for module, lazy, line in imports(source, file):
        if module.split(".")[0] in sys.stdlib_module_names:
            continue
        if not (allowed(module, layer.eager) or (lazy and allowed(module, layer.lazy))):
            kind = "lazy" if lazy else "module-level"
            found.append(f"{file}:{line}: {kind} import of {module}; {layer.path} may not")
        if not lazy and module in HEAVY and "torch" not in layer.eager:
            found.append(f"{file}:{line}: {module} may be imported lazily only")
    return found


@pytest.mark.parametrize("file", sources())
def test_file_imports_only_what_its_layer_may(file: str) -> None:
    assert faults((ROOT / file).read_text("utf-8"), file) == []


@pytest.mark.parametrize(("file", "line"), [
    ("models/core/plan.py", "import torch"),
    ("models/core/plan.py", "def f():\n    import torch"),
    ("models/core/plan.py", "from dreamloop.models import networks"),
    ("models/__init__.py", "from dreamloop.models.networks import autoencoder"),
    ("models/networks/dit.py", "from dreamloop.models.training.run import Run"),
    ("models/training/run.py", "from dreamloop.runtime import Session"),
    ("models/training/run.py", "def f():\n    import dreamloop.runtime.session"),
    ("runtime/session.py", "import torch"),
    ("runtime/session.py", "try:\n    import torch\nexcept ImportError:\n    pass"),
    ("runtime/session.py", "class A:\n    import torch"),
    ("runtime/session.py", "from dreamloop.runtime.engines import torch_engine"),
    ("runtime/session.py", "from dreamloop.runtime.engines.torch_engine import TorchEngine"),
    ("runtime/session.py", "def f():\n    from dreamloop.demos import cli"),
    ("runtime/session.py", "def f():\n    from dreamloop.models.training import games"),
    ("runtime/engines/onnx_engine.py", "from dreamloop.models.networks.dit import Dynamics"),
    ("runtime/engines/torch_engine.py", "from dreamloop.models.training.run import Run"),
    ("runtime/evaluate.py", "from dreamloop.models.training import games"),
    ("runtime/evaluate.py", "def f():\n    from dreamloop.models.training import run"),
    ("demos/cli.py", "import torch"),
    ("demos/cli.py", "from dreamloop.runtime.engines import torch_engine"),
    ("demos/cli.py", "import runtime.session")])
def test_the_check_finds_a_forbidden_import(file: str, line: str) -> None:
    assert faults(line, file) != []


@pytest.mark.parametrize(("file", "line"), [
    ("models/core/plan.py", "import os.path, numpy as np\nfrom dreamloop.models.core import memory"),
    ("runtime/session.py", "def f():\n    from dreamloop.runtime.engines import torch_engine"),
    ("runtime/session.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
    ("runtime/session.py", "from dreamloop.models import load_world"),
    ("runtime/evaluate.py", "def f():\n    from dreamloop.models.training import games"),
    ("runtime/evaluate_figures.py", "def f():\n    from dreamloop.models.training.games import doom"),
    ("runtime/engines/torch_engine.py", "import torch\nfrom dreamloop.models.networks import dit"),
    ("demos/cli.py", "def f():\n    import torch")])
def test_the_check_allows_what_the_table_allows(file: str, line: str) -> None:
    assert faults(line, file) == []


@pytest.mark.parametrize("module", ["dreamloop.models", "dreamloop.runtime", "dreamloop.demos.cli"])
def test_importing_a_public_package_loads_nothing_heavy(module: str) -> None:
    """A fresh interpreter: what it takes to say `dreamloop --help`, and to write `import dreamloop.runtime`."""
    heavy = ("torch", "onnxruntime", "onnx", "pygame", "vizdoom", "gymnasium", "av", "matplotlib", "skimage")
    code = f"import sys, {module}; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
