"""What is asked, of whom, and what counts as right. Each protocol names itself, and no table has rows of two."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
