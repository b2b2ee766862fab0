"""Rows of a comparison out of flags: stores and files, baselines, reductions of them, a ladder, slices."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from siglip_jax.errors import UserError
from tools import options

if TYPE_CHECKING:  # numpy and more, which --help does not wait for
    import numpy as np
    from etils import epath

    from eval.reduction import Reduction
    from eval.rows import Row
    from eval.slices import Slicing

BASELINES = ("random", "raw pixels", "title TF-IDF", "popularity:COLUMN")
DEFAULT_BASELINES = ("random", "raw pixels")


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_multi_string(
        "store",
        None,
        "name=folder of an embedding store, or name=file of embeddings (.npy, .npz, .parquet, .csv).",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "baseline",
        None,
        f"Rows that need no store: {', '.join(BASELINES)}; with --logs also popularity and item-to-item. When absent, "
        "random and raw pixels; with --logs all that can be had.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "reduce", [], "name=pca:128, a row more: that store made smaller (pca, truncate, +int8).", flag_values=values
    )
    flags.DEFINE_multi_string(
        "fit", [], "name=store of training items, by the same encoder, for the PCA of that store.", flag_values=values
    )
    flags.DEFINE_multi_string(
        "ladder",
        [],
        "name of a store to measure at every width, by truncation and PCA, float32 and int8.",
        flag_values=values,
    )
    flags.DEFINE_string("new", None, "The row that is compared with all others; the last store.", flag_values=values)
    flags.DEFINE_string(
        "against", None, "The row it is compared with first, by slices and by queries too.", flag_values=values
    )
    flags.DEFINE_multi_string(
        "slice",
        None,
        "Attribute of the query item, or attribute:bands for a number, to slice by; absent, those of relevance.",
        flag_values=values,
    )


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """The items that are ranked: ids, titles and attributes, parallel; `dataset` has their pictures, if any."""

    ids: Sequence[str]
    titles: Sequence[str]
    columns: Mapping[str, Sequence[str]]
    dataset: epath.PathLike | None
    split: str

    @classmethod
    def of(cls, dataset: epath.PathLike, split: str) -> Catalogue:
        from input_pipeline.dataset import attributes

        return cls(*attributes(dataset, split), dataset, split)

    @property
    def fingerprint(self) -> str | None:
        from input_pipeline.dataset import dataset_fingerprint

        return None if self.dataset is None else dataset_fingerprint(self.dataset)


@dataclasses.dataclass(frozen=True)
class Rows:
    """What a comparison is made of.

    Attributes:
      rows: {name: row} in the order of the table.
      stores: names of those that are no baseline and no reduction.
      bytes_per_item: of rows that store vectors.
      vectors: {store: vectors}, for ladders.
      ladders: {store: rungs of its ladder}.
      provenance: where the vectors came from.
    """

    rows: dict[str, Row]
    stores: list[str]
    bytes_per_item: dict[str, int]
    vectors: dict[str, np.ndarray]
    ladders: dict[str, list[Reduction]]
    provenance: dict[str, Any]


def read_rows(values: flags.FlagValues, catalogue: Catalogue, *, baselines: Sequence[str], subset: bool) -> Rows:
    """The rows that the flags name, over the items of a catalogue.

    Args:
      baselines: of BASELINES.
      subset: whether a store may hold more than the catalogue's items, in another order.

    Raises:
      UserError: a name twice or unknown, a store of other items, a reduction that does not fit.
    """
    from eval.reduction import Spec, fit
    from eval.rows import VectorRow

    stores = options.named_paths(values.store, flag="store")
    reduced = [(name, Spec.parse(text)) for name, text in options.pairs(values.reduce, flag="reduce")]
    fitted = options.named_paths(values.fit, flag="fit")
    for flag, names in (("reduce", [name for name, _ in reduced]), ("fit", list(fitted)), ("ladder", values.ladder)):
        if unknown := [name for name in names if name not in stores]:
            raise UserError(f"--{flag}={unknown[0]}: no such store; --store names {', '.join(stores)}")
    used = {name for name, _ in reduced} | set(values.ladder)
    if idle := [name for name in fitted if name not in used]:
        raise UserError(f"--fit={idle[0]}=...: nothing to fit; give --reduce={idle[0]}=pca:128 or --ladder={idle[0]}")
    taken = {name.partition(":")[0] for name in baselines}
    if clash := [name for name in stores if name in taken]:
        raise UserError(f"--store={clash[0]}=...: a baseline has this name; choose another")

    rows: dict[str, Row] = {}
    sizes: dict[str, int] = {}
    vectors: dict[str, np.ndarray] = {}
    provenance: dict[str, Any] = {"stores": {}}
    ladders: dict[str, list[Reduction]] = {}

    def add(name: str, row: Row, size: int | None) -> None:
        if name in rows:
            raise UserError(f"row {name!r} is named twice; choose another name")
        rows[name] = row
        if size is not None:
            sizes[name] = size

    for name in baselines:
        add(name.partition(":")[0], *_baseline(name, catalogue))
    for name, path in stores.items():
        vectors[name], provenance["stores"][name] = read_vectors(name, path, catalogue, subset=subset)
        dimension = vectors[name].shape[1]
        add(name, VectorRow(name, vectors[name], ids=catalogue.ids), 4 * dimension)
        specs = [spec for owner, spec in reduced if owner == name]
        if name not in used:
            continue
        train, note = _training_vectors(name, fitted.get(name), vectors[name], fingerprint=catalogue.fingerprint)
        for spec in specs:
            reduction = fit(spec, train, fitted_on=note)
            label = f"{name}, {spec.label}"
            add(label, VectorRow(label, reduction(vectors[name])), spec.bytes_per_item(dimension))
            provenance.setdefault("reductions", {})[label] = reduction.to_json()
        if name in values.ladder:
            from eval.ladder import ladder_reductions

            ladders[name] = ladder_reductions(train, fitted_on=note)
    return Rows(rows, list(stores), sizes, vectors, ladders, provenance)


def read_vectors(name: str, path: str, catalogue: Catalogue, *, subset: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """(vectors of a store or a file in the catalogue's order, a few words about them for the report)."""
    from etils import epath as paths

    from eval.embedding_files import read_embeddings
    from eval.embeddings import read_store
    from tools.comparison import check_same_items

    if not paths.Path(path).is_dir() and paths.Path(path).suffix:
        file = read_embeddings(path)
        vectors, more = file.aligned(catalogue.ids)
        known = {"file": paths.Path(path).name, "sha256": file.sha256, "dimension": vectors.shape[1]}
        return vectors, {**known, "items of no interest": more} if more else known
    store = read_store(path)
    about = store.manifest.get("model", {})
    if not subset:
        assert catalogue.fingerprint is not None
        check_same_items(name, store, catalogue.ids, fingerprint=catalogue.fingerprint)
        return store.vectors, about
    place = {item: row for row, item in enumerate(store.ids)}
    lacking = [item for item in catalogue.ids if item not in place]
    if lacking:
        raise UserError(
            f"store {name!r} lacks {len(lacking)} of the catalogue's {len(catalogue.ids)} items, such as "
            f"{lacking[0]!r}; embed them too, so that all rows rank the same candidates"
        )
    return store.vectors[[place[item] for item in catalogue.ids]], about


def slicings_of(specs: Sequence[str], catalogue: Catalogue, queries: np.ndarray | None = None) -> list[Slicing]:
    """ "gender" -> its values; "price:bands" -> five bands of about equal counts; empty values are counted.

    Args:
      queries: int64 [query], the item each query asks for, -1 for none; None where every item is a query.

    Raises:
      UserError: an unknown attribute, or a value in bands that is neither a number nor empty.
    """
    import numpy as np

    from eval.slices import by_band, by_value

    columns = {"title": catalogue.titles, **catalogue.columns}
    rows = np.arange(len(catalogue.ids)) if queries is None else queries
    found = []
    for spec in specs:
        name, colon, kind = spec.partition(":")
        if name not in columns:
            raise UserError(f"--slice={spec}: no attribute {name!r}; the catalogue has {', '.join(columns)}")
        if colon and kind != "bands":
            raise UserError(f"--slice={spec}: expected an attribute, or attribute:bands for a number")
        if not colon:
            found.append(by_value(name, np.asarray([*columns[name], ""], object)[rows].tolist()))
            continue
        numbers = np.full(len(catalogue.ids) + 1, np.nan)  # the last is that of no item
        for row, value in enumerate(columns[name]):
            try:
                numbers[row] = float(value) if value else np.nan
            except ValueError:
                given = f"{name} of item {catalogue.ids[row]!r} is {value!r}"
                raise UserError(f"--slice={spec}: {given}; expected a number") from None
        found.append(by_band(name, numbers[rows]))
    return found


def compared(values: flags.FlagValues, names: Iterable[str], stores: Sequence[str]) -> tuple[str, str]:
    """(new, against): the two rows of the headline; what flags leave open is the last store and the row before it.

    Raises:
      UserError: an unknown name, or no other row.
    """
    names = list(names)
    new = values.new if values.new is not None else stores[-1]
    for flag, name in (("new", new), ("against", values.against)):
        if name is not None and name not in names:
            raise UserError(f"--{flag}={name}: no such row; rows are {'; '.join(names)}")
    others = [name for name in names if name != new and not name.startswith(f"{new}, ")]  # its reductions
    if values.against == new or not (values.against or others):
        raise UserError(f"row {new!r} has no other to be compared with; add a --baseline or a --store")
    return new, values.against if values.against is not None else others[-1]


def _baseline(name: str, catalogue: Catalogue) -> tuple[Row, int | None]:
    from eval.baselines import PopularityRow, RandomRow, TitleRow
    from eval.rows import VectorRow
    from tools.comparison import pixel_vectors

    kind, _, column = name.partition(":")
    if name == "random":
        return RandomRow(len(catalogue.ids)), None
    if name == "raw pixels":
        if catalogue.dataset is None:
            raise UserError("--baseline=raw pixels: pictures come from a dataset; give --dataset")
        pixels = pixel_vectors(catalogue.dataset, catalogue.split)
        return VectorRow(name, pixels, ids=catalogue.ids), 4 * pixels.shape[1]
    if name == "title TF-IDF":
        return TitleRow(catalogue.titles), None
    if kind == "popularity" and column:
        if column not in catalogue.columns:
            known = ", ".join(catalogue.columns) or "none"
            raise UserError(f"--baseline={name}: no attribute {column!r}; the catalogue has {known}")
        return PopularityRow.of_column(catalogue.columns[column], column=column, ids=catalogue.ids), None
    raise UserError(f"--baseline={name}: unknown; expected one of {', '.join(BASELINES)}")


def _training_vectors(
    name: str, folder: str | None, evaluated: np.ndarray, *, fingerprint: str | None
) -> tuple[np.ndarray, str]:
    """(what a PCA of this store is fitted on, the same in words)."""
    from eval.embeddings import read_store

    if folder is None:
        return evaluated, f"the {len(evaluated)} evaluated items themselves"
    store = read_store(folder)
    stored = store.manifest.get("dataset", {})
    if fingerprint is not None and stored.get("fingerprint") not in (None, fingerprint):
        raise UserError(f"--fit={name}={folder}: made from another dataset; embed its training split again")
    if store.vectors.shape[1] != evaluated.shape[1]:
        widths = f"{store.vectors.shape[1]} numbers, the store {evaluated.shape[1]}"
        raise UserError(f"--fit={name}={folder}: vectors of {widths}; expected those of the same encoder")
    return store.vectors, f"{len(store.ids)} items of split {stored.get('split', 'unknown')}"
