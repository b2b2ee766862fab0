"""Random changes to training examples that leave the product what it is (`augmentation`): of colours (`colour_jitter`)
and places (`pixel_kernels`) of an image, and of the parts of a title (`title_changes`). `row_random` draws the
numbers, the same for a row whatever the batch, the process, the worker or the thread.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
