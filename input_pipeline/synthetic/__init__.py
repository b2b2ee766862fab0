"""A catalogue that is made up, for demonstrations and tests: products of a few kinds (`product_shapes`), photographed
(`product_images`) and named (`product_titles`), with the faults that real catalogues have (`synthetic_catalogue`).
"""
