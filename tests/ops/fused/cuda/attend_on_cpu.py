"""attend.cu as C++ for the CPU, as on_cpu.py has stream.cu."""

from __future__ import annotations

from rsparse.ops.fused.cuda import attend
from tests.ops.fused.cuda import on_cpu

# `memory` is the dynamic shared memory, at first NaN.
KERNEL = """
namespace kernel_{name} {{
{macros}
#define attend attend_{name}
static __shared__ uint4 memory[SHARED / 16];
{includes}
#undef attend
}}
static void prepare_{name}() {{ memset(kernel_{name}::memory, 0xff, sizeof kernel_{name}::memory); }}
extern "C" const char* launch_{name}(
    unsigned blocks, unsigned threads, bool order, size_t count, const size_t* sizes, void** arguments) {{
  backwards = order;
  return launch(kernel_{name}::attend_{name}, prepare_{name}, blocks, threads, count, sizes, arguments);
}}
"""


class Kernels(on_cpu.Kernels):
    @staticmethod
    def text_of(constants):
        return on_cpu.filled(KERNEL, constants, attend.FILES)
