from .rescoring import best_rescored as best_rescored
from .rescoring import exact_best as exact_best
from .rescoring import rescore as rescore
from .scan import Scan as Scan
