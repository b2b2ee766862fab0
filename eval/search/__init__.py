"""Nearest neighbours by cosine. `index` is the interface, `exact_index`, `reduced_index` and `scann_index` are the
backends, `index_builder` builds and loads each, `recall` says what an approximate one misses, `tuning` picks the
fastest that misses little, `answers` what a search answers.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
