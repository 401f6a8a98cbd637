"""MLServer: gRPC, Open Inference Protocol, raw contents.

python mlserver_server.py FOLDER PORT SCRATCH
"""

import asyncio
import sys
from pathlib import Path

import numpy as np
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import install_uvloop_event_loop
from network import MAX_BATCH, load

MAX_BATCH_TIME_S = 0.001  # 0.1 ms: twice as much per second at 1 caller, less at 8 and 32; 5 ms: much less at 1


class Perceptron(MLModel):
    async def load(self) -> bool:
        self._network = load(Path(self.settings.parameters.uri))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0])
        made = self._network(rows.astype(np.float32, copy=False))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", made)])


async def serve(folder: str, port: int) -> None:
    settings = Settings(
        debug=False,
        host="127.0.0.1",
        grpc_port=port,
        http_port=0,
        metrics_endpoint=None,
        parallel_workers=0,  # one was slower: here and there are two processes for one thread's arithmetic
    )
    model = ModelSettings(
        name="mlp",
        implementation="mlserver_server.Perceptron",  # by name: its own worker processes import it
        max_batch_size=MAX_BATCH,
        max_batch_time=MAX_BATCH_TIME_S,
        parameters=ModelParameters(uri=folder),
    )
    await MLServer(settings).start([model])


if __name__ == "__main__":
    install_uvloop_event_loop()
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
