"""ResNet-56 for CIFAR-10 (He et al. 2015, arXiv:1512.03385, §4.2) as a plain `nn.Module`: convolutions, no attention.

Three stages of nine blocks, 16, 32 and 64 channels, shortcuts without parameters (option A).
"""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad, relu

Batch = tuple[Tensor, Tensor]
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two 3 × 3 convolutions; where the width grows the shortcut skips every other pixel and is padded with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        if self.more:
            x = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more // 2))
        return relu(y + x)


class ResNet(nn.Module):
    """Images [batch, 3, 32, 32] to logits [batch, 10]; 6·blocks + 2 layers."""

    def __init__(self, blocks: int = 9, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages = []
        for stage in range(3):
            outputs = width * 2**stage
            inputs = width if stage == 0 else outputs // 2
            made = [Block(inputs if i == 0 else outputs, outputs, 2 if stage and i == 0 else 1) for i in range(blocks)]
            stages.append(nn.Sequential(*made))
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(4 * width, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(relu(self.bn1(self.conv1(x))))))
        logits: Tensor = self.linear(avg_pool2d(x, x.shape[-1]).flatten(1))
        return logits


def load_resnet56(folder: Path) -> ResNet:
    """The trained model, in evaluation mode."""
    stored = torch.load(folder / "resnet56-4bfd9763.th", map_location="cpu", weights_only=True)["state_dict"]
    model = ResNet()
    model.load_state_dict({name.removeprefix("module."): value for name, value in stored.items()})
    return model.eval()


def images(folder: Path, wanted: Callable[[int], bool], batch_size: int) -> list[Batch]:
    """The test images of every class whose number is wanted, in an order that mixes the classes."""
    found: list[tuple[str, int, Tensor]] = []
    with tarfile.open(folder / "cifar10_jpeg_test.tar") as archive:
        for member in archive:
            name = Path(member.name)
            if name.suffix != ".jpg" or not wanted(int(name.stem)):
                continue
            stored = archive.extractfile(member)
            assert stored is not None
            pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(stored.read())).convert("RGB")))
            found.append((name.stem, CLASSES.index(name.parent.name), pixels))
    found.sort(key=lambda image: image[:2])
    pixels = torch.stack([image[2] for image in found]).float() / 255
    x = ((pixels - torch.tensor(MEAN)) / torch.tensor(DEVIATION)).permute(0, 3, 1, 2).contiguous()
    y = torch.tensor([image[1] for image in found])
    return list(zip(x.split(batch_size), y.split(batch_size), strict=True))
