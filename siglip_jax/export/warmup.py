"""Requests with which TensorFlow Serving warms a model up before it takes others: the first one compiles.

TFRecords of `PredictionLog` in assets.extra/tf_serving_warmup_requests, as
https://www.tensorflow.org/tfx/serving/saved_model_warmup describes them. The messages are small, so they are written
here; the package of their definitions would bring gRPC.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FILE = "tf_serving_warmup_requests"
_PREDICT_LOG = 6  # of PredictionLog, whose request is 1
_REQUEST = _MODEL_SPEC = _KEY = 1  # of PredictLog; of PredictRequest; of an entry of a map
_INPUTS = _VALUE = 2  # of PredictRequest; of an entry of a map
_MODEL_NAME, _SIGNATURE_NAME = 1, 3  # of ModelSpec
Requests = Sequence[tuple[str, Mapping[str, np.ndarray | Sequence[bytes]]]]  # signature, its inputs


def write_warmup(tf: Any, folder: pathlib.Path, requests: Requests) -> None:
    """Writes `folder`/assets.extra/tf_serving_warmup_requests."""
    (folder / "assets.extra").mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / "assets.extra" / FILE)) as writer:
        for signature, inputs in requests:
            writer.write(_prediction_log(tf, signature, inputs))


def _prediction_log(tf: Any, signature: str, inputs: Mapping[str, Any]) -> bytes:
    # Serving replaces the name of the model by the one it is served under.
    spec = _field(_MODEL_NAME, b"default") + _field(_SIGNATURE_NAME, signature.encode())
    request = _field(_MODEL_SPEC, spec)
    for name, values in inputs.items():
        tensor = tf.make_tensor_proto(values).SerializeToString()
        request += _field(_INPUTS, _field(_KEY, name.encode()) + _field(_VALUE, tensor))
    return _field(_PREDICT_LOG, _field(_REQUEST, request))


def _field(number: int, content: bytes) -> bytes:
    """A field of protobuf's wire format that holds bytes or a message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])
