"""Where an export goes and what it is: all that can be wrong with it before a model is loaded."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping

from etils import epath

from eval.embeddings.reduction import Spec
from input_pipeline.dataset import open_split
from siglip_jax.errors import UserError

ONNX, PROGRAMS = ".onnx", ".stablehlo"
KINDS = {ONNX: ("onnx", "ONNX file"), PROGRAMS: ("jax", "StableHLO programs")}
SAVED_MODEL = ("savedmodel", "SavedModel")  # otherwise
OUTPUT_DTYPES = ("float32", "int8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportTarget:
    """An export that was asked for and can be made, as far as can be told without the model; see `check_target`.

    Attributes:
      output: where it will be, below the number of a serving version.
      runtime: "savedmodel", "onnx" or "jax".
      kind: for people.
      smaller: what becomes of the embeddings.
    """

    output: pathlib.Path
    runtime: str
    kind: str
    smaller: Spec
    dataset: epath.PathLike | None
    split: str
    encoders: Mapping[str, str]
    target_tensorflow: str
    text: str
    tower: str
    precision: str
    takes: str
    store: epath.PathLike | None

    @contextlib.contextmanager
    def written_aside(self) -> Iterator[pathlib.Path]:
        """A path to write the export to, beside its place; all that lies there at the end is moved, the export last.

        Whatever is raised meanwhile, SIGTERM under `terminable` too, leaves nothing: not the partial export, not what
        was moved already, not the folders made for it.
        """
        parent = self.output.parent
        made = [each for each in (parent, *parent.parents) if not each.exists()]
        moved: list[pathlib.Path] = []
        try:
            parent.mkdir(parents=True, exist_ok=True)
            partial = f".{self.output.name}.partial-"
            for left in parent.glob(f"{partial}*"):  # of an export that was killed
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=partial, dir=parent) as temporary:
                path = pathlib.Path(temporary) / self.output.name
                yield path
                beside = [each for each in path.parent.iterdir() if each != path]
                for each in beside:
                    if (taken := parent / each.name).exists():
                        raise UserError(f"{taken} exists already; choose another --output or remove it")
                for each in [*beside, path]:
                    moved.append(parent / each.name)
                    shutil.move(each, parent / each.name)
        except BaseException:
            for each in moved:
                shutil.rmtree(each, ignore_errors=True)
                each.unlink(missing_ok=True)
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise


def check_target(
    output: epath.PathLike,
    *,
    dataset: epath.PathLike | None = None,
    split: str = "test",
    encoders: Mapping[str, str] | None = None,
    target_tensorflow: str = "",
    text: str = "ids",
    tower: str = "image",
    precision: str = "float32",
    takes: str = "",
    serving_version: int | None = None,
    reduce: str = "",
    output_dtype: str = "float32",
    store: epath.PathLike | None = None,
) -> ExportTarget:
    """What an export is asked for, checked before a model is loaded, which can take minutes.

    Args:
      output: a name that ends in .onnx means ONNX, one in .stablehlo a folder of programs for JAX.
      dataset, split: whose pictures and titles check the export, or whose stored vectors.
      encoders: {feature: network} to join with an adapter, one for each of its features.
      text: what the text tower of a SavedModel takes, see `export_saved_model`.
      serving_version: of a SavedModel: it is written to that number in `output`, as TensorFlow Serving wants it.
      tower, precision, takes: of an .onnx file, see `export_tower`; of an adapter of stored vectors the defaults.
      reduce, output_dtype, store: of a SavedModel: smaller embeddings, "pca:64" of the vectors of that store, or
        "truncate:64"; and "int8", with a scale for each.

    Raises:
      UserError: flags of another format, an output that is there or cannot be written, a dataset without the split.
    """
    output = pathlib.Path(output)
    runtime, kind = KINDS.get(output.suffix, SAVED_MODEL)
    of_saved_model = {
        "serving_version": serving_version,
        "target_tensorflow": target_tensorflow,
        "text": "" if text == "ids" else text,
        "reduce": reduce,
        "output_dtype": "" if output_dtype == "float32" else output_dtype,
    }
    for flag, value in of_saved_model.items():
        if value and runtime != "savedmodel":
            raise UserError(f"--{flag} is of SavedModels; leave it out for {output.suffix}")
    if runtime != "onnx" and (tower != "image" or precision != "float32" or takes):
        raise UserError(f"--tower, --precision and --takes are of .onnx files; leave them out for {kind}")
    if encoders and runtime == "jax":
        raise UserError("--encoder is of SavedModels and .onnx files; leave it out for .stablehlo")
    spec = Spec.parse(reduce) if reduce else Spec("", 0, False)
    spec = dataclasses.replace(spec, int8=spec.int8 or output_dtype == "int8")
    if (spec.kind == "pca") != (store is not None):
        raise UserError(
            "--store is of --reduce=pca:WIDTH, whose axes are those of stored vectors of training items: "
            + ("leave it out" if store is not None else "give --store")
        )
    if serving_version is not None:
        output /= str(serving_version)
    if output.exists():
        raise UserError(f"{output} exists already; choose another --output or remove it")
    _check_writable(output)
    if dataset is not None:
        open_split(dataset, split)
    return ExportTarget(
        output=output, runtime=runtime, kind=kind, smaller=spec, dataset=dataset, split=split, encoders=encoders or {},
        target_tensorflow=target_tensorflow, text=text, tower=tower, precision=precision, takes=takes, store=store,
    )  # fmt: skip


def _check_writable(output: pathlib.Path) -> None:
    folder = output.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"--output={output}: {folder} is a file; choose another --output")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--output={output}: {folder} cannot be written to; choose another --output")
