from .ranker import Row as Row
from .ranker import VectorRow as VectorRow
