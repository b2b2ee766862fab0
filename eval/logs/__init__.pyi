from .live_items import Live as Live
from .log import Log as Log
from .log import read_log as read_log
from .log_format import LogFormat as LogFormat
from .queries import Queries as Queries
from .queries import known_items as known_items
from .queries import read_queries as read_queries
from .queries import repeated_queries as repeated_queries
