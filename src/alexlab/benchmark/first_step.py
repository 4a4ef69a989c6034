"""A training script with a bare loop, run to its first optimizer step by the suite `startup`.

    python first_step.py MANIFEST FILE BATCH_SIZE

It uses what such scripts use: torchvision's image loading, transforms and AlexNet.
"""

import csv
import sys
import time

import torch
import torchvision
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets.folder import default_loader


class ManifestDataset(Dataset[tuple[torch.Tensor, int]]):
    """The training images of a manifest."""

    def __init__(self, manifest: str) -> None:
        with open(manifest, newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
        self.classes = sorted({row["class"] for row in rows})
        self.samples = [(row["path"], self.classes.index(row["class"])) for row in rows]
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(224),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]
        )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self.samples[index]
        return self.transform(default_loader(path)), label


def main(manifest: str, time_path: str, batch_size: str) -> None:
    """Train for one step and write the time of its end to a file."""
    dataset = ManifestDataset(manifest)
    net = torchvision.models.alexnet(num_classes=len(dataset.classes))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(dataset, batch_size=int(batch_size), shuffle=True, num_workers=2)
    for images, labels in loader:
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        break
    with open(time_path, "w") as file:
        file.write(str(time.time()))


if __name__ == "__main__":
    main(*sys.argv[1:])
