"""Contrastive losses over a global batch, exact, without the whole matrix of logits.

`sigmoid` and `softmax` are the two losses. Each says what to do with one tile of logits, in pure functions. Both share
the walk over all tiles: on one device (`tiles`), and over the rows of all devices (`exchange`, in the `ring_order` of
the chips). `reference` is what both are tested against: the formulas of the papers, over the whole matrix.

Beside them: `teacher`, terms that pull embeddings to those of another encoder, and `matryoshka`, a loss of prefixes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
