from .index_builder import Index as Index
from .index_builder import Neighbours as Neighbours
from .index_builder import build_index as build_index
from .index_builder import load_index as load_index
from .index_builder import measure_recall as measure_recall
