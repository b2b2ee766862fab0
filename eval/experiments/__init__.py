"""Online experiments: variants compared over users, and how many users a comparison needs.

Figures: `moments` of users, `effects` of a variant, `sample_ratio`, `power`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
