"""The programs that these tests run; a test is skipped, with what to do, where one is missing."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(os.environ.get("STEERSMAN_TOOLS", Path.home() / ".cache/steersman/tools"))


def tool(name: str) -> str:
    """Its path. Skips the test where it is not installed."""
    found = shutil.which(name, path=f"{TOOLS / 'bin'}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed: run deploy/tools.sh", allow_module_level=True)
    return found


def run(name: str, *args: object, cwd: Path = ROOT, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [tool(name), *map(str, args)], cwd=cwd, capture_output=True, text=True, check=False, timeout=300
    )
    assert not check or done.returncode == 0, f"{name} {args}\n{done.stdout}\n{done.stderr}"
    return done


def script(path: str) -> ModuleType:
    """A Python file that is no part of a package, as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str((ROOT / path).parent))  # as if it were run
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module
