from .reader import Split as Split
from .reader import attributes as attributes
from .reader import dataset_fingerprint as dataset_fingerprint
from .reader import has_split as has_split
from .reader import open_split as open_split
