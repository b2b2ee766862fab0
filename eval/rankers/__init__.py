"""What is compared: anything that scores items for query items (`ranker`). Vectors are one kind; `baselines` and
`item_to_item` need none.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
