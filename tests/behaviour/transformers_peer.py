"""Run by the Python of a transformers installation: embeds titles and images as its users do, and writes its folders.

    python transformers_peer.py embed|make JOB.json

It imports nothing of this project. Works from transformers 4.40 to 5.
"""

import json
import pathlib
import sys
import warnings

import numpy as np
import PIL.Image
import torch
import transformers

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()


def embed(job):
    """{folder: .npz of image and text embeddings}, and what was said, one line a folder."""
    said = {}
    for folder in job["folders"]:
        try:
            found, said[folder] = embeddings(pathlib.Path(folder), job["titles"], job["images"])
            np.savez(pathlib.Path(job["output"]) / f"{pathlib.Path(folder).name}.npz", **found)
        except Exception as error:
            said[folder] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    print(json.dumps({"version": transformers.__version__, "said": said}))


def embeddings(folder, titles, images):
    model = transformers.AutoModel.from_pretrained(folder).float().eval()
    said = ""
    try:
        processor = transformers.AutoProcessor.from_pretrained(folder)
        tokenizer, image_processor = processor.tokenizer, processor.image_processor
    except (TypeError, ValueError) as error:
        said = f"AutoProcessor: {type(error).__name__}"
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        image_processor = transformers.AutoImageProcessor.from_pretrained(folder)
        processor = None
    length = model.config.text_config.max_position_embeddings
    options = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
    text = processor(text=titles, **options) if processor else tokenizer(titles, **options)
    more = {}
    if getattr(image_processor, "max_num_patches", None):  # Siglip2Processor goes by 256 of 16 pixels
        more = {name: getattr(image_processor, name) for name in ("max_num_patches", "patch_size")}
    pictures = [PIL.Image.open(path) for path in images]
    if processor:
        pixels = processor(images=pictures, return_tensors="pt", **more)
    else:
        pixels = image_processor(pictures, return_tensors="pt")
    with torch.no_grad():
        found = {"image": unit(model.get_image_features(**pixels)), "text": unit(model.get_text_features(**text))}
    return found | {"ids": text["input_ids"].numpy()}, f"{said} {type(tokenizer).__name__}".strip()


def unit(z):
    z = z if torch.is_tensor(z) else z.pooler_output
    return torch.nn.functional.normalize(z, dim=-1).numpy()


def make(job):
    """A folder of random weights for each tokenizer file, as `save_pretrained` writes it."""
    torch.manual_seed(0)
    made = {}
    for name, each in job["models"].items():
        try:
            made[name] = make_one(pathlib.Path(job["output"]) / name, **each)
        except Exception as error:
            made[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    print(json.dumps({"version": transformers.__version__, "said": made}))


def make_one(folder, *, kind, tokenizer, tokenizer_class, length, vocab_size, options):
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**size, "vocab_size": vocab_size, "max_position_embeddings": length, "projection_size": 16}
    naflex = kind == "siglip2"
    vision = {**size, "patch_size": 4, **({"num_patches": 16} if naflex else {"image_size": 16})}
    names = ("Siglip2Config", "Siglip2Model") if naflex else ("SiglipConfig", "SiglipModel")
    config_class, model_class = (getattr(transformers, each) for each in names)
    model = model_class(config_class(text_config=text, vision_config=vision)).eval()
    with torch.no_grad():  # so that titles and images differ by more than rounding
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    if naflex:
        image_processor = transformers.Siglip2ImageProcessor(patch_size=4, max_num_patches=12)
    else:
        resample = 3 if tokenizer_class == "SiglipTokenizer" else 2
        image_processor = transformers.SiglipImageProcessor(size={"height": 16, "width": 16}, resample=resample)
    image_processor.save_pretrained(folder)
    # Before 5, what reads a tokenizer.json has a name of its own.
    class_ = getattr(transformers, f"{tokenizer_class}Fast", None) or getattr(transformers, tokenizer_class)
    written = class_.from_pretrained(tokenizer, **options)
    written.save_pretrained(folder)
    return type(written).__name__


if __name__ == "__main__":
    {"embed": embed, "make": make}[sys.argv[1]](json.loads(pathlib.Path(sys.argv[2]).read_text()))
