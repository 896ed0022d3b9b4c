"""The kernel without a GPU: interpreted, against the torch path, and compiled for the GPUs that run it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILE = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton import compile
from steering.triton_steer import steer

width, kind, has_residual, capability = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "True", int(sys.argv[4])
fixed = {"layers": 32, "width": width, "block": 1 << (width - 1).bit_length(), "has_residual": has_residual}
kinds = dict.fromkeys(("bank", "floats", "unit_numbers", "sums", "norms", "counts"), "*fp32")
kinds |= dict.fromkeys(("layer", "hidden_stride", "residual_stride"), "i32")
kinds |= {"hidden": "*" + kind, "residual": "*" + kind, "counts": "*i32"} | dict.fromkeys(fixed, "constexpr")
signature = {name: kinds.get(name, "*i32") for name in steer.arg_names}
source = ASTSource(fn=steer, signature=signature, constexprs=fixed)
print(len(compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]))
"""

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def python(*arguments, **environ):
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=inherited | {"PYTHONPATH": str(ROOT)} | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


@needs_triton
def test_interpreted_it_does_what_torch_does():
    """All of `interpreted_kernel`, where Triton is imported as its interpreter."""
    arguments = ("-p", "no:cacheprovider", "--noconftest", "-q", "tests/steering/interpreted_kernel.py")
    ran = python("-m", "pytest", *arguments, TRITON_INTERPRET="1")
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]


@needs_triton
@pytest.mark.parametrize(
    ("width", "kind", "has_residual", "capability"),
    [(576, "bf16", True, 80), (16_384, "fp32", False, 90)],
)
def test_it_compiles_for_gpus(tmp_path, width, kind, has_residual, capability):
    """The interpreter takes what the compiler refuses, types above all."""
    if importlib.util.find_spec("triton.backends.nvidia") is None:
        pytest.skip("this Triton does not compile for NVIDIA GPUs")
    words = map(str, (width, kind, has_residual, capability))
    ran = python("-c", COMPILE, *words, TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert int(ran.stdout) > 0


def test_naming_it_costs_nothing():
    """On a CPU the module is imported, if at all, without Triton and without the engine."""
    ran = python("-c", "import sys, steering.kernel; print({'triton', 'vllm'} & sys.modules.keys())")
    assert ran.stdout == "set()\n", ran.stderr
