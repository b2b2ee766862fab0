from .item import Catalogue as Catalogue
from .item import Item as Item
from .open_catalogue import read_catalogue as read_catalogue
