"""The executor's messages of the Open Inference Protocol under the name that pickle knows them by.

Ray Serve's proxy hands requests to its replicas pickled, so that their classes must be importable by name.
"""

import grpc
from epara_executors.rpc.open_inference_pb2 import ModelInferRequest, ModelInferResponse

SERVICE = "inference.GRPCInferenceService"


def add_servicer(servicer: object, server: grpc.Server) -> None:
    """The one method that is measured, registered as generated code would register it."""
    handler = grpc.unary_unary_rpc_method_handler(
        servicer.ModelInfer,
        request_deserializer=ModelInferRequest.FromString,
        response_serializer=ModelInferResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": handler}),))
