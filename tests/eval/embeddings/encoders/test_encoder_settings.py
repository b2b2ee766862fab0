"""What an encoder is fed, for every resize that an export may have."""

import json
import types

import pytest

from eval.embeddings.encoders.savedmodel_encoder import SavedModelEncoder
from siglip_jax.export import savedmodel
from siglip_jax.preprocessing import Preprocessing
from siglip_jax.preprocessing.images import FILLS
from siglip_jax.preprocessing.resize_table import RESIZES

FIELDS = [
    {"resize": name, "fill": fill}
    for name, resize in RESIZES.items()
    if resize.in_graph is not None and not resize.uses_patches
    for fill in (FILLS if resize.uses_fill else ("",))
]


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: " ".join(fields.values()))
def test_our_own_exports_keep_their_preprocessing(tmp_path, monkeypatch, fields):
    ours = Preprocessing(image_size=(16, 24), value_range=(0.0, 1.0), text_length=16, **fields)
    (tmp_path / savedmodel.MANIFEST).write_text(json.dumps({"preprocessing": ours.to_json()}))
    (tmp_path / "saved_model.pb").write_bytes(b"graph")
    signature = types.SimpleNamespace(loaded=None, outputs=["embedding"], shape=[None, 16, 24, 3])
    monkeypatch.setattr(savedmodel, "load_pixels_signature", lambda folder: signature)
    found = SavedModelEncoder(str(tmp_path)).preprocessing
    for name in ("image_size", "resize", "fill", "value_range"):
        assert getattr(found, name) == getattr(ours, name)
