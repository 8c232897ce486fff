"""attend.cu as C++ for the CPU, as on_cpu.py has stream.cu. A file that has an _on_cpu.h here is left to that."""

from __future__ import annotations

from pathlib import Path

from rsparse.ops.fused.cuda import attend, compiler
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


def file_of(name):
    stand_in = on_cpu.HERE / f"{Path(name).stem}_on_cpu.h"
    return stand_in if stand_in.exists() else compiler.SOURCES / name


class Kernels(on_cpu.Kernels):
    @staticmethod
    def text_of(constants):
        macros = "\n".join(f"#undef {name}\n#define {name} {value}" for name, value in constants.items())
        includes = "\n".join(f'#include "{file_of(name)}"' for name in attend.FILES)
        return KERNEL.format(name=on_cpu.name_of(constants), macros=macros, includes=includes)
