"""stream.cu as C++ for the CPU: block_on_cpu.h has CUDA's part. A source that has an _on_cpu.h here is left to that."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import torch

from rsparse.ops.fused.cuda import compiler, stream

HERE = Path(__file__).parent
COMPILER = shutil.which("g++")
OPTIONS = ["-std=c++17", "-Og", "-ffp-contract=off", "-fno-strict-aliasing", "-w", "-fPIC", "-shared", "-pthread"]
PROCESSES = 2

# `list` is the dynamic shared memory, at first NaN of channel 0.
KERNEL = """
namespace kernel_{name} {{
{macros}
#define stream stream_{name}
static __shared__ unsigned list[COLUMNS * LISTS];
{includes}
#undef stream
}}
static void prepare_{name}() {{ std::fill_n(kernel_{name}::list, COLUMNS * LISTS, 0xffff); }}
extern "C" const char* launch_{name}(
    unsigned blocks, unsigned threads, bool order, size_t count, const size_t* sizes, void** arguments) {{
  backwards = order;
  return launch(kernel_{name}::stream_{name}, prepare_{name}, blocks, threads, count, sizes, arguments);
}}
"""


def name_of(constants):
    return "_".join(str(value) for _, value in sorted(constants.items()))


def filled(kernel, constants, files):
    """The text `kernel` for these constants and sources."""
    macros = "\n".join(f"#undef {name}\n#define {name} {value}" for name, value in constants.items())
    includes = "\n".join(f'#include "{_file_of(name)}"' for name in files)
    return kernel.format(name=name_of(constants), macros=macros, includes=includes)


def _file_of(name):
    stand_in = HERE / f"{Path(name).stem}_on_cpu.h"
    return stand_in if stand_in.exists() else compiler.SOURCES / name


def text_of(constants):
    return filled(KERNEL, constants, stream.FILES)


class Unbuilt:
    """A kernel that computes nothing."""

    def launch(self, blocks, values, types, device):
        pass


def stand_in(patch, module, compiled, load):
    """`module` compiles by `compiled(constants)` and loads by `load`, as on a GPU that has clusters."""
    patch.setattr(module, "compiled", lambda code, constants, arch: compiled(constants))
    patch.setattr(module, "load", load)
    patch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


class Kernels:
    """Compiled ones by their constants, in `folder`. Many at once are much faster than one by one."""

    text_of = staticmethod(text_of)

    def __init__(self, folder):
        self.folder = folder
        self.functions = {}

    def build(self, wanted):
        new = {name_of(each): each for each in wanted if name_of(each) not in self.functions}
        running = []
        for names in filter(None, (list(new)[i::PROCESSES] for i in range(PROCESSES))):
            file = self.folder / f"{len(self.functions)}_{names[0]}.cpp"
            file.write_text(f'#include "{HERE / "block_on_cpu.h"}"\n' + "".join(self.text_of(new[name]) for name in names))
            command = [COMPILER, *OPTIONS, str(file), "-o", str(file.with_suffix(".so"))]
            running.append((subprocess.Popen(command, stderr=subprocess.PIPE, text=True), file.with_suffix(".so"), names))
        for process, library, names in running:
            log = process.communicate()[1]
            assert process.returncode == 0, log
            loaded = ctypes.CDLL(str(library))
            for name in names:
                self.functions[name] = getattr(loaded, f"launch_{name}")
                self.functions[name].restype = ctypes.c_char_p

    def kernel(self, constants, threads):
        self.build([constants])
        return Kernel(self.functions[name_of(constants)], threads)


class Kernel:
    """compiler.Kernel on a CPU; `backwards` turns the order of a block's threads round."""

    backwards = False

    def __init__(self, function, threads):
        self.function, self.threads = function, threads

    def launch(self, blocks, values, types, device):
        held = [kind(value) for kind, value in zip(types, values, strict=True)]
        sizes = (ctypes.c_size_t * len(held))(*map(ctypes.sizeof, held))
        arguments = (ctypes.c_void_p * len(held))(*map(ctypes.addressof, held))
        order = ctypes.c_bool(self.backwards)
        failure = self.function(blocks, self.threads, order, ctypes.c_size_t(len(held)), sizes, arguments)
        assert failure is None, failure.decode()
