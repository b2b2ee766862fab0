"""Interaction logs: who was shown which items for which query item, and what they did.

`log` reads them into a `database`, from `log_files` of the `log_format` with their `log_columns` and `log_times`;
`queries` is what was asked, with gains; `live_items` is which items could have been shown at a time.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
