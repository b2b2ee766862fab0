"""The rows of a comparison: stores and files, baselines, reductions of them, a ladder, slices."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from siglip_jax.errors import UserError

if TYPE_CHECKING:  # numpy and more, which --help does not wait for
    import numpy as np
    from etils import epath

    from eval.comparison.items import Catalogue
    from eval.embeddings.reduction import Reduction
    from eval.rankers import Ranker
    from eval.statistics import Slicing

BASELINES = ("random", "raw pixels", "title TF-IDF", "popularity:COLUMN")
DEFAULT_BASELINES = ["random", "raw pixels"]
OF_LOG = ("popularity", "item-to-item")  # baselines that are counted in a log
LOGGED_ORDER = "logged order"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankerOptions:
    """What to compare, as a user names it.

    Attributes:
      stores: {name: folder of an embedding store, or file of embeddings}, in the order of the table.
      baselines: rows that need no store, see BASELINES; None for those that suit the protocol.
      reductions: (store, reduction such as "pca:128"), a row more for each.
      fits: {store: folder of a store of training items, by the same encoder}, for its PCA.
      ladders: stores to measure at every width.
      new, against: the two rows of the headline; None for the last store and the row before it.
    """

    stores: Mapping[str, str]
    baselines: Sequence[str] | None = None
    reductions: Sequence[tuple[str, str]] = ()
    fits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ladders: Sequence[str] = ()
    new: str | None = None
    against: str | None = None


@dataclasses.dataclass(frozen=True)
class Rows:
    """What a comparison is made of.

    Attributes:
      rows: {name: row} in the order of the table.
      new, against: the two rows in the headline.
      bytes_per_item: of rows that store vectors.
      vectors: of the stores, for ladders.
      reductions: {store name: rungs of its ladder}.
      provenance: where the vectors came from.
      catalogue: the items.
      of_log: baselines that a log has to be counted for, in the order of the flags.
    """

    rows: dict[str, Ranker]
    new: str
    against: str
    bytes_per_item: dict[str, int]
    vectors: dict[str, np.ndarray]
    ladders: dict[str, list[Reduction]]
    provenance: dict[str, Any]
    catalogue: Catalogue
    of_log: list[str] = dataclasses.field(default_factory=list)


def read_rows(
    options: RankerOptions,
    *,
    dataset: epath.PathLike | None,
    split: str,
    catalogue: Catalogue,
    over_logs: bool = False,
) -> Rows:
    """The rows that the options name, over the catalogue's items, those of a split.

    With `over_logs` a store may hold more items than the split, in any order.

    Raises:
      UserError: a name twice or unknown, a store of other items, a reduction that does not fit.
    """
    from eval.embeddings.reduction import Spec, fit
    from eval.rankers import VectorRanker

    stores = options.stores
    ids = catalogue.ids
    baselines = options.baselines
    if baselines is None:
        baselines = DEFAULT_BASELINES
        if over_logs:
            baselines = ["random", *OF_LOG, *(["title TF-IDF", "raw pixels"] if dataset else [])]
    of_log = [name for name in baselines if over_logs and name in OF_LOG]
    known = {name.partition(":")[0] for name in (*BASELINES, *OF_LOG)}
    own = {name.partition(":")[0] for name in baselines} & known | ({LOGGED_ORDER} if over_logs else set())
    if taken := own & stores.keys():
        raise UserError(f"row {taken.pop()!r} is named twice: a baseline has this name; choose another")
    reduced = [(name, Spec.parse(text)) for name, text in options.reductions]
    fitted = options.fits
    for flag, names in (("reduce", [name for name, _ in reduced]), ("fit", fitted), ("ladder", options.ladders)):
        if unknown := [name for name in names if name not in stores]:
            raise UserError(f"--{flag}={unknown[0]}: no such store; --store names {', '.join(stores) or 'none'}")
    used = {name for name, _ in reduced} | set(options.ladders)
    if idle := [name for name in fitted if name not in used]:
        raise UserError(f"--fit={idle[0]}=...: nothing to fit; give --reduce={idle[0]}=pca:128 or --ladder={idle[0]}")

    rows: dict[str, Ranker] = {}
    sizes: dict[str, int] = {}
    vectors: dict[str, np.ndarray] = {}
    provenance: dict[str, Any] = {"stores": {}}

    def add(name: str, row: Ranker, size: int | None = None) -> None:
        if name in rows:
            raise UserError(f"row {name!r} is named twice; choose another name")
        rows[name] = row
        if size is not None:
            sizes[name] = size

    for name in [name for name in baselines if name not in of_log]:
        row, size = _baseline(name, dataset=dataset, split=split, catalogue=catalogue)
        add(name.partition(":")[0], row, size)
    ladders: dict[str, list[Reduction]] = {}
    for name, path in stores.items():
        vectors[name], provenance["stores"][name] = read_vectors(
            name, path, catalogue=catalogue, dataset=dataset, any_order=over_logs
        )
        add(name, VectorRanker(name, vectors[name], ids=ids), 4 * vectors[name].shape[1])
        specs = [spec for owner, spec in reduced if owner == name]
        if not specs and name not in options.ladders:
            continue
        train, note = _training_vectors(name, fitted.get(name), vectors[name], dataset=dataset)
        for spec in specs:
            reduction = fit(spec, train, fitted_on=note)
            label = f"{name}, {spec.label}"
            add(label, VectorRanker(label, reduction(vectors[name])), spec.bytes_per_item(vectors[name].shape[1]))
            provenance.setdefault("reductions", {})[label] = reduction.to_json()
        if name in options.ladders:
            from eval.comparison.dimension_ladder import ladder_reductions

            ladders[name] = ladder_reductions(train, fitted_on=note)
    new, against = _compared(options.new, options.against, [*of_log, *rows], stores)
    return Rows(rows, new, against, sizes, vectors, ladders, provenance, catalogue, of_log)


def read_vectors(
    name: str, path: str, *, catalogue: Catalogue, dataset: epath.PathLike | None, any_order: bool = False
) -> tuple[np.ndarray, dict[str, Any]]:
    """(vectors of a store or a file in the order of the catalogue, a few words about them for the report).

    A store has to hold exactly these items in this order, unless `any_order`: then these among any.
    """
    from etils import epath as paths

    from eval.comparison.items import places_in_store
    from eval.embeddings import read_store
    from eval.embeddings.embedding_files import read_embeddings
    from input_pipeline.dataset import dataset_fingerprint

    ids = catalogue.ids
    if paths.Path(path).is_dir():
        store = read_store(path)
        if dataset and not any_order:
            places = places_in_store(name, store, catalogue, fingerprint=dataset_fingerprint(dataset))
            whole = len(places) == len(store.ids)
            return store.vectors if whole else store.vectors[places], store.manifest.get("model", {})
        place = {item: row for row, item in enumerate(store.ids)}
        if lacking := [item for item in ids if item not in place]:
            raise UserError(
                f"store {name!r} lacks {len(lacking)} of the catalogue's {len(ids)} items, such as {lacking[0]!r}; "
                "embed them too, so that all rows rank the same candidates"
            )
        return store.vectors[[place[item] for item in ids]], store.manifest.get("model", {})
    file = read_embeddings(path)
    vectors, more = file.aligned(ids)
    known = {"file": paths.Path(path).name, "sha256": file.sha256, "dimension": vectors.shape[1]}
    return vectors, {**known, "items of no interest": more} if more else known


def slicings_of(specs: Sequence[str], columns: Mapping[str, Sequence[str]], *, ids: Sequence[str]) -> list[Slicing]:
    """ "gender" -> its values; "price:bands" -> five bands of about equal counts; empty values are counted.

    Raises:
      UserError: an unknown attribute, or a value in bands that is neither a number nor empty.
    """
    import numpy as np

    from eval.statistics.slices import by_band, by_value

    found = []
    for spec in specs:
        name, colon, kind = spec.partition(":")
        if name not in columns:
            raise UserError(f"--slice={spec}: no attribute {name!r}; the catalogue has {', '.join(columns) or 'none'}")
        if colon and kind != "bands":
            raise UserError(f"--slice={spec}: expected an attribute, or attribute:bands for a number")
        if not colon:
            found.append(by_value(name, columns[name]))
            continue
        numbers = np.full(len(ids), np.nan)
        for row, value in enumerate(columns[name]):
            try:
                numbers[row] = float(value) if value else np.nan
            except ValueError:
                raise UserError(
                    f"--slice={spec}: {name} of item {ids[row]!r} is {value!r}; expected a number"
                ) from None
        found.append(by_band(name, numbers))
    return found


def _baseline(
    name: str, *, dataset: epath.PathLike | None, split: str, catalogue: Catalogue
) -> tuple[Ranker, int | None]:
    from eval.comparison.by_attributes import pixel_vectors
    from eval.rankers import VectorRanker
    from eval.rankers.baselines import PopularityRanker, RandomRanker, TitleRanker

    kind, _, column = name.partition(":")
    ids, columns = catalogue.ids, catalogue.columns
    if name in ("raw pixels", "title TF-IDF") and not dataset:
        raise UserError(f"--baseline={name}: pictures and titles come from a dataset; give --dataset")
    if name == "random":
        return RandomRanker(len(ids)), None
    if name == "raw pixels":
        pixels = pixel_vectors(dataset, split, catalogue=catalogue)
        return VectorRanker(name, pixels, ids=ids), 4 * pixels.shape[1]
    if name == "title TF-IDF":
        return TitleRanker(catalogue.titles), None
    if kind == "popularity" and column:
        if column not in columns:
            raise UserError(f"--baseline={name}: no attribute {column!r}; the catalogue has {', '.join(columns)}")
        return PopularityRanker.of_column(columns[column], column=column, ids=ids), None
    raise UserError(f"--baseline={name}: unknown; expected one of {', '.join(BASELINES)}")


def _training_vectors(
    name: str, folder: str | None, evaluated: np.ndarray, *, dataset: epath.PathLike | None
) -> tuple[np.ndarray, str]:
    """(what a PCA of this store is fitted on, the same in words)."""
    from eval.embeddings import read_store
    from input_pipeline.dataset import dataset_fingerprint

    if folder is None:
        return evaluated, f"the {len(evaluated)} evaluated items themselves"
    store = read_store(folder)
    stored = store.manifest.get("dataset", {})
    if dataset and stored.get("fingerprint") not in (None, dataset_fingerprint(dataset)):
        raise UserError(f"--fit={name}={folder}: made from another dataset; embed its training split again")
    if store.vectors.shape[1] != evaluated.shape[1]:
        widths = f"{store.vectors.shape[1]} numbers, the store {evaluated.shape[1]}"
        raise UserError(f"--fit={name}={folder}: vectors of {widths}; expected those of the same encoder")
    return store.vectors, f"{len(store.ids)} items of split {stored.get('split', 'unknown')}"


def _compared(new: str | None, against: str | None, rows: Sequence[str], stores: Iterable[str]) -> tuple[str, str]:
    """The two rows of the headline; what flags leave open is the last store and the row before it."""
    new = new if new is not None else list(stores)[-1]
    own = f"{new}, "  # its reductions
    others = [name for name in rows if name != new and not name.startswith(own)]
    for flag, name in (("new", new), ("against", against)):
        if name is not None and name not in rows:
            raise UserError(f"--{flag}={name}: no such row; rows are {'; '.join(rows)}")
    if against == new or not (against or others):
        raise UserError(f"row {new!r} has no other to be compared with; add a --baseline or a --store")
    return new, against if against is not None else others[-1]
