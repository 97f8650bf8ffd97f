"""optlab: which optimizer should I use on CIFAR-10, by how much is it better, and can I prove it?"""

__version__ = "0.1.0"
