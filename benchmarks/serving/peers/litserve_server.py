"""LitServe: HTTP, raw FP32 in the body both ways.

python litserve_server.py FOLDER PORT SCRATCH
"""

import sys
from pathlib import Path
from typing import Annotated

import litserve
import numpy as np
from fastapi import Body, Response
from network import MAX_BATCH, load

BATCH_TIMEOUT_S = 0.0001  # 1 and 3 ms: more per second at 32 callers, much less at 1; 0 polls without a pause
RAW = "application/octet-stream"


class Perceptron(litserve.LitAPI):
    def __init__(self, folder: Path) -> None:
        super().__init__(max_batch_size=MAX_BATCH, batch_timeout=BATCH_TIMEOUT_S)
        self._folder = folder

    def setup(self, device: str) -> None:
        self._network = load(self._folder)

    def decode_request(self, request: Annotated[bytes, Body(media_type=RAW)]) -> np.ndarray:
        return np.frombuffer(request, np.float32)

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self._network(x)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    def encode_response(self, output: np.ndarray) -> Response:
        return Response(output.tobytes(), media_type=RAW)


if __name__ == "__main__":
    server = litserve.LitServer(
        Perceptron(Path(sys.argv[1])),
        accelerator="cpu",
        workers_per_device=1,
        timeout=False,
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False, generate_client_file=False
    )
