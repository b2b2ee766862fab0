"""A model repository for NVIDIA Triton of one .onnx file: NAME/config.pbtxt and NAME/1/model.onnx.

python triton_repository.py runs/shop-onnx/images.onnx models/shop_images
tritonserver --model-repository=models

Inputs, outputs and their dimensions are read from the file. Needs onnxruntime.
"""

import argparse
import pathlib
import shutil

import onnxruntime

TYPES = {"tensor(float)": "TYPE_FP32", "tensor(uint8)": "TYPE_UINT8", "tensor(int32)": "TYPE_INT32"}


def config(model: pathlib.Path, *, name: str, max_batch: int, delay: int) -> str:
    """The text of config.pbtxt; dimensions are those of one row, -1 where they are open."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])

    def tensor(kind: str, given: onnxruntime.NodeArg) -> str:
        dims = ", ".join(str(size) if isinstance(size, int) else "-1" for size in given.shape[1:])
        return f'{kind} [ {{ name: "{given.name}" data_type: {TYPES[given.type]} dims: [ {dims} ] }} ]'

    return "\n".join(
        [
            f'name: "{name}"',
            'backend: "onnxruntime"',
            f"max_batch_size: {max_batch}",
            *(tensor("input", each) for each in session.get_inputs()),
            *(tensor("output", each) for each in session.get_outputs()),
            # Requests of one size that arrive within this time are run as one batch.
            f"dynamic_batching {{ max_queue_delay_microseconds: {delay} }}",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=pathlib.Path, help="an .onnx file of siglip-jax export")
    parser.add_argument("output", type=pathlib.Path, help="folder of the model in the repository, which names it")
    parser.add_argument("--max_batch", type=int, default=64)
    parser.add_argument("--delay", type=int, default=2000, help="microseconds that a request may wait for others")
    options = parser.parse_args()
    text = config(options.model, name=options.output.name, max_batch=options.max_batch, delay=options.delay)
    (options.output / "1").mkdir(parents=True)
    shutil.copyfile(options.model, options.output / "1" / "model.onnx")
    (options.output / "config.pbtxt").write_text(text)


if __name__ == "__main__":
    main()
