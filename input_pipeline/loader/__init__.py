"""Batches for training and for passes over a split.

`batches` is the face of it and the only importer of Grain. `batch_order` says which rows a step has (by `row_order`),
`examples` reads and decodes them where they lie in the batch (`buffers` gives that memory out again), `item_vectors`
stand in the place of pictures or beside them, `bad_rows` replaces what cannot be read and counts it, `evaluation_pass`
reads every row once and replaces none, `workers` are the processes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
