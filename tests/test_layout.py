"""Who may import whom, and where the engine may be named."""

import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("server", "policies", "processors", "steering")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports, anywhere in it, also by name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "__import__",
        ):
            names.update(arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant))
    return {name.partition(".")[0] for name in names}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or shutil.which(
        "lint-imports"
    )
    assert command, "import-linter is a development dependency: pip install -e .[dev]"
    environ = {"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [command, "--no-cache"],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_direction_of_imports():
    """server sees policies, those see the wire contracts, processors and steering never see each other."""
    linted = lint(ROOT)
    assert linted.returncode == 0, linted.stdout
    assert "0 broken" in linted.stdout
    assert f"{len(PROJECT['tool']['importlinter']['contracts'])} kept" in linted.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("policies/wrong.py", "import processors.ads"),
        ("policies/wrong.py", "def late():\n    import torch"),
        ("policies/wrong.py", "import server.errors"),
        ("steering/wrong.py", "import processors.args"),
        ("processors/wrong.py", "import policies.vote"),
    ],
)
def test_the_contracts_can_break(tmp_path, module, line):
    """The contracts reject what they are for, within functions too."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / module).write_text(f"{line}\n")
    linted = lint(tmp_path)
    assert linted.returncode == 1, linted.stdout
    assert "BROKEN" in linted.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_vllm_is_imported_only_by_its_adapters(path):
    """An import of vllm lives in a file named vllm_*.py, so that their list is what an upgrade touches."""
    assert path.name.startswith("vllm_") or "vllm" not in imported(path)


def test_an_adapter_earns_its_name():
    """Every file named vllm_*.py imports vllm: the name marks what an upgrade may break."""
    adapters = [path for path in SOURCES if path.name.startswith("vllm_")]
    assert adapters
    assert [path.name for path in adapters if "vllm" not in imported(path)] == []


def test_packages_are_empty():
    """The four packages' own modules hold no code, so importing a wire contract pulls in nothing else."""
    assert [package for package in PACKAGES if (ROOT / package / "__init__.py").read_text().strip()] == []


def test_every_package_is_installed():
    """Each folder with modules stands in the list of packages that an install copies."""
    folders = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in SOURCES}
    assert folders == set(PROJECT["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize("module", ["processors.args", "policies.sampling", "policies.vote", "policies.run"])
def test_plain_python_loads_no_engine(module):
    """What plans and judges loads neither torch nor FastAPI nor vLLM, by whatever way."""
    program = f"import sys, {module}; print({{'torch', 'fastapi', 'vllm'}} & sys.modules.keys())"
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout == "set()\n"
