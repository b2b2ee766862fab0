"""The recipes of examples/serving, as far as this environment goes; test_examples_consumers.py has other languages."""

import json
import pathlib
import re
import runpy
import threading
import types

import numpy as np
import pytest

from siglip_jax.export.golden import odd_pictures
from siglip_jax.export.onnx.onnx_towers import export_tower
from siglip_jax.preprocessing import Preprocessing
from tools.serve import define_flags

SERVING = pathlib.Path(__file__).parents[2] / "examples" / "serving"
SMALL = Preprocessing(image_size=(8, 8))


@pytest.fixture(scope="module")
def images_onnx(tiny_model, tmp_path_factory):
    """A tower that takes decoded pictures."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("onnx") / "images.onnx"
    export_tower(tiny_model, path, takes="images")
    return path


def test_onnxruntime_in_python(images_onnx, tiny_model, example, tmp_path):
    pictures = odd_pictures()
    files = [tmp_path / f"{number}.picture" for number in range(len(pictures))]
    for file, data in zip(files, pictures.values(), strict=True):
        file.write_bytes(data)
    found = [json.loads(line) for line in example("serving/embed.py", str(images_onnx), *map(str, files)).splitlines()]
    expected = tiny_model.encode_image(tiny_model.preprocessing.images(list(pictures.values())))
    cosines = (np.asarray(found) * expected).sum(axis=1)
    assert cosines.min() > 0.9999, dict(zip(pictures, cosines, strict=True))


def test_the_config_of_triton_has_the_inputs_and_outputs_of_the_file(images_onnx, tmp_path, example, tiny_model):
    pytest.importorskip("google.protobuf")
    export_tower(tiny_model, tmp_path / "text.onnx", tower="text", precision="float16")
    width, length = tiny_model.architecture.embedding_dim, tiny_model.architecture.text_length
    for model, name, data_type, dims in (
        (images_onnx, "images", "TYPE_UINT8", [-1, -1, 3]),
        (tmp_path / "text.onnx", "ids", "TYPE_INT32", [length]),
    ):
        folder = tmp_path / "models" / f"shop_{name}"
        example("serving/triton_repository.py", str(model), str(folder), "--max_batch=16")
        config = triton_config((folder / "config.pbtxt").read_text())
        assert (config.name, config.backend, config.max_batch_size) == (f"shop_{name}", "onnxruntime", 16)
        ((given,), (found,)) = config.input, config.output
        types = config.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_name
        assert (given.name, given.data_type, list(given.dims)) == (name, types[data_type].number, dims)
        assert (found.name, list(found.dims)) == ("embedding", [width])
        assert config.dynamic_batching.max_queue_delay_microseconds == 2000
        assert (folder / "1" / "model.onnx").read_bytes() == model.read_bytes()


def triton_config(text):
    """A ModelConfig of the fields that are written, with the numbers and types of Triton's model_config.proto."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

    file = descriptor_pb2.FileDescriptorProto(name="triton_subset.proto", package="triton_subset", syntax="proto3")
    types = file.enum_type.add(name="DataType")
    for name, number in (("TYPE_INVALID", 0), ("TYPE_UINT8", 2), ("TYPE_INT32", 8), ("TYPE_FP32", 11)):
        types.value.add(name=name, number=number)

    def message(called, /, **fields):
        added = file.message_type.add(name=called)
        for field, (number, repeated, kind) in fields.items():
            code = {"string": 9, "int64": 3, "int32": 5, "uint64": 4, "DataType": 14}.get(kind, 11)
            of = f".triton_subset.{kind}" if code in (11, 14) else None
            added.field.add(name=field, number=number, label=3 if repeated else 1, type=code, type_name=of)

    tensor = {"name": (1, False, "string"), "data_type": (2, False, "DataType")}
    message("ModelInput", **tensor, dims=(4, True, "int64"))
    message("ModelOutput", **tensor, dims=(3, True, "int64"))
    message("ModelDynamicBatching", max_queue_delay_microseconds=(2, False, "uint64"))
    message(
        "ModelConfig",
        name=(1, False, "string"),
        max_batch_size=(4, False, "int32"),
        input=(5, True, "ModelInput"),
        output=(6, True, "ModelOutput"),
        dynamic_batching=(11, False, "ModelDynamicBatching"),
        backend=(17, False, "string"),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("triton_subset.ModelConfig"))
    return text_format.Parse(text, kind())


@pytest.fixture(scope="module")
def predict_url():
    """predict_server.py over the signature of a SavedModel, with the mean colour in the place of a tower."""
    tf = pytest.importorskip("tensorflow")
    from siglip_jax.export.signatures import picture_signatures

    signatures = picture_signatures(tf, SMALL, lambda pixels: {"embedding": tf.reduce_mean(pixels, axis=[1, 2])})
    own = runpy.run_path(str(SERVING / "predict_server.py"))
    with own["serve"](types.SimpleNamespace(signatures=signatures), host="127.0.0.1", port=0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/models/shop:predict"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def client():
    return runpy.run_path(str(SERVING / "predict_client.py"))


def test_a_request_and_its_answer(predict_url, client):
    pictures = list(odd_pictures().values())
    found = np.asarray(client["embed"](predict_url, pictures))
    np.testing.assert_allclose(found, SMALL.images(pictures).mean(axis=(1, 2)), atol=0.01)
    assert client["embed"](predict_url, []) == []


def test_a_request_is_what_tensorflow_serving_takes(client):
    """Its REST: with one input, named *_bytes, an instance is a value, and {"b64": ...} means bytes."""
    body = json.loads(client["request_body"]([b"\0\xff", b""]))
    assert body == {"instances": [{"b64": "AP8="}, {"b64": ""}]}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"nothing", "expected {.*instances"),
        (b'{"instances": [1]}', "expected {.*instances"),
        (b'{"instances": [{"b64": "?"}]}', "expected {.*instances"),
        (b'{"instances": [{"b64": "aGk="}]}', '{"error": "picture 0: a picture of another format; expected'),
    ],
)
def test_bad_requests_are_told_why(predict_url, body, said, monkeypatch):
    client = runpy.run_path(str(SERVING / "predict_client.py"))
    monkeypatch.setitem(client["embed"].__globals__, "request_body", lambda photos: body)
    with pytest.raises(RuntimeError, match=f"status 400: .*{said}"):
        client["embed"](predict_url, [b""])


def test_the_search_container_starts_our_server_with_flags_that_it_has():
    from absl import flags

    (command,) = re.findall(r"siglip-jax serve (.*)", (SERVING / "Dockerfile.search").read_text().split("CMD")[1])
    values = flags.FlagValues()
    define_flags(values)
    assert set(re.findall(r"--(\w+)", command)) <= set(values)
