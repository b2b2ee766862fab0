from .index import Index as Index
from .index import Neighbours as Neighbours
from .index_builder import build_index as build_index
from .index_builder import load_index as load_index
from .recall import check_recall as check_recall
from .recall import measure_recall as measure_recall
from .tuning import tuned_index as tuned_index
