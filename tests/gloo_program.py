"""One of several processes that normalize a batch together, for test_torch_sync.py.

Arguments: rank, number of processes, folder. Exchanges by torch.distributed over gloo, saves what
came out as rank.pt in the folder.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from normcore.torch import SyncBatchNorm

CASES = {
    "float32": {"sizes": (5, 3, 4), "dtype": torch.float32},
    "float64": {"sizes": (2, 4, 3), "dtype": torch.float64, "momentum": None},
    "bfloat16": {"sizes": (2, 4, 3), "dtype": torch.bfloat16},
    "empty": {"sizes": (0, 4, 3), "dtype": torch.float32, "offset": 1e6},
    "all but one empty": {"sizes": (0, 0, 3), "dtype": torch.float64},
    "single values": {"sizes": (1, 1, 1), "dtype": torch.float64, "shape": (6,)},
    "channels last": {"sizes": (5, 3, 4), "dtype": torch.float32, "channels_last": True},
    "fused": {"sizes": (2, 5, 0), "dtype": torch.float64, "activation": "silu"},
    "pair": {"sizes": (5, 3), "dtype": torch.float32},
    "none": {"sizes": (0, 0, 0), "dtype": torch.float32},
}
"""How many samples each rank has. "pair" is of the first two processes of three."""


def tensors(case):
    """The whole x, dy and residual."""
    torch.manual_seed(3)
    shape = (sum(case["sizes"]), *case.get("shape", (6, 5, 3)))
    found = [torch.randn(shape, dtype=torch.float64) for _ in range(3)]
    found[0] = found[0] * 2 + case.get("offset", 1)
    return [values.to(case["dtype"]) for values in found]


def module(case, kind, **options):
    torch.manual_seed(4)
    made = kind(6, momentum=case.get("momentum", 0.1), **options)
    torch.nn.init.uniform_(made.weight, 0.5, 1.5)
    torch.nn.init.uniform_(made.bias)
    return made.to(case["dtype"])


def step(case, norm, x, dy, residual):
    """All that comes out of a training step, by name."""
    if case.get("channels_last"):
        x, dy, residual = (t.to(memory_format=torch.channels_last) for t in (x, dy, residual))
    x, residual = x.detach().requires_grad_(), residual.detach().requires_grad_()
    y = norm(x, residual) if "activation" in case else norm(x)
    y.backward(dy)
    return {
        "y": y.detach(),
        "dx": x.grad,
        "dresidual": residual.grad,
        "dweight": norm.weight.grad,
        "dbias": norm.bias.grad,
        **dict(norm.named_buffers()),
    }


def main():
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=size
    )
    torch.set_num_threads(1)
    pair = dist.new_group([0, 1])
    found = {}
    for name, case in CASES.items():
        if rank >= len(case["sizes"]):
            continue
        group = pair if name == "pair" else None
        options = {"process_group": group, "activation": case.get("activation")}
        parts = [values.split(case["sizes"])[rank] for values in tensors(case)]
        found[name] = step(case, module(case, SyncBatchNorm, **options), *parts)
    norm = SyncBatchNorm(6)
    x = torch.ones((int(rank == 1), 6, 1, 1), requires_grad=True)
    try:
        norm(x)
    except ValueError as error:
        found["one value"] = str(error)
    y = norm(torch.randn(4, 6, requires_grad=True))
    try:
        torch.autograd.grad(y.square().sum(), norm.weight, create_graph=True)
    except RuntimeError as error:
        found["twice"] = str(error)
    with torch.no_grad():  # no message in evaluation
        found["evaluation"] = norm.eval()(torch.ones(rank + 1, 6))
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
