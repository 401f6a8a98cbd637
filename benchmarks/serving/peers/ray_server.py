"""Ray Serve: gRPC with the service and messages of the Open Inference Protocol, raw contents.

    python ray_server.py FOLDER PORT SCRATCH

In the mode that its documentation gives for high throughput: HAProxy in front of a replica that answers gRPC itself.
"""

import os
import signal
import socket
import sys
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


MODE = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
    "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # by default its workers yield to everyone else, the client too
}
HAPROXY_FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
}
if __name__ == "__main__":  # before ray is imported, which reads it, here and in every process that it starts
    os.environ |= MODE | {name: str(Path(sys.argv[3]) / file) for name, file in HAPROXY_FILES.items()}

import numpy as np  # noqa: E402
import open_inference_pb2 as oip  # noqa: E402
import ray  # noqa: E402
from network import MAX_BATCH, load  # noqa: E402
from ray import serve  # noqa: E402
from ray.serve.config import gRPCOptions  # noqa: E402


@serve.deployment(num_replicas=1, max_ongoing_requests=256)
class Perceptron:
    def __init__(self, folder: str) -> None:
        self._network = load(Path(folder))

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.001)
    async def _answers(self, rows: list[bytes]) -> list[bytes]:
        made = self._network(np.frombuffer(bytearray(b"".join(rows)), np.float32).reshape(len(rows), -1))
        return [row.tobytes() for row in made]

    async def ModelInfer(self, request: oip.ModelInferRequest) -> oip.ModelInferResponse:  # noqa: N802
        raw = await self._answers(request.raw_input_contents[0])
        response = oip.ModelInferResponse(model_name=request.model_name, id=request.id)
        response.outputs.add(name="y", datatype="FP32", shape=request.inputs[0].shape)
        response.raw_output_contents.append(raw)
        return response


def main() -> None:
    folder, port, scratch = sys.argv[1:]
    ray.init(
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        num_cpus=1,
        object_store_memory=100 * 2**20,
        _temp_dir=scratch,
        logging_level="warning",
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": free_port()},
        grpc_options=gRPCOptions(
            port=int(port), grpc_servicer_functions=["open_inference_pb2.add_servicer"], enable_reflection=False
        ),
    )
    serve.run(Perceptron.bind(folder), route_prefix="/")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()


if __name__ == "__main__":
    main()
