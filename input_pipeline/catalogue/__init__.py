"""A catalogue as shops keep it, read row by row.

`item` says what every catalogue gives: `Item`s with titles, images and attributes. `table_catalogue` (with `tables`),
`webdataset`, `tfds` and `fashion` are the formats, `filter` keeps the rows with given values, and `open_catalogue`
finds out which of them a path is.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
