"""Smaller embeddings: PCA, truncation, int8; each leaves vectors that rank by cosine as the full ones do, or nearly so.

A reduction is fitted once, on vectors of training items, saved beside the encoder and applied to whatever is served:
a basis fitted on the items under evaluation has seen them, and nobody has those at serving time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from eval.embeddings.vectors import check_vectors, distinct_rows, unit_rows
from siglip_jax import files
from siglip_jax.errors import UserError

FORMAT = "siglip-jax reduction 1"
MANIFEST, ARRAYS = "reduction.json", "reduction.npz"
LADDER_WIDTHS = (512, 384, 256, 128, 64, 32)
MAX_DIMENSION = 2**14
FITTED_ON = 4000  # training items that the programs fit a PCA on, where they choose
_STEP = re.compile(r"(?:(pca|truncate):([1-9][0-9]{0,4}))?(?:\+?(int8))?")
_BLOCK = 1 << 22  # float64 numbers of centred vectors held at once


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a reduction shall be: "pca:128", "truncate:64", "int8", "pca:128+int8".

    Attributes:
      kind: "pca", "truncate" or "" for all numbers.
      width: numbers kept; 0 for all.
      int8: one byte a number instead of four.
    """

    kind: str
    width: int
    int8: bool

    @classmethod
    def parse(cls, text: str) -> Spec:
        """UserError unless the text is one of the forms above."""
        match = _STEP.fullmatch(text)
        if not match or not text or text.startswith("+") or (match[1] and match[3] and "+" not in text):
            raise UserError(
                f"reduction {text!r}: expected pca:WIDTH, truncate:WIDTH or int8, or one of the first two with +int8"
            )
        return cls(match[1] or "", int(match[2] or 0), bool(match[3]))

    def __str__(self) -> str:
        steps = [f"{self.kind}:{self.width}"] * bool(self.kind) + ["int8"] * self.int8
        return "+".join(steps)

    @property
    def label(self) -> str:
        """As a table shows it: "PCA 128", "truncated to 64", with ", int8"."""
        steps = {"pca": [f"PCA {self.width}"], "truncate": [f"truncated to {self.width}"]}.get(self.kind, [])
        return ", ".join([*steps, *["int8"] * self.int8])

    def bytes_per_item(self, dimension: int) -> int:
        """Bytes of one stored vector. int8 needs no scale beside it: the cosine does not see it."""
        return (self.width or dimension) * (1 if self.int8 else 4)


@dataclasses.dataclass(frozen=True)
class Reduction:
    """Unit vectors in, shorter unit vectors out.

    Attributes:
      spec: what it does.
      dimension: of the vectors it takes.
      mean, components: float64 [dimension] and [dimension, width] of a PCA; None otherwise.
      explained: float64 [width], share of the variance (of the vectors fitted on) that the first 1, 2, ... components
        hold; None otherwise.
      fitted_on: a few words about the vectors, for reports and manifests.
    """

    spec: Spec
    dimension: int
    mean: np.ndarray | None = None
    components: np.ndarray | None = None
    explained: np.ndarray | None = None
    fitted_on: str = ""

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Real [n, dimension] of any norm but 0 -> float32 [n, width], unit norm (int8: whole numbers -127 to 127).

        Equal vectors stay equal to the last bit.

        Raises:
          UserError: another dimension; a NaN, infinite or zero vector, before or after.
        """
        vectors = np.asarray(vectors)
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise UserError(
                f"{self.spec}: vectors of shape {list(vectors.shape)}; it was made for [n, {self.dimension}]"
            )
        out = unit_rows(vectors, what="vector")
        if self.spec.kind == "truncate":
            out = np.ascontiguousarray(out[:, : self.spec.width])
        elif self.mean is not None and self.components is not None:
            first, inverse = distinct_rows(out)  # a product of matrices may round equal rows apart
            out = _project(out[first], self.mean, self.components)[inverse]
        out = unit_rows(out, what=f"vector reduced by {self.spec}")
        return quantise(out).astype(np.float32) if self.spec.int8 else out

    def narrowed(self, spec: Spec) -> Reduction:
        """The reduction `fit` would give for a spec of this kind and no greater width, without fitting again."""
        if spec.kind != self.spec.kind or spec.width > self.spec.width:
            raise UserError(f"{self.spec}: cannot be narrowed to {spec}; fit that one")
        if self.components is None or self.explained is None:
            return dataclasses.replace(self, spec=spec)
        components = np.ascontiguousarray(self.components[:, : spec.width])
        return dataclasses.replace(self, spec=spec, components=components, explained=self.explained[: spec.width])

    def to_json(self) -> dict[str, Any]:
        explained = None if self.explained is None else round(float(self.explained[-1]), 6)
        known = {"explained_variance": explained, "fitted_on": self.fitted_on or None}
        given = {key: value for key, value in known.items() if value is not None}
        return {"reduction": str(self.spec), "dimension": self.dimension, **given}


def fit(spec: Spec, vectors: np.ndarray, *, fitted_on: str = "") -> Reduction:
    """A reduction of vectors like these; only a PCA looks at their values.

    The PCA is that of unit vectors (so every item has one say), centred: the eigenvectors of their covariance in
    float64, added up block by block, so memory does not grow with the items. Each component's largest number is
    positive, so that equal vectors give equal reductions on every machine.

    Args:
      vectors: real [n, dimension], of training items.
      fitted_on: which vectors these are, in a few words.

    Raises:
      UserError: a width above the dimension, or above what n vectors can tell (n - 1); NaN, infinite or zero vectors.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or not vectors.size or vectors.shape[1] > MAX_DIMENSION:
        raise UserError(f"{spec}: vectors of shape {list(vectors.shape)}; expected [n, 1 to {MAX_DIMENSION}]")
    count, dimension = vectors.shape
    if spec.width > dimension:
        raise UserError(f"{spec}: the vectors have {dimension} numbers; choose a width up to {dimension}")
    if spec.kind != "pca":
        return Reduction(spec, dimension)
    if spec.width > count - 1:
        raise UserError(f"{spec}: {count} vectors span at most {count - 1} directions; fit on more vectors")
    mean, covariance = _moments(vectors)
    variances, directions = np.linalg.eigh(covariance)
    variances, directions = variances[::-1].clip(0), directions[:, ::-1]
    kept = directions[:, : spec.width]
    largest = kept[np.abs(kept).argmax(axis=0), np.arange(spec.width)]
    components = np.ascontiguousarray(kept * np.sign(largest))
    total = variances.sum()
    if not total > 1e-12:  # rounding alone
        raise UserError(f"{spec}: all {count} vectors are equal; there is no direction to keep")
    explained = np.cumsum(variances[: spec.width]) / total
    return Reduction(spec, dimension, mean, components, explained, fitted_on)


def quantise(vectors: np.ndarray) -> np.ndarray:
    """Real [n, d] -> int8 [n, d], each vector scaled so that its largest number is 127 or -127."""
    check_vectors(vectors, what="vector")
    largest = np.abs(vectors).max(axis=1, keepdims=True).astype(np.float64)
    return np.rint(vectors / largest * 127).astype(np.int8)


def save(folder: epath.PathLike, reduction: Reduction) -> None:
    """reduction.npz (mean, components, explained: float64; no pickles) and, last, reduction.json with its sha256.

    A server does `x = x / norm(x)`, then `(x - mean) @ components` or `x[:width]`, then divides by the norm again.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fitted = {"mean": reduction.mean, "components": reduction.components, "explained": reduction.explained}
    arrays: dict[str, Any] = {name: array for name, array in fitted.items() if array is not None}
    sink = io.BytesIO()
    np.savez(sink, allow_pickle=False, **arrays)
    (folder / MANIFEST).unlink(missing_ok=True)
    (folder / ARRAYS).write_bytes(sink.getvalue())
    digest = hashlib.sha256(sink.getvalue()).hexdigest()
    manifest = {"format": FORMAT, **reduction.to_json(), "files": {ARRAYS: digest}}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def load(folder: epath.PathLike) -> Reduction:
    """What `save` wrote.

    Raises:
      UserError: a file missing or altered, another format, shapes that do not fit the manifest.
    """
    folder = epath.Path(folder)
    manifest = files.read_json(folder / MANIFEST)
    wrong = UserError(f"reduction {folder}: {MANIFEST} is not of format {FORMAT!r}; fit it again")
    if manifest.get("format") != FORMAT or not isinstance(manifest.get("files"), dict):
        raise wrong
    spec, dimension = Spec.parse(str(manifest.get("reduction"))), manifest.get("dimension")
    if type(dimension) is not int or not 1 <= dimension <= MAX_DIMENSION or spec.width > dimension:
        raise wrong
    path = folder / ARRAYS
    if not files.is_regular(path) or path.stat().length > 2 * 8 * MAX_DIMENSION * dimension:
        raise UserError(f"reduction {folder}: {ARRAYS} is missing or too large; fit it again")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest["files"].get(ARRAYS):
        raise UserError(f"reduction {folder}: {ARRAYS} is not what was written (sha256); fit it again")
    if spec.kind != "pca":
        return Reduction(spec, dimension)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            mean, components, explained = (arrays[name] for name in ("mean", "components", "explained"))
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"reduction {folder}: {ARRAYS} cannot be read ({error}); fit it again") from None
    shapes = {"mean": (dimension,), "components": (dimension, spec.width), "explained": (spec.width,)}
    for name, array in (("mean", mean), ("components", components), ("explained", explained)):
        if array.shape != shapes[name] or array.dtype != np.float64 or not np.isfinite(array).all():
            raise UserError(f"reduction {folder}: {name} is {array.dtype} {list(array.shape)}; fit it again")
    return Reduction(spec, dimension, mean, components, explained, str(manifest.get("fitted_on") or ""))


def ladder_specs(dimension: int, *, widths: tuple[int, ...] = LADDER_WIDTHS) -> list[Spec]:
    """Truncation and PCA at every width below the dimension, each in float32 and int8, and the full width in int8."""
    specs = [Spec("", 0, True)]
    for width in widths:
        if width < dimension:
            specs += [Spec(kind, width, int8) for kind in ("truncate", "pca") for int8 in (False, True)]
    return specs


def _moments(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d] and covariance [d, d] of the vectors at unit norm, float64, in two passes."""
    count, dimension = vectors.shape
    step = max(1, _BLOCK // dimension)

    def blocks() -> Iterator[np.ndarray]:
        for lo in range(0, count, step):
            yield unit_rows(vectors[lo : lo + step], what="vector").astype(np.float64)

    mean = sum(block.sum(axis=0) for block in blocks()) / count
    covariance = np.zeros((dimension, dimension))
    for block in blocks():
        block -= mean
        covariance += block.T @ block
    return mean, covariance / max(1, count - 1)


def _project(vectors: np.ndarray, mean: np.ndarray, components: np.ndarray) -> np.ndarray:
    """(x - mean) @ components in float64 by blocks: float32 [n, width]."""
    out = np.empty((len(vectors), components.shape[1]), np.float32)
    step = max(1, _BLOCK // vectors.shape[1])
    for lo in range(0, len(vectors), step):
        out[lo : lo + step] = (vectors[lo : lo + step].astype(np.float64) - mean) @ components
    return out
