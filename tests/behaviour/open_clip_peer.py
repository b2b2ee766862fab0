"""Runs where open_clip, timm and sentence-transformers are, without this library: see test_open_clip.py.

python open_clip_peer.py make FOLDER        makes the golden folder, from transformers.npz beside it
python open_clip_peer.py embed JOB.json     embeds titles and images with folders of ours
"""

import importlib
import importlib.util
import io
import json
import os
import pathlib
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import PIL.Image
import torch

TITLES = ["red dress", "Men's Black Running-Shoe!!!", "word " * 40, "blue jeans slim", "blue_jeans slim"]


def unit(x):
    x = x.detach().double().numpy()
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def opened(folder):
    import open_clip

    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    return model.eval(), transform, open_clip.get_tokenizer(f"local-dir:{folder}")


def embed_open_clip(folder, images, titles):
    model, transform, tokenizer = opened(folder)
    with torch.no_grad():
        pixels = torch.stack([transform(image) for image in images])
        image, text = unit(model.encode_image(pixels)), unit(model.encode_text(tokenizer(titles)))
    return {"image": image, "text": text, "t": model.logit_scale.detach(), "b": model.logit_bias.detach()}


def embed_sentence_transformers(folder, images, titles):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", processor_kwargs={"backend": "pil"})
    return {"image": model.encode(images), "text": model.encode(titles)}


def embed_transformers(folder, images, titles):
    """By AutoModel, and what the two pipelines answer; the first pads titles to 64, whatever the model has."""
    import transformers

    model = transformers.AutoModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    by_pil = {"use_fast": False} if transformers.__version__.startswith("4") else {"backend": "pil"}
    processor = transformers.AutoImageProcessor.from_pretrained(folder, **by_pil)
    length = model.config.text_config.max_position_embeddings
    padded = {"padding": "max_length", "truncation": True, "max_length": length}
    ids = tokenizer(titles, return_tensors="pt", **padded)
    assert list(ids) == ["input_ids"]
    with torch.no_grad():
        found = model(**ids, **processor(images=images, return_tensors="pt"))
    parts = {"model": model, "tokenizer": tokenizer, "image_processor": processor}
    zero_shot = transformers.pipeline("zero-shot-image-classification", **parts)
    answers = zero_shot(images[0], candidate_labels=titles[:3], hypothesis_template="{}")
    scores = {each["label"]: each["score"] for each in answers}
    tower = transformers.SiglipVisionModel.from_pretrained(folder)
    extract = transformers.pipeline("image-feature-extraction", model=tower, image_processor=processor, pool=True)
    return {
        "image": found.image_embeds.numpy(),
        "text": found.text_embeds.numpy(),
        "zero-shot scores": [scores[title] for title in titles[:3]],
        "image features": unit(torch.tensor(np.concatenate([extract(image) for image in images]))),
    }


EMBED = {
    "open_clip": ("open_clip", embed_open_clip),
    "sentence_transformers": ("sentence_transformers", embed_sentence_transformers),
    "huggingface": ("transformers", embed_transformers),
}


def embed(job):
    """FOLDER.npz of each folder whose library is installed; prints {kind of folder: the library and its version}."""
    images, versions = [PIL.Image.open(path) for path in job["images"]], {}
    for folder, kind in job["folders"].items():
        name, embed_with = EMBED[kind]
        if importlib.util.find_spec(name) is None:
            continue
        versions[kind] = f"{name} {importlib.import_module(name).__version__}"
        np.savez(f"{folder}.npz", **embed_with(folder, images, job["titles"]))
    print(json.dumps(versions))


def make(folder):
    """A tiny model of open_clip's own code: image tower with the exact GELU, titles by tanh, T5's tokenizer."""
    import open_clip
    import safetensors.torch
    from transformers import T5TokenizerFast

    with np.load(folder.parent / "transformers.npz") as stored:
        spiece, picture = stored["spiece"].tobytes(), stored["file/plain.png"].tobytes()
        wide = stored["file/exif.jpg"].tobytes()
    folder.mkdir()
    (folder / "spiece.model").write_bytes(spiece)
    tokenizer = T5TokenizerFast.from_pretrained(folder, extra_ids=0)
    tokenizer.pad_token_id = tokenizer.eos_token_id = 1
    tokenizer.save_pretrained(folder)
    (folder / "spiece.model").unlink()
    small = {"img_size": 12, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, "mlp_ratio": 1.5}
    vision = {"image_size": 12, "timm_model_name": "vit_base_patch16_siglip_224", "timm_model_pretrained": False}
    text = {"context_length": 8, "vocab_size": 128, "hf_tokenizer_name": "none", "width": 12, "heads": 3, "layers": 1}
    config = {
        "model_cfg": {
            "embed_dim": 8,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": vision | {"timm_pool": "map", "timm_proj": "none", "timm_model_kwargs": small},
            "text_cfg": text
            | {"mlp_ratio": 1.5, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
            | {"tokenizer_kwargs": {"clean": "canonicalize"}, "norm_kwargs": {"eps": 1e-6}}
            | {"act_kwargs": {"approximate": "tanh"}},
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}")
    with torch.no_grad():
        for parameter in model.parameters():  # every bias and scale says something
            parameter.add_(torch.randn_like(parameter) * 0.5 if parameter.ndim else 0.25)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(state, folder / "open_clip_model.safetensors")
    model, transform, tokenize = opened(folder)
    images = [PIL.Image.open(io.BytesIO(data)) for data in (picture, wide)]
    with torch.no_grad():
        pixels, ids = torch.stack([transform(image) for image in images]), tokenize(TITLES)
        image, text = model.encode_image(pixels), model.encode_text(ids)
        logits = model.logit_scale.exp() * torch.tensor(unit(image) @ unit(text).T) + model.logit_bias
    np.savez_compressed(
        folder / "io.npz",
        titles=json.dumps(TITLES),
        pixels=pixels,
        ids=ids.int(),
        logits=logits.detach(),
        image=unit(image),
        text=unit(text),
        **{f"file/{k}": np.frombuffer(data, np.uint8) for k, data in enumerate((picture, wide))},
    )
    print(open_clip.__version__, sum(path.stat().st_size for path in folder.iterdir()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "make":
        make(pathlib.Path(sys.argv[2]))
    else:
        embed(json.loads(pathlib.Path(sys.argv[2]).read_text()))
