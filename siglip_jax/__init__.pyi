from .errors import UserError as UserError
from .loading import load as load
from .model import Model as Model
from .preprocessing import Patches as Patches
from .preprocessing import Preprocessing as Preprocessing

__version__: str
