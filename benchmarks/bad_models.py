"""Models and classes that a training would stumble over, each by its own way, for `bad_input.py`."""

# A model's source, after `import torch` and `from torch import nn` → what is refused of it; None for what trains.
PLAIN = "nn.Flatten(), nn.Linear(3072, 10)"
NORM = "nn.Flatten(), nn.Linear(3072, 16), nn.BatchNorm1d(16), nn.Linear(16, 10)"
SUB = (
    "class Net(nn.Sequential):\n    def forward(self, images):\n        {}\ndef net():\n    return Net(" + PLAIN + ")\n"
)
MODELS: dict[str, tuple[str, str | None]] = {
    "plain": (f"def net():\n    return nn.Sequential({PLAIN})\n", None),
    "batch norm": (f"def net():\n    return nn.Sequential({NORM})\n", None),
    "batch norm, last batch of one": (
        f"def net():\n    return nn.Sequential({NORM})\n",
        "in a training step of 1 image it fails: ValueError: Expected more than 1 value per channel when training, got "
        "input size torch.Size([1, 16]): choose another training.batch_size, for 400 images leave 1 for the last step"),
    "tuple while it trains": (
        SUB.format("out = super().forward(images); return (out, out) if self.training else out"),
        "in a training step of 64 images it must return logits of shape (64, 10), not a tuple"),
    "tuple": (SUB.format("out = super().forward(images); return out, out"), "must return logits of shape (2, 10)"),
    "detached": (SUB.format("return super().forward(images).detach()"),
                 "in a training step of 64 images no gradient reaches its parameters"),
    "without gradients": (SUB.format("with torch.no_grad():\n            return super().forward(images)"),
                          "in a training step of 64 images no gradient reaches its parameters"),
    "NumPy in the middle": (SUB.format("return super().forward(torch.from_numpy(images.numpy())).numpy()"),
                            "must return logits"),
    "a batch size of its own": (SUB.format(
        "return super().forward(images.view(64, 3, 32, 32) if self.training else images)"),
                                "in a training step of 16 images it fails: RuntimeError: shape '[64, 3, 32, 32]'"),
    "fails while it trains": (SUB.format("assert not self.training; return super().forward(images)"),
                              "in a training step of 64 images it fails: AssertionError: AssertionError"),
    "fewer logits while it trains": (SUB.format("return super().forward(images)[:, : 9 if self.training else 10]"),
                                     "in a training step of 64 images it must return logits of shape (64, 10)"),
    "default dtype": (f"def net():\n    torch.set_default_dtype(torch.float64)\n    return nn.Sequential({PLAIN})\n",
                      "changes torch's default dtype from torch.float32 to torch.float64, for the whole process"),
    "default dtype by its import": (
        f"torch.set_default_dtype(torch.float64)\ndef net():\n    return nn.Sequential({PLAIN})\n",
        "changes torch's default dtype from torch.float32 to torch.float64, for the whole process"),
    "double": (f"def net():\n    return nn.Sequential({PLAIN}).double()\n", "must return logits"),
    "lazy": ("def net():\n    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))\n",
             "1.weight has no shape before the first batch"),
    "no parameters": ("class net(nn.Module):\n    def forward(self, images):\n        return images[:, 0, 0, :10]\n",
                      "it has no parameter that could be trained"),
    "frozen": (f"def net():\n    return nn.Sequential({PLAIN}).requires_grad_(False)\n",
               "it has no parameter that could be trained"),
    "threads by its import": (f"torch.set_num_threads(3)\ndef net():\n    return nn.Sequential({PLAIN})\n",
                              "changes torch's number of threads from 2 to 3, for the whole process: remove that"),
    "threads while it is built": (f"def net():\n    torch.set_num_threads(3)\n    return nn.Sequential({PLAIN})\n",
                                  "changes torch's number of threads from 2 to 3, for the whole process: remove that"),
    "threads in a step": (SUB.format("torch.set_num_threads(3); return super().forward(images)"),
                          "changes torch's number of threads from 2 to 3, for the whole process: remove that"),
    "gradients switched off": (SUB.format("torch.set_grad_enabled(False); return super().forward(images)"),
                               "no gradient reaches its parameters"),
}  # fmt: skip
# What params.yaml says besides, where it matters.
BATCH_SIZES = {"batch norm, last batch of one": 57}  # of which 400 images leave one
