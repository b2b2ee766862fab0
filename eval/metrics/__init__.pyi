from .metric_names import parse_metric as parse_metric
from .metric_names import report_name as report_name
from .metric_table import Metric as Metric
from .ranking import QueryMetrics as QueryMetrics
from .ranking import docid_ranks as docid_ranks
from .ranking import has_ties as has_ties
from .ranking import mean_metrics as mean_metrics
from .ranking import rank_metrics as rank_metrics
