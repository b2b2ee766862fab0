"""Reading every item for the best of a query: `scan` holds the rows and picks the way, `kernels` are its loops,
`on_device` does it on an accelerator, `rescoring` gives candidates the scores that do not depend on the way.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
