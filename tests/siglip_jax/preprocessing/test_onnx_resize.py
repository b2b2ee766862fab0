"""Every resize that is written in ONNX's operations, run by onnxruntime, beside Pillow's and numpy's."""

import numpy as np
import PIL.Image
import pytest

from siglip_jax.export.onnx.onnx_graph import IR, OPSET, OnnxGraph
from siglip_jax.preprocessing import Preprocessing
from siglip_jax.preprocessing.images import FILLS
from siglip_jax.preprocessing.resize_table import RESIZES

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
SIZE = (16, 12)
KINDS = [
    (name, fill)
    for name, resize in RESIZES.items()
    if resize.in_onnx is not None
    for fill in (FILLS if resize.uses_fill else ("",))
]
SHAPES = ((30, 50), (61, 20), (16, 12), (40, 12), (16, 40), (1, 1), (5, 3), (700, 20), (1, 200), (300, 220), (15, 13))


def in_onnx(preprocessing):
    """The resize alone: uint8 [n, H, W, 3] -> float32 [n, h, w, 3]."""
    graph, helper = OnnxGraph(onnx, opset=OPSET), onnx.helper
    given = graph.add("Cast", graph.add("Transpose", "images", perm=[0, 3, 1, 2]), to=1)
    resized = RESIZES[preprocessing.resize].in_onnx(graph, given, preprocessing)
    graph.add("Transpose", resized, perm=[0, 2, 3, 1], output="out")
    whole = helper.make_graph(
        graph.nodes,
        "resize",
        [helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["n", "height", "width", 3])],
        [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, ["n", *SIZE, 3])],
        graph.constants,
    )
    written = helper.make_model(whole, ir_version=IR, opset_imports=[helper.make_opsetid("", OPSET)])
    onnx.checker.check_model(written, full_check=True)
    session = onnxruntime.InferenceSession(written.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


@pytest.mark.parametrize(("name", "fill"), KINDS)
def test_equals_the_library_to_a_grey_level(name, fill):
    preprocessing, rng = Preprocessing(image_size=SIZE, resize=name, fill=fill), np.random.default_rng(0)
    run, off, count = in_onnx(preprocessing), 0, 0
    for shape in SHAPES:
        images = rng.integers(0, 256, (3, *shape, 3), dtype=np.uint8)
        images[1] = 255
        found = run(images)
        expected = np.stack([preprocessing.image(PIL.Image.fromarray(image)) for image in images]).astype(np.float32)
        assert np.abs(found - expected).max() <= 1
        np.testing.assert_array_equal(found[1], expected[1])
        off, count = off + (found != expected).sum(), count + found.size
    assert off < 0.01 * count  # where a sum is half a level, which Pillow adds up in whole numbers


@pytest.mark.parametrize(("name", "filter_"), [("bilinear", "BILINEAR"), ("bicubic", "BICUBIC")])
def test_equals_pillow(name, filter_):
    image = np.random.default_rng(1).integers(0, 256, (97, 43, 3), dtype=np.uint8)
    expected = PIL.Image.fromarray(image).resize(SIZE[::-1], PIL.Image.Resampling[filter_])
    found = in_onnx(Preprocessing(image_size=SIZE, resize=name))(image[None])[0]
    assert np.abs(found - np.asarray(expected, np.float32)).max() <= 1
