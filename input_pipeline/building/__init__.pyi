from .dataset_builder import build_dataset as build_dataset
from .split import SplitRule as SplitRule
