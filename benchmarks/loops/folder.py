"""A folder of pictures as diffusers' example of unconditional training reads it: opened, resized, cropped, mirrored, scaled, one by one."""

from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms


class Pictures(Dataset):
    """float [3, h, w] in -1 .. 1, made anew each time."""

    def __init__(self, folder: str, size: int) -> None:
        self.files = sorted(Path(folder).glob("*.png"))
        steps = [transforms.Resize(size), transforms.CenterCrop(size), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.change = transforms.Compose([*steps, transforms.Normalize([0.5], [0.5])])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Tensor:
        with Image.open(self.files[i]) as picture:
            return self.change(picture.convert("RGB"))
