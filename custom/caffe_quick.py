"""The network of Caffe's CIFAR-10 quick tutorial, beginning as it does there.

Layers, their order and what the weights begin with are those of examples/cifar10/cifar10_quick_train_test.prototxt in
Caffe's repository (github.com/BVLC/caffe). Caffe subtracts the mean image of the training split; here it is the mean
of each channel, for a network sees no data before it is trained.
"""

import torch
from torch import Tensor, nn

CHANNEL_MEANS = (125.3, 123.0, 113.9)  # red, green and blue of the 50,000 training images, from 0 to 255


class Pixels(nn.Module):
    """From [0, 1] to what Caffe feeds: pixels from 0 to 255, less their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("means", torch.tensor(CHANNEL_MEANS).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return images * 255 - self.means


def quick() -> nn.Sequential:
    """cifar10_quick. Where a window reaches over the edge, Caffe's pooling takes what there is: `ceil_mode`."""
    layers: list[nn.Module] = [
        _begun(nn.Conv2d(3, 32, 5, padding=2), 0.0001), nn.MaxPool2d(3, 2, ceil_mode=True), nn.ReLU(),
        _begun(nn.Conv2d(32, 32, 5, padding=2), 0.01), nn.ReLU(), nn.AvgPool2d(3, 2, ceil_mode=True),
        _begun(nn.Conv2d(32, 64, 5, padding=2), 0.01), nn.ReLU(), nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.Flatten(), _begun(nn.Linear(64 * 4 * 4, 64), 0.1), _begun(nn.Linear(64, 10), 0.1),
    ]  # fmt: skip
    return nn.Sequential(Pixels(), *layers)


def _begun(layer: nn.Conv2d | nn.Linear, deviation: float) -> nn.Module:
    """The layer with weights from a normal distribution, and without biases to begin with."""
    assert layer.bias is not None
    nn.init.normal_(layer.weight, std=deviation)
    nn.init.zeros_(layer.bias)
    return layer
