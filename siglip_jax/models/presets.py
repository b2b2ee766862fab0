"""The published SigLIP checkpoints by their Hugging Face names: architecture, preprocessing, where the weights are.

Sizes and preprocessing follow the two demos of big_vision (configs/proj/image_text/SigLIP_demo.ipynb and
SigLIP2_demo.ipynb) and the processors that the Hugging Face repositories carry.
"""

from __future__ import annotations

import dataclasses

from siglip_jax.models.architecture import Architecture, TowerSize
from siglip_jax.preprocessing import Preprocessing

SIZES = {
    "base": TowerSize(width=768, depth=12, mlp_dim=3072, heads=12),
    "large": TowerSize(width=1024, depth=24, mlp_dim=4096, heads=16),
    "so400m": TowerSize(width=1152, depth=27, mlp_dim=4304, heads=16),
    "giant-opt": TowerSize(width=1536, depth=40, mlp_dim=6144, heads=16),
}
NAFLEX_PATCHES = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """What the checkpoints of one generation share.

    Attributes:
      title: as people call it.
      vocab_size: rows of the token embedding.
      tokenizer: where its SentencePiece file is published.
      tokenizer_sha256: of that file, or None where it is not known.
      pad_id: of titles.
      lowercase, punctuation, resize: what the Hugging Face processor does.
      text_head: see `Architecture`.
    """

    title: str
    vocab_size: int
    tokenizer: str
    tokenizer_sha256: str | None
    pad_id: int
    lowercase: str
    punctuation: str
    resize: str
    text_head: bool = True


SIGLIP = Family(
    title="SigLIP",
    vocab_size=32_000,
    tokenizer="gs://t5-data/vocabs/cc_en.32000/sentencepiece.model",
    tokenizer_sha256="1e5036bed065526c3c212dfbe288752391797c4bb1a284aa18c9a0b23fcaf8ec",
    pad_id=1,
    lowercase="unicode",
    punctuation="delete",
    resize="bicubic",
)
SIGLIP_I18N = dataclasses.replace(
    SIGLIP,
    title="SigLIP i18n",
    vocab_size=250_000,
    tokenizer="gs://t5-data/vocabs/mc4.250000.100extra/sentencepiece.model",
    tokenizer_sha256=None,
    text_head=False,
)
SIGLIP2 = Family(
    title="SigLIP 2",
    vocab_size=256_000,
    tokenizer="gs://big_vision/gemma_tokenizer.model",
    tokenizer_sha256="61a7b147390c64585d6c3543dd6fc636906c9af3865a5548f27f31aee1d4c8e2",
    pad_id=0,
    lowercase="unicode",
    punctuation="keep",
    resize="bilinear",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """One published checkpoint.

    Attributes:
      name: of the Hugging Face repository.
      family: see `Family`.
      architecture: see `Architecture`.
      big_vision: the .npz of the original weights.
    """

    name: str
    family: Family
    architecture: Architecture
    big_vision: str

    def preprocessing(self, convention: str, *, tokenizer: bytes | None = None) -> Preprocessing:
        """How pictures and titles become arrays.

        Args:
          convention: "big_vision", which the weights were trained with, or "huggingface", what their processor does.
          tokenizer: serialised, or None to encode pictures alone.
        """
        if convention not in ("big_vision", "huggingface"):
            raise ValueError(f"convention={convention!r}; expected big_vision or huggingface")
        trained = convention == "big_vision"
        naflex = self.architecture.naflex
        resize = "naflex" if naflex else "bilinear_no_antialias" if trained else self.family.resize
        return Preprocessing(
            image_size=self.architecture.image_size,
            resize=resize,
            tokenizer=tokenizer,
            text_length=self.architecture.text_length,
            pad_id=self.family.pad_id,
            lowercase="ascii" if trained else self.family.lowercase,
            punctuation="keep" if trained else self.family.punctuation,
            patch_size=self.architecture.patch_size if naflex else 0,
            max_patches=NAFLEX_PATCHES if naflex else 0,
        )


def _preset(family: Family, size: str, patch: int, pixels: int | str, file: str, *, text_length: int = 64) -> Preset:
    generation = "siglip2" if family is SIGLIP2 else "siglip"
    suffix = {"base": "-multilingual", "so400m": "-i18n"}[size] if family is SIGLIP_I18N else ""
    side = 256 if isinstance(pixels, str) else pixels  # the grid of NaFlex's position embedding is 16 x 16
    architecture = Architecture(
        image_size=(side, side),
        patch_size=patch,
        image=SIZES[size],
        text=SIZES["so400m" if size == "giant-opt" else size],
        vocab_size=family.vocab_size,
        text_length=text_length,
        text_head=family.text_head,
        naflex=pixels == "naflex",
    )
    return Preset(
        name=f"google/{generation}-{size}-patch{patch}-{pixels}{suffix}",
        family=family,
        architecture=architecture,
        big_vision=f"gs://big_vision/{generation}/{file}.npz",
    )


def _siglip2(size: str, patch: int, *resolutions: int | str) -> list[Preset]:
    short = {"base": "b", "large": "l", "giant-opt": "g-opt"}.get(size, size)
    return [_preset(SIGLIP2, size, patch, pixels, f"siglip2_{short}{patch}_{pixels}") for pixels in resolutions]


_ALL = (
    _preset(SIGLIP, "base", 16, 224, "webli_en_b16_224_63724782"),
    _preset(SIGLIP, "base", 16, 256, "webli_en_b16_256_60500360"),
    _preset(SIGLIP, "base", 16, 384, "webli_en_b16_384_68578854"),
    _preset(SIGLIP, "base", 16, 512, "webli_en_b16_512_68580893"),
    _preset(SIGLIP, "large", 16, 256, "webli_en_l16_256_60552751"),
    _preset(SIGLIP, "large", 16, 384, "webli_en_l16_384_63634585"),
    _preset(SIGLIP, "so400m", 14, 224, "webli_en_so400m_224_57633886", text_length=16),
    _preset(SIGLIP, "so400m", 14, 384, "webli_en_so400m_384_58765454"),
    _preset(SIGLIP_I18N, "base", 16, 256, "webli_i18n_b16_256_66117334"),
    _preset(SIGLIP_I18N, "so400m", 16, 256, "webli_i18n_so400m_16_256_78061115"),
    *_siglip2("base", 32, 256),
    *_siglip2("base", 16, 224, 256, 384, 512, "naflex"),
    *_siglip2("large", 16, 256, 384, 512),
    *_siglip2("so400m", 14, 224, 384),
    *_siglip2("so400m", 16, 256, 384, 512, "naflex"),
    *_siglip2("giant-opt", 16, 256, 384),
)
PRESETS = {preset.name: preset for preset in _ALL}
