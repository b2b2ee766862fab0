"""The ranking report for people: one self-contained page (`report_page`), the same in words (`report_text`), charts and
small images (`charts`, `thumbnails`), queries to look at (`example_queries`), and TREC files (`trec`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
