from .attribute_agreement import rank_catalogue as rank_catalogue
from .full_catalogue import rank_live as rank_live
from .logged_lists import rerank_lists as rerank_lists
from .measures import Measures as Measures
from .measures import Ranked as Ranked
from .relevance import AttributeRelevance as AttributeRelevance
