"""A catalogue becomes a dataset: `dataset_builder` is the whole of it. Each item is checked (`check_item`), what is
known of it staged on disk (`stage`, `facts`), so that a build goes on where it was stopped (`resume`); then rows are
divided (`split`), written (`records`), and what was left out is listed (`problems`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
