"""The floor: what any Python server of this protocol must do, and nothing more.

One process, one event loop: decode raw contents, run the exported module (without the checks that torch makes at every
call, as the executor's runner does), encode raw outputs. No queue, no batching, no deadlines, one model. Prints
{"listening": "HOST:PORT"} once clients may connect; SIGTERM ends it.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import torch
from epara_executors.rpc import open_inference_pb2 as oip
from epara_executors.runners.exported import bare


async def serve(folder: Path) -> None:
    torch.set_num_threads(1)
    module = bare(torch.export.load(folder / "model.pt2"))
    output = json.loads((folder / "tensors.json").read_text())["outputs"][0]["name"]

    async def infer(request: oip.ModelInferRequest, context: Any) -> oip.ModelInferResponse:
        shape = tuple(request.inputs[0].shape)
        given = np.frombuffer(bytearray(request.raw_input_contents[0]), np.float32).reshape(shape)
        with torch.inference_mode():
            made = module.forward(torch.from_numpy(given))[0].numpy()
        response = oip.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
        response.outputs.add(name=output, datatype="FP32", shape=made.shape)
        response.raw_output_contents.append(made.tobytes())
        return response

    handler = grpc.unary_unary_rpc_method_handler(
        infer,
        request_deserializer=oip.ModelInferRequest.FromString,
        response_serializer=oip.ModelInferResponse.SerializeToString,
    )
    server = grpc.aio.server()
    service = "inference.GRPCInferenceService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"ModelInfer": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"listening": f"127.0.0.1:{port}"}), flush=True)
    leave = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leave.set)
    await leave.wait()
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
