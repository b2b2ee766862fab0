from .batches import iterate_split as iterate_split
from .batches import make_loader as make_loader
from .settings import DataShare as DataShare
from .settings import Speed as Speed
