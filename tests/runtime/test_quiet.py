"""Nothing that is imported to play sends anything anywhere."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dreamloop.runtime import engine_status

PROGRAM = """
import os
from dreamloop.runtime import engine_status
assert engine_status("onnxruntime").available
print(os.environ["ORT_DISABLE_TELEMETRY"], "onnxruntime" in __import__("sys").modules)
"""


@pytest.mark.skipif(not engine_status("onnxruntime").available, reason="onnxruntime is not installed")
@pytest.mark.parametrize(("set_to", "found"), [(None, "1"), ("0", "0")])
def test_onnx_runtime_sends_no_figures_home_unless_the_user_lets_it(set_to: str | None, found: str) -> None:
    variables = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    if set_to is not None:
        variables["ORT_DISABLE_TELEMETRY"] = set_to
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=variables)
    assert done.stdout.split() == [found, "True"]
