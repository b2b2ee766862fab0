from .ranker import Ranker as Ranker
from .ranker import VectorRanker as VectorRanker
