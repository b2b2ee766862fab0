from .store import EmbeddingStore as EmbeddingStore
from .store import read_store as read_store
from .store import write_store as write_store
