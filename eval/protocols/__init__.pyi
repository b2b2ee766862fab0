from .attribute_agreement import rank_catalogue as rank_catalogue
from .full_catalogue import Measures as Measures
from .full_catalogue import Ranked as Ranked
from .full_catalogue import rank_live as rank_live
from .full_catalogue import rerank_lists as rerank_lists
from .relevance import AttributeRelevance as AttributeRelevance
