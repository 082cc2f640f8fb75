"""Does the watcher of the shim see the races that are there, and no others?"""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from tests.kernels.building import HERE, compiled, host_compiler, launched

THREADS = 64
CASES = {
    # shared memory, between warps
    "neighbour": ("s[t] = t; {} out[t] = s[(t + 1) % 64];", "__syncthreads();", ""),
    "neighbour, a barrier of the warp": (
        "s[t] = t; {} out[t] = s[(t + 32) % 64];",
        "__syncthreads();",
        "__syncwarp();",
    ),
    "read, then overwritten": (
        "s[t] = t; __syncthreads(); int x = s[(t + 1) % 64]; {} s[t] = -x; out[t] = x;",
        "__syncthreads();",
        "",
    ),
    "read by two warps, then overwritten": (
        "s[t] = t; __syncthreads(); int x = s[0]; {} if (t == 63) s[0] = 7; out[t] = x;",
        "__syncthreads();",
        "",
    ),
    # within a warp
    "lanes": (
        "if (t < 32) {{ s[t] = t; {} out[t] = s[31 - t]; }}",
        "__syncwarp();",
        "",
    ),
    "lanes after a shuffle": (
        "s[t] = t; int x = {}; out[t] = s[t ^ 1] + x;",
        "__shfl_sync(~0u, t, 0)",
        "0",
    ),
    # atomics
    "counter read too early": (
        "if (t == 0) s[0] = 0; __syncthreads(); atomicAdd(&s[0], 1); {} out[t] = s[0];",
        "__syncthreads();",
        "",
    ),
    "counter without an atomic": (
        "if (t == 0) s[0] = 0; __syncthreads(); {} __syncthreads(); out[t] = s[0];",
        "atomicAdd(&s[0], 1);",
        "s[0] += 1;",
    ),
    # a flag: the same value from all is no race
    "flag": ("if (t % 3 == 0) out[0] = {};", "1", "t"),
    # blocks
    "blocks": ("out[{}] = 1 + blockIdx.x;", "blockIdx.x * 64 + t", "t"),
    "last block": (
        "out[64 + blockIdx.x * 64 + t] = t; {} __syncthreads();"
        "if (t == 0) s[0] = atomicAdd(out, 1); __syncthreads();"
        "if (s[0] == 1) out[192 + t] = out[64 + t] + out[128 + t];",
        "__threadfence();",
        "",
    ),
    "last block, threads that did not wait": (
        "out[64 + blockIdx.x * 64 + t] = t; __threadfence(); {}"
        "if (t == 0) s[0] = atomicAdd(out, 1); __syncthreads();"
        "if (s[0] == 1) out[192 + t] = out[64 + t] + out[128 + t];",
        "__syncthreads();",
        "",
    ),
    "last block, told by another address": (
        "out[64 + blockIdx.x * 64 + t] = t; __threadfence(); __syncthreads();"
        "if (t == 0) {{ atomicAdd(out + 1 + blockIdx.x, 1); s[0] = {} ; }} __syncthreads();"
        "if (blockIdx.x == 1) out[192 + t] = out[64 + t] + out[128 + t];",
        "atomicAdd(out, 1)",
        "1",
    ),
    "last block, the others do not wait for the atomic": (
        "out[64 + blockIdx.x * 64 + t] = t; __threadfence(); __syncthreads();"
        "if (t == 0) atomicAdd(out, 1); {}"
        "if (blockIdx.x == 1) out[192 + t] = out[64 + t] + out[128 + t];",
        "__syncthreads();",
        "",
    ),
    "last block, one thread's fence before the barrier": (
        "out[64 + blockIdx.x * 64 + t] = t; {} __syncthreads();"
        "if (t == 0) s[0] = atomicAdd(out, 1); __syncthreads();"
        "if (s[0] == 1) out[192 + t] = out[64 + t] + out[128 + t];",
        "__threadfence();",
        "if (t == 0) __threadfence();",
    ),
    "last block, one thread's fence after the barrier": (
        "out[64 + blockIdx.x * 64 + t] = t; __syncthreads();"
        "if (t == 0) {{ {} s[0] = atomicAdd(out, 1); }} __syncthreads();"
        "if (s[0] == 1) out[192 + t] = out[64 + t] + out[128 + t];",
        "__threadfence();",
        "",
    ),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    """Every case in both forms, in one library: ``run(case, racy, out)``."""
    folder = tmp_path_factory.mktemp("races")
    branches = "".join(
        f"if (which == {2 * number + racy}) {{ {body.format((right, wrong)[racy])} }}\n"
        for number, (body, right, wrong) in enumerate(CASES.values())
        for racy in (False, True)
    )
    wrapper = folder / "kernels.cpp"
    wrapper.write_text(
        f'#include "{HERE / "shim.h"}"\n'
        "static void kernel(int which, int* out) {\n"
        "int* s = reinterpret_cast<int*>(shared);\n"
        f"const int t = static_cast<int>(threadIdx.x);\n{branches}}}\n"
        'extern "C" int run(int which, int* out) {\n'
        f"return shim::launch(2, {THREADS}, {4 * THREADS}, [=] {{ kernel(which, out); }}); }}\n"
    )
    return compiled(host_compiler(), wrapper, folder / "kernels.so", watched=True).run


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("racy", [False, True])
def test_sees_what_no_barrier_orders(
    run, case: str, racy: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    out = np.zeros(4 * THREADS, np.int32)
    which = 2 * list(CASES).index(case) + racy
    outcome = run(which, out.ctypes.data_as(ctypes.c_void_p))
    if racy:
        with pytest.raises(AssertionError, match="data race"):
            launched(outcome)
        assert "race: " in capfd.readouterr().err
    else:
        launched(outcome)
