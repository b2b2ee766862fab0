from .batches import iterate_split as iterate_split
from .batches import make_loader as make_loader
