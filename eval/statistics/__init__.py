"""How sure a difference is: which queries depend on each other (`clusters`), how a mean varies with them (`variance`),
intervals and tests (`intervals`), of several comparisons at once (`simultaneous`), what they allow to conclude
(`significance`), what rules set before decide (`decision`), and where a difference comes from (`slices`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
