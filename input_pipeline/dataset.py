"""Datasets of catalogue items: building (`input_pipeline.building`) and reading (`input_pipeline.reading`)."""

from input_pipeline.building import build_dataset
from input_pipeline.catalogue import read_catalogue
from input_pipeline.reading import Split, attributes, dataset_fingerprint, has_split, open_split

__all__ = ["Split", "attributes", "build_dataset", "dataset_fingerprint", "has_split", "open_split", "read_catalogue"]
