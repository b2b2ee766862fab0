"""How an image becomes pixels and a title becomes token ids. No JAX is imported here: data workers load this folder.

`preprocessing` is the one value that is saved with every model. `resize_table` has one entry for each way to resize,
which is where to add one; `graph_resize` and `onnx_resize` have the same for the graphs of an export. `images` decodes
and cuts, `image_formats` lists what an export reads as well, `resize` has the filters (`simd`, `numba_jit`: how they
become machine code), `patches` the images of any aspect ratio, `tokenizer` the ids.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
