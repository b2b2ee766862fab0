"""What should be looked at before anyone trains on a dataset or believes an evaluation: what it holds (`contents`), the
same as a page (`audit_page`), and items of an evaluation that training has seen (`leakage`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
