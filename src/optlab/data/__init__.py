"""The CIFAR-10 data set: download, verification, splits, batches and augmentation."""
