"""Executes examples of ``guide.rst`` one after the other, as the cells of a notebook: words name them, each with its way.

``training`` is the example to the letter; ``training=pickle`` has its model saved in the format that needs no example, which
newer MLflow must be asked for. An example that fails says so, and the next goes on from there. In place of FashionMNIST,
which would be downloaded, there is a synthetic data set of the same shape.
"""

# ruff: noqa: E402  Lightning is hidden before MLflow is imported
import ast
import functools
import itertools
import re
import sys
import textwrap
import uuid
from pathlib import Path
from types import ModuleType, SimpleNamespace

sys.modules["lightning"] = sys.modules["pytorch_lightning"] = None  # which takes seconds to import

import cloudpickle
import mlflow.pytorch
import numpy as np
import torch
import torchmetrics  # noqa: F401  before the stand-in is there, as it looks for torchvision
from torch.utils.data import Dataset

IMAGES = 64 * 101


class FashionMNIST(Dataset):
    """Images of noise, in ten classes that differ in their brightness."""

    def __init__(self, root, train, download, transform):
        draw = np.random.default_rng(0)
        self.targets = draw.integers(0, 10, IMAGES)
        self.data = draw.integers(0, 128, (IMAGES, 28, 28), dtype=np.uint8) + (12 * self.targets[:, None, None]).astype(
            np.uint8
        )
        self.transform = transform

    def __len__(self):
        return IMAGES

    def __getitem__(self, at):
        return self.transform(self.data[at]), int(self.targets[at])


class ToTensor:
    """An image as numbers from 0 to 1, with a channel."""

    def __call__(self, image):
        return torch.from_numpy(image).unsqueeze(0).float() / 255


def stand_in_for_torchvision():
    vision, datasets, transforms = (ModuleType(f"torchvision{part}") for part in ("", ".datasets", ".transforms"))
    datasets.FashionMNIST, transforms.ToTensor = FashionMNIST, ToTensor
    vision.datasets, vision.transforms = datasets, transforms
    sys.modules.update({module.__name__: module for module in (vision, datasets, transforms)})


def examples():
    text = Path(__file__).with_suffix(".rst").read_text()
    found = re.findall(r"^(.+)\n-+\n(?:.*\n)*?\.\. code-block:: python\n\n((?:    .*\n|\n)+)", text, re.MULTILINE)
    return {name: textwrap.dedent(source).strip() + "\n" for name, source in found}


def execute(name, source, namespace):
    """Execute it, and print what its last line is worth, as a notebook does."""
    path = Path(f"{name}.py").absolute()
    path.write_text(source)  # torch.jit.script reads the source of what it compiles
    tree = ast.parse(source)
    if isinstance(tree.body[-1], ast.Expr):
        tree.body[-1] = ast.Assign([ast.Name("_", ast.Store())], tree.body[-1].value)
    namespace["_"] = "executed"
    exec(compile(ast.fix_missing_locations(tree), path, "exec"), namespace)
    print(f"{name}: {namespace['_']}")


torch.manual_seed(0)
np.random.seed(0)
stand_in_for_torchvision()
numbers = itertools.count(1)  # a class is pickled under a UUID; a number makes the files of two executions equal
cloudpickle.cloudpickle.uuid = SimpleNamespace(uuid4=lambda: uuid.UUID(int=next(numbers)))
notebook = sys.modules["__main__"] = ModuleType("__main__")  # so that models are pickled as a script's own
log_model = mlflow.pytorch.log_model
for word in sys.argv[1:]:
    name, _, way = word.partition("=")
    told = {"serialization_format": way} if way else {}
    # MLflow finds requirements by loading the model in another process, which autologging does in other scripts.
    mlflow.pytorch.log_model = functools.partial(log_model, pip_requirements=[], **told)
    try:
        execute(name, examples()[name], vars(notebook))
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {error}")
