"""The training that `mlferry demo` runs: a small image classifier, logged through the SDK, without a network.

``python -m mlferry.demo CHECKPOINT`` trains on synthetic images in the shape of FashionMNIST. It saves a checkpoint as it
goes and continues from it, so the process may be killed at any moment and started again, as on a preempted node.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import mlferry

_CLASSES, _SIDE, _IMAGES = 10, 28, 2048
_EPOCHS, _BATCH, _RATE = 6, 64, 0.003
_SAVE_EVERY = 10


def main() -> None:
    """Train, or train on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    train(parser.parse_args().checkpoint)


def train(checkpoint: Path) -> None:
    """One run: params, the loss of each step, the accuracy of each epoch, the trained weights."""
    torch = importlib.import_module("torch")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images, labels = _dataset(torch)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(_SIDE * _SIDE, 128), torch.nn.ReLU(), torch.nn.Linear(128, _CLASSES)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=_RATE, momentum=0.9)
    done = _restore(torch, checkpoint, model, optimizer)
    mlferry.set_experiment("mlferry-demo")
    with mlferry.start_run(run_name="fashion"):
        mlferry.log_params({"batch_size": _BATCH, "learning_rate": _RATE, "epochs": _EPOCHS, "images": _IMAGES})
        for step in range(done, _EPOCHS * _IMAGES // _BATCH):
            loss = _train_step(torch, model, optimizer, images, labels, step)
            mlferry.log_metrics({"loss": loss, "learning_rate": _RATE}, step=step)
            if (step + 1) % (_IMAGES // _BATCH) == 0:
                mlferry.log_metric("accuracy", _accuracy(torch, model, images, labels), step=step)
            if (step + 1) % _SAVE_EVERY == 0:
                _save(torch, checkpoint, model, optimizer, step + 1)
        mlferry.set_tag("framework", f"torch {torch.__version__}")
        _save(torch, checkpoint, model, optimizer, _EPOCHS * _IMAGES // _BATCH)
        mlferry.log_artifact(str(checkpoint), "model")


def _dataset(torch: Any) -> tuple[Any, Any]:
    """Images that can be learnt: each class is a pattern of its own under noise."""
    labels = torch.randint(0, _CLASSES, (_IMAGES,))
    patterns = torch.rand(_CLASSES, 1, _SIDE, _SIDE)
    images = patterns[labels] + 2.0 * torch.randn(_IMAGES, 1, _SIDE, _SIDE)
    return images, labels


def _train_step(torch: Any, model: Any, optimizer: Any, images: Any, labels: Any, step: int) -> float:
    at = step * _BATCH % _IMAGES
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(images[at : at + _BATCH]), labels[at : at + _BATCH])
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def _accuracy(torch: Any, model: Any, images: Any, labels: Any) -> float:
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def _restore(torch: Any, checkpoint: Path, model: Any, optimizer: Any) -> int:
    """The step to go on with: 0 without a checkpoint."""
    if not checkpoint.exists():
        return 0
    saved = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return int(saved["step"])


def _save(torch: Any, checkpoint: Path, model: Any, optimizer: Any, step: int) -> None:
    """Replace the checkpoint whole: a kill leaves the old one or the new one."""
    half = checkpoint.with_suffix(".tmp")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, half)
    half.rename(checkpoint)


if __name__ == "__main__":
    main()
