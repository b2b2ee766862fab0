"""siglip-jax export: a model as a SavedModel or ONNX, checked in a process without JAX; an embedding store for others.

siglip-jax export --model=runs/fashion --output=runs/fashion/savedmodel --dataset=data/fashion
siglip-jax export --model=runs/fashion --output=runs/fashion/image.onnx --dataset=data/fashion
siglip-jax export --model=runs/fashion --output=runs/fashion/photo.onnx --takes=images --dataset=data/fashion
siglip-jax export --model=runs/fashion --output=runs/fashion/text.onnx --tower=text --dataset=data/fashion
siglip-jax export --model=runs/adapter --output=runs/adapter/savedmodel
siglip-jax export --model=runs/adapter --output=runs/adapter.onnx
siglip-jax export --model=runs/adapter --encoder=cnn=SAVEDMODEL --encoder=pixels=pixels:16x12 --output=runs/joined \\
  --dataset=data/fashion
siglip-jax export --model=runs/fashion --output=runs/fashion.stablehlo --dataset=data/fashion
siglip-jax export --model=runs/fashion --output=runs/fashion/savedmodel64 --dataset=data/fashion --reduce=pca:64 \\
  --store=runs/fashion/train-embeddings --output_dtype=int8
siglip-jax export --verify=runs/fashion/savedmodel
siglip-jax export --format=vertex --store=runs/embeddings --dataset=data/fashion --output=runs/batch
siglip-jax export --format=faiss --store=runs/embeddings --output=runs/vectors.faiss

With a dataset, a sample of its items is ranked with the model and with the export, and nDCG@5 is compared. Golden
pictures and titles travel with every export of a model. --verify replays them, and so does the verify.py that
travels with them and needs nothing of this library.

An adapter is written alone, to take its stored vectors by name, unless --encoder gives what made each of them. With
--dataset and --features its check uses those of a split, otherwise vectors that are made up (docs/guide/export.md).

--format writes a store instead: a batch for Vertex AI Vector Search, or one file of all vectors (docs/guide/search.md).
With --model it writes a folder for transformers, sentence-transformers or open_clip (docs/guide/models.md):

siglip-jax export --model=runs/fashion --output=runs/fashion-hf --format=huggingface --report=runs/report.json
"""

from __future__ import annotations

from absl import flags

from siglip_jax.errors import UserError
from siglip_jax.export.stablehlo import READERS
from tools import common_flags
from tools.workflow.exports.folders import FOLDERS

FORMATS = ("vertex", "parquet", "npy", "faiss")
OF_TOWERS = (
    "text", "tower", "precision", "takes", "serving_version", "reduce", "output_dtype", "rank_sample", "max_change",
    "config",
)  # fmt: skip
OF_VERTEX = ("since", "restrict", "numeric", "crowding", "rows_per_file")


def define_flags(values: flags.FlagValues) -> None:
    common_flags.define_model(values, required=False)
    flags.DEFINE_string(
        "output",
        None,
        "Folder of the SavedModel or the batch; a name in .onnx or .stablehlo, or in the suffix of --format.",
        flag_values=values,
    )
    flags.DEFINE_string("verify", None, "An export whose golden inputs are replayed.", flag_values=values)
    flags.DEFINE_enum(
        "text",
        "ids",
        ["ids", "strings", "none"],
        "What the text tower of a SavedModel takes: token ids; strings as well, which need tensorflow-text wherever "
        "it is loaded; none leaves the tower out.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "serving_version",
        None,
        "Writes the SavedModel to OUTPUT/NUMBER, where TensorFlow Serving looks for versions.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_enum("tower", "image", ["image", "text"], "Which one an .onnx file holds.", flag_values=values)
    flags.DEFINE_enum(
        "precision", "float32", ["float32", "float16", "int8"], "Of a tower in an .onnx file.", flag_values=values
    )
    flags.DEFINE_enum(
        "takes",
        None,
        ["pixels", "images", "ids"],
        "What an .onnx file takes: pixels, as the tower does; images, decoded, of any size, which the graph resizes; "
        "ids of a text tower. By default pixels or ids.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "reduce",
        None,
        "Of a SavedModel: fewer numbers, pca:WIDTH fitted on --store, or truncate:WIDTH; unit norm again.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "output_dtype",
        "float32",
        ["float32", "int8"],
        "Of a SavedModel: int8 has a scale for each embedding, as a store's int8.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "rank_sample",
        256,
        "Items of --dataset that are ranked with the model and with the export; 0 leaves the comparison out.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_float(
        "max_change", 0.01, "How far nDCG@5 of that sample may differ.", lower_bound=0.0, flag_values=values
    )
    common_flags.define_config(values, default=None, text="Config whose evaluation.relevance ranks the sample")
    flags.DEFINE_string(
        "dataset", None, "Dataset whose items check the export, or say what a stored item is.", flag_values=values
    )
    flags.DEFINE_string("split", "test", "Split that the items are from.", flag_values=values)
    common_flags.define_features(values)
    flags.DEFINE_multi_string(
        "encoder",
        [],
        "name=NETWORK: what made an adapter's feature, to be joined with it, one for each of them: the folder of a "
        "SavedModel, pixels:16x12, colours:6x7x7, edges:8x6x8; for ONNX .onnx.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "target_tensorflow",
        None,
        list(READERS),
        "The oldest TensorFlow that will read the SavedModel; by default the oldest that can. "
        "Towers in bfloat16 need 2.20.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "format",
        None,
        [*FORMATS, *FOLDERS],
        "What a store is written as, or what folder a model becomes: huggingface, sentence_transformers, open_clip.",
        flag_values=values,
    )
    common_flags.define_folders(values)
    flags.DEFINE_string(
        "store",
        None,
        "Folder of an embedding store, with --format; of training items, with --reduce=pca.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "since", None, "vertex: the store that the index has; what is gone is deleted.", flag_values=values
    )
    flags.DEFINE_multi_string(
        "restrict", [], "vertex: attribute to filter by; all but the next two when absent.", flag_values=values
    )
    flags.DEFINE_multi_string("numeric", [], "vertex: attribute that is a number.", flag_values=values)
    flags.DEFINE_string("crowding", None, "vertex: attribute of the crowding tag, the product.", flag_values=values)
    flags.DEFINE_integer("rows_per_file", None, "vertex: items of a file; 10000.", lower_bound=1, flag_values=values)


def main(values: flags.FlagValues) -> None:
    if values.format in FOLDERS:
        _export_folder(values)
        return
    if unused := [name for name in ("shard_size", "report") if values[name].present]:
        raise UserError(f"--{unused[0]} is of --format={', '.join(FOLDERS)}; leave it out")
    jobs = [name for name in ("model", "format", "verify") if values[name].value is not None]
    if len(jobs) != 1:
        raise UserError(
            "expected --model, to write a model, or --format and --store, to write stored vectors, or --verify, to "
            "replay the golden inputs of an export"
        )
    if values.verify is None and values.output is None:
        raise UserError("--output is missing: where to write")
    of_model, of_store = ("features", "encoder", "target_tensorflow", *OF_TOWERS), ("store", *OF_VERTEX)
    allowed: tuple[str, ...] = {"model": (*of_model, "store"), "format": ("store",), "verify": ()}[jobs[0]]
    allowed += OF_VERTEX if values.format == "vertex" else ()
    for name in (*of_model, *of_store):
        given = values[name].present if name in OF_TOWERS else getattr(values, name)
        if given and name not in allowed:
            whose = "--model" if name in of_model else "--format" if name == "store" else "--format=vertex"
            raise UserError(f"--{name} is of {whose}; leave it out")
    if values.verify is not None:
        from tools.workflow.exports import export

        if values.output is not None or values.dataset is not None:
            raise UserError("--verify is of an export that is there; leave --output and --dataset out")
        export.verify(values.verify)
    elif values.format is not None:
        _export_store(values)
    else:
        _export_model(values)


def _export_folder(values: flags.FlagValues) -> None:
    from siglip_jax.loading import load
    from tools.workflow.exports.folders import write_folder

    if values.model is None or values.output is None:
        raise UserError(f"--format={values.format} writes a model; expected --model and --output")
    others = ("verify", "dataset", "split", "features", "encoder", "target_tensorflow", "store", *OF_TOWERS, *OF_VERTEX)
    if given := [name for name in others if values[name].present]:
        raise UserError(f"--{given[0]} is not of --format={values.format}; leave it out")
    model = load(values.model, param_dtype="stored")
    lost = write_folder(model, values.output, format=values.format, shard_size=values.shard_size, report=values.report)
    for line in lost:
        print(f"not in {values.output}: {line}")
    print(f"{model.source or values.model} -> {values.output} ({values.format})")


def _export_store(values: flags.FlagValues) -> None:
    from eval.embeddings.dumps import plain, vertex
    from eval.embeddings.dumps.item_facts import ItemFacts
    from eval.embeddings.stored_rows import StoredRows

    if not values.store:
        raise UserError(f"--store is missing: --format={values.format} writes stored vectors")
    store = StoredRows(values.store)
    facts = ItemFacts.read(values.dataset) if values.dataset else None
    if values.format == "vertex":
        chosen = {"names": values.restrict, "numeric": values.numeric, "crowding": values.crowding or ""}
        if facts is None and any(chosen.values()):
            raise UserError("--restrict, --numeric and --crowding name attributes of a dataset; give --dataset")
        said = vertex.write_vertex(
            store,
            values.output,
            restricts=vertex.restricts_of(facts, **chosen) if facts else None,
            since=StoredRows(values.since) if values.since else None,
            rows_per_file=values.rows_per_file or vertex.ROWS_PER_FILE,
        )
    elif values.format == "parquet":
        said = plain.write_parquet(store, values.output, facts=facts)
    elif facts is not None:
        raise UserError(f"--format={values.format} holds vectors and ids only; leave --dataset out, or write parquet")
    else:
        said = (plain.write_npy if values.format == "npy" else plain.write_faiss)(store, values.output)
    print(said)


def _export_model(values: flags.FlagValues) -> None:
    from tools.workflow.exports.export_target import check_target
    from tools.workflow.termination import terminable

    with terminable():
        target = check_target(
            values.output,
            dataset=values.dataset,
            split=values.split,
            encoders=common_flags.named_paths(values.encoder, flag="encoder", expected="name=NETWORK"),
            target_tensorflow=values.target_tensorflow or "",
            text=values.text,
            tower=values.tower,
            precision=values.precision,
            takes=values.takes or "",
            serving_version=values.serving_version,
            reduce=values.reduce or "",
            output_dtype=values.output_dtype,
            store=values.store,
        )

        from siglip_jax.loading import load
        from tools.workflow.exports import export
        from tools.workflow.item_vectors import Features

        paths = common_flags.features_of(values)
        export.export(
            load(values.model),
            target,
            features=Features.open(paths) if paths else None,
            ranking=export.RankingOptions(config=values.config, items=values.rank_sample, max_change=values.max_change),
        )
