"""A dataset read back, without the code that builds it: rows and splits (`reader`), all rows as one table
(`item_table`), and the rows that the build left out (`problem_rows`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
