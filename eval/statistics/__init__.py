"""How sure a difference is: intervals and tests (`bootstrap`, which draws by `resampling`), what they allow to conclude
(`significance`), and where it comes from (`slices`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
