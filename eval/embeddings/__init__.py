"""Vectors of items on disk and in memory: the store (`store`, written shard by shard by `sharded_writer`), files that
somebody brings (`embedding_files`), both left on the disk (`stored_vectors`, by way of `mapped_files`), smaller vectors
(`reduction`), cosines (`vectors`), and other people's image networks (`encoders`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
