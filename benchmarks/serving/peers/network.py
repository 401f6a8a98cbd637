"""The network that every peer serves: the program that the floor serves, run the same way on one thread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.fx.graph import CodeGen

MAX_BATCH = 16

Network = Callable[[np.ndarray], np.ndarray]  # (B, 256) to (B, 256), FP32


def load(folder: Path) -> Network:
    """The perceptron of `folder`, whose weights were drawn when the benchmark began.

    Torch's guards and structure checks at every call are left out, as the executor and the floor leave them out
    (`epara_executors.runners.exported.bare`, which a peer's environment does not have).
    """
    torch.set_num_threads(1)
    module = torch.export.load(folder / "model.pt2").module()
    for node in module.graph.find_nodes(op="call_module", target="_guards_fn"):
        module.graph.erase_node(node)
    module.graph.set_codegen(CodeGen())
    module.recompile()
    module.requires_grad_(False)

    def run(rows: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module.forward(torch.from_numpy(rows))[0].numpy()

    return run
