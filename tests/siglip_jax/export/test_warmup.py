"""Warm-up requests, read by protobuf with TensorFlow Serving's definitions of the messages."""

import numpy as np
import pytest

from siglip_jax.export import warmup

tf = pytest.importorskip("tensorflow")

# name: [(field, number, type of message or "" for a string, is a map's entry)]; of tensorflow_serving/apis/*.proto
MESSAGES = {
    "ModelSpec": [("name", 1, ""), ("signature_name", 3, "")],
    "InputsEntry": [("key", 1, ""), ("value", 2, "TensorProto")],
    "PredictRequest": [("model_spec", 1, "ModelSpec"), ("inputs", 2, "InputsEntry")],
    "PredictLog": [("request", 1, "PredictRequest")],
    "PredictionLog": [("predict_log", 6, "PredictLog")],
}


def read(record):
    """{"signature", "inputs"} of a PredictionLog."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from tensorflow.core.framework import tensor_pb2

    file = descriptor_pb2.FileDescriptorProto(name="log.proto", package="log", syntax="proto3")
    file.dependency.append(tensor_pb2.DESCRIPTOR.name)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            made = message.field.add(name=field, number=number, type=9 if not kind else 11)
            made.label = 3 if field == "inputs" else 1
            if kind:
                made.type_name = ".tensorflow.TensorProto" if kind == "TensorProto" else f".log.{kind}"
    pool = descriptor_pool.Default()
    pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
    log = message_factory.GetMessageClass(pool.FindMessageTypeByName("log.PredictionLog"))()
    log.ParseFromString(record)
    request = log.predict_log.request
    return request.model_spec.signature_name, {each.key: tf.make_ndarray(each.value) for each in request.inputs}


def test_serving_reads_them(tmp_path):
    pictures, ids = [b"\xff\xd8" + bytes(300), b"\x89PNG"], np.arange(6, dtype=np.int32).reshape(2, 3)
    requests = [("serving_default", {"image_bytes": pictures}), ("scores", {"image_bytes": pictures[:1], "ids": ids})]
    warmup.write_warmup(tf, tmp_path, requests)
    records = [each.numpy() for each in tf.data.TFRecordDataset(str(tmp_path / "assets.extra" / warmup.FILE))]
    assert len(records) == 2
    signature, inputs = read(records[0])
    assert (signature, list(inputs["image_bytes"])) == ("serving_default", pictures)
    signature, inputs = read(records[1])
    assert (signature, list(inputs["image_bytes"])) == ("scores", pictures[:1])
    np.testing.assert_array_equal(inputs["ids"], ids)
