"""What a comparison compares: stores and files, baselines, reductions of them, a ladder; and slices."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from siglip_jax.errors import UserError

if TYPE_CHECKING:  # numpy and more, which --help does not wait for
    import numpy as np
    from etils import epath

    from eval.comparison.dimension_ladder import Ladder
    from eval.comparison.items import Items
    from eval.embeddings.reduction import Spec
    from eval.rankers import Ranker
    from eval.statistics import Slicing

BASELINES = ("random", "raw pixels", "title TF-IDF", "popularity:COLUMN")
DEFAULT_BASELINES = ["random", "raw pixels"]
OF_LOG = ("popularity", "item-to-item")  # baselines that are counted in a log
LOGGED_ORDER = "logged order"
_ALIKE = 1.05  # largest ratio of the 95th to the 5th percentile of lengths that are called alike


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankerOptions:
    """What to compare, as a user names it.

    Attributes:
      stores: {name: folder of an embedding store, or file of embeddings}, in the order of the table.
      baselines: rankers that need no store, see BASELINES; None for those that suit the protocol.
      reductions: (store, reduction such as "pca:128"), a ranker more for each.
      fits: {store: folder of a store of training items, by the same encoder}, for its PCA.
      ladders: stores to measure at every width.
      new, against: the two of the headline; None for the last store and the ranker before it.
      similarity: of the stores' vectors, "cosine" or "dot"; None for cosine, with a note where norms vary.
    """

    stores: Mapping[str, str]
    baselines: Sequence[str] | None = None
    reductions: Sequence[tuple[str, str]] = ()
    fits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ladders: Sequence[str] = ()
    new: str | None = None
    against: str | None = None
    similarity: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankersToCompare:
    """What a comparison is made of.

    Attributes:
      rankers: {name: ranker} over the items, in the order of the table.
      items: what they rank.
      new: whose differences to all others are reported.
      against: the one of these that comes first, and that slices and examples are about.
      bytes_per_item: of rankers that store vectors.
      ladders: {name of a store: what to measure at every width}.
      provenance: where the vectors came from.
      of_log: baselines that a log has to be counted for, in the order of the flags.
      similarity: "cosine" or "dot", of the stores' vectors.
      notes: what a reader has to know of that, sentences.
    """

    rankers: Mapping[str, Ranker]
    items: Items
    new: str
    against: str
    bytes_per_item: Mapping[str, int] = dataclasses.field(default_factory=dict)
    ladders: Mapping[str, Ladder] = dataclasses.field(default_factory=dict)
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    of_log: Sequence[str] = ()
    similarity: str = "cosine"
    notes: Sequence[str] = ()

    def with_rankers_of_log(self, counted: Mapping[str, Ranker]) -> RankersToCompare:
        """With those of `of_log` that could be counted, behind "random".

        Where `against` could not be counted, the last ranker but `new` takes its place.
        """
        random = {name: ranker for name, ranker in self.rankers.items() if name == "random"}
        rankers = {**random, **counted, **self.rankers}
        against = self.against if self.against in rankers else [name for name in rankers if name != self.new][-1]
        return dataclasses.replace(self, rankers=rankers, against=against)


def check_options(options: RankerOptions, *, dataset: epath.PathLike | None) -> None:
    """Raises what `read_rankers` raises of names, before there are any vectors."""
    baselines, reduced = _checked_names(options, dataset=dataset, over_logs=False)
    labels = [f"{name}, {spec.label}" for name, spec in reduced]
    _headline(options, [*(name.partition(":")[0] for name in baselines), *options.stores, *labels])


def read_rankers(
    options: RankerOptions,
    *,
    dataset: epath.PathLike | None,
    split: str,
    items: Items,
    over_logs: bool = False,
) -> RankersToCompare:
    """The rankers that the options name, over the items, those of a split.

    With `over_logs` a store may hold more items than the split, in any order.

    Raises:
      UserError: a name twice or unknown, a store of other items, a reduction that does not fit.
    """
    from eval.comparison.dimension_ladder import Ladder, ladder_reductions
    from eval.embeddings.reduction import fit
    from eval.rankers import VectorRanker

    baselines, reduced = _checked_names(options, dataset=dataset, over_logs=over_logs)
    of_log = [name for name in baselines if over_logs and name in OF_LOG]

    similarity = options.similarity or "cosine"
    notes: list[str] = []
    rankers: dict[str, Ranker] = {}
    sizes: dict[str, int] = {}
    ladders: dict[str, Ladder] = {}
    provenance: dict[str, Any] = {"stores": {}}

    def add(name: str, ranker: Ranker, size: int | None = None) -> None:
        if name in rankers:
            raise UserError(f"row {name!r} is named twice; choose another name")
        rankers[name] = ranker
        if size is not None:
            sizes[name] = size

    for name in [name for name in baselines if name not in of_log]:
        ranker, size = _baseline(name, dataset=dataset, split=split, items=items)
        add(name.partition(":")[0], ranker, size)
    for name, path in options.stores.items():
        vectors, about = read_vectors(name, path, items=items, dataset=dataset, any_order=over_logs)
        provenance["stores"][name] = about
        add(name, VectorRanker(name, vectors, ids=items.ids, similarity=similarity), 4 * vectors.shape[1])
        notes += _of_norms(name, vectors) if options.similarity is None else []
        specs = [spec for owner, spec in reduced if owner == name]
        if not specs and name not in options.ladders:
            continue
        train, note = _training_vectors(name, options.fits.get(name), vectors, dataset=dataset)
        for spec in specs:
            reduction = fit(spec, train, fitted_on=note)
            label = f"{name}, {spec.label}"
            add(label, VectorRanker(label, reduction(vectors)), spec.bytes_per_item(vectors.shape[1]))
            provenance.setdefault("reductions", {})[label] = reduction.to_json()
        if name in options.ladders:
            ladders[name] = Ladder(vectors, ladder_reductions(train, fitted_on=note))
    new, against = _headline(options, [*of_log, *rankers])
    return RankersToCompare(
        rankers=rankers, items=items, new=new, against=against, bytes_per_item=sizes, ladders=ladders,
        provenance=provenance, of_log=of_log, similarity=similarity, notes=notes,
    )  # fmt: skip


def _of_norms(name: str, vectors: np.ndarray) -> list[str]:
    """A note where vectors are of several lengths, so that cosine and inner product rank differently."""
    import numpy as np

    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    low, high = np.percentile(norms, [5, 95])
    if high <= _ALIKE * low:
        return []
    return [
        (
            f"The vectors of {name} are of several lengths ({low:.3g} to {high:.3g} for nine in ten): they were "
            "compared by cosine, the default, which leaves length out; --similarity=dot takes the inner product."
        )
    ]


def _checked_names(
    options: RankerOptions, *, dataset: epath.PathLike | None, over_logs: bool
) -> tuple[Sequence[str], list[tuple[str, Spec]]]:
    """(the baselines, the reductions: of which store, and what), after `_check_names`."""
    from eval.embeddings.reduction import Spec

    baselines = _baseline_names(options.baselines, dataset=dataset, over_logs=over_logs)
    reduced = [(name, Spec.parse(text)) for name, text in options.reductions]
    _check_names(options, baselines, [name for name, _ in reduced], over_logs=over_logs)
    return baselines, reduced


def _baseline_names(given: Sequence[str] | None, *, dataset: epath.PathLike | None, over_logs: bool) -> Sequence[str]:
    """Those that the user names, or those that suit."""
    if given is not None:
        return given
    if over_logs:
        return ["random", *OF_LOG, *(["title TF-IDF", "raw pixels"] if dataset else [])]
    return DEFAULT_BASELINES


def _check_names(options: RankerOptions, baselines: Sequence[str], reduced: Sequence[str], *, over_logs: bool) -> None:
    """Raises a UserError where a store has the name of a baseline, or a flag names no store or has nothing to do."""
    stores = options.stores
    known = {name.partition(":")[0] for name in (*BASELINES, *OF_LOG)}
    own = {name.partition(":")[0] for name in baselines} & known | ({LOGGED_ORDER} if over_logs else set())
    if taken := own & stores.keys():
        raise UserError(f"row {taken.pop()!r} is named twice: a baseline has this name; choose another")
    for flag, names in (("reduce", reduced), ("fit", options.fits), ("ladder", options.ladders)):
        if unknown := [name for name in names if name not in stores]:
            raise UserError(f"--{flag}={unknown[0]}: no such store; --store names {', '.join(stores) or 'none'}")
    used = {*reduced, *options.ladders}
    if options.similarity == "dot" and used:
        raise UserError(
            f"--similarity=dot with --reduce or --ladder of {min(used)}: smaller vectors are made for cosines; leave "
            "one of them out"
        )
    if idle := [name for name in options.fits if name not in used]:
        raise UserError(f"--fit={idle[0]}=...: nothing to fit; give --reduce={idle[0]}=pca:128 or --ladder={idle[0]}")


def read_vectors(
    name: str, path: str, *, items: Items, dataset: epath.PathLike | None, any_order: bool = False
) -> tuple[np.ndarray, dict[str, Any]]:
    """(vectors of a store or a file in the order of the items, a few words about them for the report).

    A store has to hold exactly these items in this order, unless `any_order`: then these among any.
    """
    from etils import epath as paths

    from eval.comparison.items import places_in_store
    from eval.embeddings import read_store
    from eval.embeddings.embedding_files import read_embeddings
    from eval.embeddings.pictures import first_pictures
    from input_pipeline.dataset import dataset_fingerprint

    ids = items.ids
    if paths.Path(path).is_dir():
        store, further = first_pictures(read_store(path))
        if further:
            print(
                f"store {name!r}: {further} rows of further pictures left out; an item is ranked by its first picture"
            )
        if dataset and not any_order:
            places = places_in_store(name, store, items, fingerprint=dataset_fingerprint(dataset))
            whole = len(places) == len(store.ids)
            return store.vectors if whole else store.vectors[places], store.manifest.get("model", {})
        place = {item: row for row, item in enumerate(store.ids)}
        if lacking := [item for item in ids if item not in place]:
            raise UserError(
                f"store {name!r} lacks {len(lacking)} of the catalogue's {len(ids)} items, such as {lacking[0]!r} (it "
                f"has such as {store.ids[0]!r}); embed them too, so that all rows rank the same candidates"
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


def _baseline(name: str, *, dataset: epath.PathLike | None, split: str, items: Items) -> tuple[Ranker, int | None]:
    from eval.comparison.item_images import pixel_vectors
    from eval.rankers import VectorRanker
    from eval.rankers.baselines import PopularityRanker, RandomRanker, TitleRanker

    kind, _, column = name.partition(":")
    ids, columns = items.ids, items.columns
    if name in ("raw pixels", "title TF-IDF") and not dataset:
        raise UserError(f"--baseline={name}: pictures and titles come from a dataset; give --dataset")
    if name == "random":
        return RandomRanker(len(ids)), None
    if name == "raw pixels":
        pixels = pixel_vectors(dataset, split, items=items)
        return VectorRanker(name, pixels, ids=ids), 4 * pixels.shape[1]
    if name == "title TF-IDF":
        return TitleRanker(items.titles), None
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


def _headline(options: RankerOptions, names: Sequence[str]) -> tuple[str, str]:
    """(new, against): the options' or, where they leave it open, the last store and the ranker before it."""
    new = options.new if options.new is not None else list(options.stores)[-1]
    own = f"{new}, "  # its reductions
    others = [name for name in names if name != new and not name.startswith(own)]
    for flag, name in (("new", new), ("against", options.against)):
        if name is not None and name not in names:
            raise UserError(f"--{flag}={name}: no such row; rows are {'; '.join(names)}")
    if options.against == new or not (options.against or others):
        raise UserError(f"row {new!r} has no other to be compared with; add a --baseline or a --store")
    return new, options.against if options.against is not None else others[-1]
