"""Contrastive losses over a global batch, exact, without the whole matrix of logits.

`sigmoid` and `softmax` are the two losses. Both walk over the matrix of logits in `tiles`, while the rows of every
device meet those of all others (`exchange`, in the `ring_order` of the chips). `reference` is what both are tested
against: the formulas of the papers, over the whole matrix.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
