"""siglip-jax models: the published checkpoints, the formats of files, and the check of one on a networked machine.

siglip-jax models
siglip-jax models --verify=google/siglip2-base-patch16-256
siglip-jax models --verify=google/siglip-base-patch16-224 --weights=webli_en_b16_224_63724782.npz
  --tokenizer=spiece.model
"""

from __future__ import annotations

import pathlib

from absl import flags

from siglip_jax.errors import UserError


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_enum(
        "format", "text", ["text", "markdown"], "markdown: the table of docs/guide/models.md.", flag_values=values
    )
    flags.DEFINE_string("verify", "", "Preset whose weights to load and compare.", flag_values=values)
    flags.DEFINE_string("weights", None, "Its Hugging Face folder or .npz; downloaded when absent.", flag_values=values)
    flags.DEFINE_string("tokenizer", None, "SentencePiece file, for an .npz.", flag_values=values)
    flags.DEFINE_string("image", None, "The picture to check with; downloaded when absent.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    if values.verify:
        _verify(values)
    elif values.weights or values.tokenizer or values.image:
        raise UserError("--weights, --tokenizer and --image go with --verify=NAME")
    else:
        markdown = values.format == "markdown"
        print(_table(markdown=markdown))
        if not markdown:
            print(f"\n{_formats()}")


def _table(*, markdown: bool) -> str:
    from siglip_jax.models.architecture import parameter_counts
    from siglip_jax.models.presets import PRESETS

    head = ("name", "pixels", "patch", "dim", "text", "vocabulary", "image M", "text M", "total M", "big_vision file")
    rows: list[tuple[str, ...]] = [head]
    for preset in PRESETS.values():
        arch = preset.architecture
        counts = parameter_counts(arch)
        pixels = "any" if arch.naflex else str(arch.image_size[0])
        sizes = (pixels, arch.patch_size, arch.embedding_dim, arch.text_length, arch.vocab_size)
        millions = (f"{counts[key] / 1e6:.1f}" for key in ("image", "text", "total"))
        rows.append((preset.name, *map(str, sizes), *millions, preset.big_vision.removeprefix("gs://big_vision/")))
    if markdown:
        rows[1:] = [(f"`{row[0]}`", *row[1:-1], f"`{row[-1]}`") for row in rows[1:]]
        rule = ["---", *["---:"] * (len(head) - 2), "---"]
        return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], tuple(rule), *rows[1:]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    ends = (0, len(head) - 1)  # names to the left, numbers to the right
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in ends else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _formats() -> str:
    from siglip_jax.weights.formats import FORMATS

    width = max(map(len, FORMATS))
    ways = {True: "read         ", False: "read, written"}
    return "\n".join(
        f"{name:{width}}  {ways[each.write is None]}  {each.description}" for name, each in FORMATS.items()
    )


def _verify(values: flags.FlagValues) -> None:
    from siglip_jax.loading import load
    from siglip_jax.models.architecture import parameter_counts
    from siglip_jax.models.presets import PRESETS
    from siglip_jax.verify import fetch_image, verify

    preset = PRESETS.get(values.verify)
    if preset is None:
        raise UserError(f"--verify={values.verify}: no such preset; siglip-jax models lists them")
    model = load(values.verify, weights=values.weights, tokenizer=values.tokenizer)
    counts = parameter_counts(model.architecture)
    print(f"{preset.name}: {counts['total'] / 1e6:.1f} M parameters, every one there, of the right shape and finite")
    if values.image:
        try:
            picture = pathlib.Path(values.image).read_bytes()
        except OSError as error:
            raise UserError(f"--image={values.image}: {error.strerror}; pass a JPEG or PNG") from error
    else:
        picture = fetch_image()
    for line in verify(model, preset, picture=picture):
        print(line)
    print(f"{preset.name}: verified")
