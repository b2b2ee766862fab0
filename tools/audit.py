"""siglip-jax audit: what a dataset holds and what to look at before training, as a page with pictures and as JSON.

Duplicates and pictures that look alike, repeated titles, sizes and aspect ratios, what was left out and why, scripts
and lengths of titles, attributes; works on every dataset of `siglip-jax data`.

  siglip-jax audit --dataset=data/shop --output=runs/shop.html
  siglip-jax audit --dataset=data/shop --output=runs/shop.html --tokenizer=spiece.model --text_length=64
"""

from __future__ import annotations

import pathlib

from absl import flags

from siglip_jax.errors import UserError
from tools import common_flags


def define_flags(values: flags.FlagValues) -> None:
    common_flags.define_dataset(values)
    common_flags.define_output(values, "The page, an .html file; the same as .json is written beside it.")
    flags.DEFINE_integer(
        "near",
        20,
        "Bits of 256 in which pictures that look alike may differ; -1 looks for equal files alone.",
        lower_bound=-1,
        upper_bound=32,
        flag_values=values,
    )
    flags.DEFINE_string(
        "tokenizer", "", "SentencePiece .model file or tokenizer.json, to count tokens.", flag_values=values
    )
    flags.DEFINE_integer(
        "text_length", 64, "Tokens a model takes; with --tokenizer.", lower_bound=1, flag_values=values
    )


def main(values: flags.FlagValues) -> None:
    from input_pipeline.audit import audit_dataset
    from input_pipeline.audit.audit_page import findings, headline
    from input_pipeline.audit.contents import Tokens
    from siglip_jax.preprocessing import open_tokenizer

    tokens = None
    if values.tokenizer:
        try:
            serialised = pathlib.Path(values.tokenizer).read_bytes()
        except OSError as error:
            raise UserError(f"--tokenizer={values.tokenizer}: {error.strerror}; expected a .model or .json") from error
        tokens = Tokens(encode=open_tokenizer(serialised).encode, text_length=values.text_length)
    near = None if values.near < 0 else values.near
    audit = audit_dataset(values.dataset, values.output, near=near, tokens=tokens)
    print(headline(audit))
    for kind, sentence in findings(audit):
        print(f"{kind}: {sentence}")
    print(f"audit: {values.output}")
