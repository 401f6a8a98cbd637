"""BentoML: HTTP and JSON, in which the FP32 rows are base64. Its main server takes no binary body for tensors.

python bentoml_server.py FOLDER PORT SCRATCH
"""

import base64
import os
import sys
from pathlib import Path

import bentoml
import numpy as np
from network import MAX_BATCH, load

MAX_LATENCY_MS = 1000  # 60000, its default, is no different; 100 and less refuse requests with 503


@bentoml.service(
    workers=1,
    threads=1,
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Perceptron:
    def __init__(self) -> None:
        self._network = load(Path(os.environ["PERCEPTRON"]))

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=MAX_LATENCY_MS)
    def infer(self, x: list[str]) -> list[str]:
        rows = np.frombuffer(b"".join(map(base64.b64decode, x)), np.float32).reshape(len(x), -1)
        return [base64.b64encode(row).decode() for row in self._network(rows)]


if __name__ == "__main__":
    folder, port, scratch = sys.argv[1:]
    os.environ |= {"PERCEPTRON": folder, "BENTOML_HOME": scratch, "BENTOML_DO_NOT_TRACK": "True"}
    where = ["--host", "127.0.0.1", "--port", port, "--working-dir", str(Path(__file__).parent)]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", "serve", "bentoml_server:Perceptron", *where])
