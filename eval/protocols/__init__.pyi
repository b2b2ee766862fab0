from .attribute_agreement import AttributeAgreement as AttributeAgreement
from .attribute_agreement import rank_catalogue as rank_catalogue
from .full_catalogue import FullCatalogue as FullCatalogue
from .logged_lists import LoggedLists as LoggedLists
from .measures import Measures as Measures
from .measures import Ranked as Ranked
from .protocol import RankingProtocol as RankingProtocol
from .relevance import AttributeRelevance as AttributeRelevance
