"""The README.md of a folder that libraries of others read: what the model is, how it is used, how it was evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from eval.report import markdown
from siglip_jax.errors import UserError

if TYPE_CHECKING:
    from siglip_jax.model import Model

_TRANSFORMERS = """from transformers import AutoModel, AutoProcessor

model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
inputs = processor(
    images=images, text=titles, padding="max_length", max_length={length}, truncation=True, return_tensors="pt"
)
outputs = model(**inputs)  # image_embeds, text_embeds and logits_per_image"""
_SENTENCE_TRANSFORMERS = """from sentence_transformers import SentenceTransformer

model = SentenceTransformer(folder)  # from 5.4 on, with transformers 5
model.encode(images), model.encode(titles)  # unit vectors"""
_OPEN_CLIP = """import open_clip

model, transform = open_clip.create_model_from_pretrained(f"local-dir:{{folder}}")
tokenizer = open_clip.get_tokenizer(f"local-dir:{{folder}}")
model.encode_image(transform(image)[None], normalize=True), model.encode_text(tokenizer(titles), normalize=True)"""
EVALUATION = ("protocol", "primary_metric", "rows", "queries", "items")  # what a card tells of a report
# By format: the library's name on a hub, and how the folder is used.
CARDS = {
    "huggingface": ("transformers", _TRANSFORMERS),
    "sentence_transformers": ("sentence-transformers", _SENTENCE_TRANSFORMERS),
    "open_clip": ("open_clip", _OPEN_CLIP),
}


def write_card(
    model: Model, folder: epath.Path, *, format: str, evaluation: Mapping[str, Any] | None, lost: Sequence[str]
) -> None:
    """Writes README.md into a folder of `format`, one of CARDS; `lost` is what the format cannot hold."""
    from siglip_jax.models.architecture import parameter_counts

    library, use = CARDS[format]
    architecture, preprocessing = model.architecture, model.preprocessing
    counts = parameter_counts(architecture)
    height, width = architecture.image_size
    pixels = "images of any aspect ratio" if architecture.naflex else f"images of {height} x {width} pixels"
    told = (
        f"A SigLIP model: {pixels} and titles of {architecture.text_length} tokens become unit vectors of "
        f"{architecture.embedding_dim} numbers; a logit is exp(t) times their product, plus b."
    )
    lines = [
        "---",
        f"library_name: {library}",
        "pipeline_tag: zero-shot-image-classification",
        "tags:",
        "- siglip",
        "---",
        "",
        f"# {folder.name}",
        "",
        told,
        f"It has {counts['image'] / 1e6:.1f} M parameters for images and {counts['text'] / 1e6:.1f} M for titles.",
        "",
        "```python",
        use.format(length=architecture.text_length),
        "```",
        "",
        "## Preprocessing",
        "",
    ]
    if preprocessing is None:
        lines.append("Not known to whoever wrote this folder.")
    else:
        low, high = preprocessing.value_range
        lines.append(
            f"Trained with resize={preprocessing.resize}, pixels in [{low:g}, {high:g}], "
            f"lowercase={preprocessing.lowercase}, punctuation={preprocessing.punctuation}."
        )
    if lost:
        lines += ["", "What this format cannot hold:", "", *(f"* {each}" for each in lost)]
    lines += ["", "## Evaluation", "", *_evaluation(evaluation)]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _evaluation(report: Mapping[str, Any] | None) -> list[str]:
    if report is None:
        return ["Not evaluated here: no ranking report was given when this folder was written."]
    try:
        rows = report["rows"]
        names = list(dict.fromkeys(metric for row in rows for metric in row["exact"]))
        lines = [[row["name"], *(_estimate(row["exact"].get(name)) for name in names)] for row in rows]
        counts = f"{report['queries']:,} queries over {report['items']:,} items"
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"--report: rows that are none ({error!r}); expected the .json of siglip-jax rank") from error
    conclusion = [str(report["conclusion"]), ""] if report.get("conclusion") else []
    primary = f"The primary metric is {report['primary_metric']}."
    return [
        f"{report['protocol']}, {counts}; means with intervals of 95 %. {primary}",
        "",
        *conclusion,
        markdown.table(["", *names], lines),
    ]


def _estimate(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, Mapping):
        return f"{value:.4f}"
    if value.get("mean") is None:
        return "-"
    ends = [value.get(name) for name in ("low", "high")]
    interval = "" if None in ends else f" [{ends[0]:.4f}, {ends[1]:.4f}]"
    return f"{value['mean']:.4f}{interval}"
