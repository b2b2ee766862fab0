from .sigmoid import sigmoid_loss as sigmoid_loss
from .softmax import softmax_loss as softmax_loss
