"""What it costs to bring a checkpoint into the spool: written there by `open_artifact`, or saved and then copied by
`log_artifact`, against `torch.save` alone and against a plain copy.

    python benchmarks/artifacts.py [--gib N] [--rounds N] [--json FILE] [--directory DIR]

Contestants, in turn in each round: ``torch.save`` to a plain file, without fsync (``ratio`` is the time of the others to
this, round by round); the same with fsync, which is the least that a checkpoint must take that survives a power cut;
``open_artifact``: torch.save straight into the spool, hashed and fsynced; ``log_artifact``: torch.save to a file, then the
copy into the spool, hashed and fsynced; ``copy``: reading the saved file and writing it again, with fsync, a MiB at a time;
``again``: open_artifact of what is in the spool already, which stores nothing. On btrfs (a loop device, where this may make
one) log_artifact shares the file's extents instead of copying them. ``disk``: bytes used afterwards, to those of the file.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "spool"), str(ROOT / "sdk"), str(ROOT)]
os.environ["MLFERRY_QUIET"] = "1"

from benchmarks import results  # noqa: E402

import mlferry  # noqa: E402

TENSOR_BYTES = 64 << 20
Model = dict[str, torch.Tensor]


def model_of(gib: float) -> Model:
    """Tensors of 64 MiB, no hole and no repetition in them."""
    return {f"layer {number}": torch.rand(TENSOR_BYTES // 4) for number in range(int(gib * (1 << 30)) // TENSOR_BYTES)}


def saved(model: Model, path: Path, *, durable: bool) -> None:
    with path.open("wb") as file:
        torch.save(model, file)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def opened(model: Model) -> None:
    with mlferry.open_artifact("model.pt") as file:
        torch.save(model, file)


def logged(model: Model, path: Path) -> None:
    saved(model, path, durable=False)
    mlferry.log_artifact(path)


def copied(source: Path, target: Path) -> None:
    with source.open("rb") as original, target.open("wb", buffering=0) as copy:
        while chunk := original.read(1 << 20):
            copy.write(chunk)
        os.fsync(copy.fileno())


def seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def settle(directory: Path) -> None:
    """Everything is on the disk and nothing in the page cache, whatever was before: on a virtual machine a cache that grows
    takes memory that has to be brought first, and that would fall on whoever comes last."""
    os.sync()
    for path in (path for path in directory.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def used(directory: Path) -> int:
    """Bytes of the file system that are taken."""
    os.sync()
    if shutil.which("btrfs") and "btrfs" in _kind(directory):
        subprocess.run(["btrfs", "filesystem", "sync", str(directory)], check=True, capture_output=True)
    space = os.statvfs(directory)
    return (space.f_blocks - space.f_bfree) * space.f_frsize


def _kind(directory: Path) -> str:
    return subprocess.run(["stat", "-f", "-c", "%T", str(directory)], capture_output=True, text=True, check=True).stdout


def contestants(model: Model, directory: Path) -> dict[str, Callable[[], object]]:
    plain, source = directory / "plain.pt", directory / "model.pt"
    return {
        "torch.save": lambda: saved(model, plain, durable=False),
        "torch.save and fsync": lambda: saved(model, plain, durable=True),
        "open_artifact": lambda: opened(model),
        "open_artifact again": lambda: opened(model),
        "torch.save and log_artifact": lambda: logged(model, source),
        "copy": lambda: copied(source, directory / "copy.pt"),
    }


def one_round(model: Model, directory: Path) -> dict[str, tuple[float, float]]:
    """Seconds, and what was taken of the disk to the size of the file, of each contestant. It begins with nothing there."""
    os.environ["MLFERRY_DIR"] = str(directory / "spool")
    found = {}
    with mlferry.start_run() as run:
        for name, call in contestants(model, directory).items():
            before = used(directory)
            if name != "copy":  # whose source was just saved
                settle(directory)
            took = seconds(call)
            found[name] = took, (used(directory) - before) / size_of(model)
            for left in (directory / "plain.pt", directory / "copy.pt"):
                left.unlink(missing_ok=True)
            if name not in ("torch.save", "open_artifact"):  # the next one has to store it, and finds no less room
                shutil.rmtree(run.directory / "blobs", ignore_errors=True)
        source = directory / "model.pt"
        source.unlink()
    shutil.rmtree(directory / "spool")
    os.sync()
    return found


def size_of(model: Model) -> int:
    return len(model) * TENSOR_BYTES


def measure(model: Model, directory: Path, rounds: int) -> list[dict[str, Any]]:
    one_round(model, directory)
    taken = [one_round(model, directory) for _ in range(rounds)]
    return [row_of(name, taken, _kind(directory), size_of(model)) for name in taken[0]]


def row_of(way: str, taken: list[dict[str, tuple[float, float]]], kind: str, size: int) -> dict[str, Any]:
    numbers = {
        "gib": size / (1 << 30),
        **results.spread([of[way][0] for of in taken], "seconds"),
        **results.spread([of[way][0] / of["torch.save"][0] for of in taken], "ratio"),
        "disk": results.spread([of[way][1] for of in taken], "disk")["disk"],
    }
    file_system = kind.strip().replace("ext2/ext3", "ext4")
    named = {"way": way, "file_system": file_system, "name": f"{way}, {file_system}"}
    return {**named, **{key: round(number, 3) for key, number in numbers.items()}}


@contextmanager
def btrfs(directory: Path, gib: float) -> Iterator[Path]:
    """A btrfs on a loop device, with room for four files of the size."""
    image, mounted = directory / "btrfs.img", directory / "btrfs"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(int((4 * gib + 1) * (1 << 30)))
    subprocess.run(["mkfs.btrfs", "-q", str(image)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mounted)], check=True, capture_output=True)
    try:
        yield mounted
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
        image.unlink()


COLUMNS = {
    "way": "way",
    "file_system": "file system",
    "gib": "GiB",
    "seconds": "seconds",
    "seconds_p10": "p10",
    "seconds_p90": "p90",
    "ratio": "x torch.save alone",
    "ratio_p10": "ratio p10",
    "ratio_p90": "ratio p90",
    "disk": "bytes taken of the disk, to those of the file",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--only", choices=["plain", "btrfs"], help="the directory's own file system alone, or btrfs alone"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, help="where to write; a temporary directory by default")
    given = parser.parse_args()
    model, rows = model_of(given.gib), []
    directory = Path(tempfile.mkdtemp(dir=given.directory))
    try:
        if given.only != "btrfs":
            rows += shown(measure(model, directory, given.rounds))
        if given.only != "plain":
            try:
                with btrfs(directory, given.gib) as mounted:
                    rows += shown(measure(model, mounted, given.rounds))
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"no btrfs here, which needs root, loop devices and btrfs-progs: {error}")
        if given.json is not None:
            keep(given.json, directory, rows, given.rounds)
    finally:
        shutil.rmtree(directory)


def shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    print(f"{'':30}{'seconds':>9}{'(p10 to p90)':>18}{'ratio':>7}{'(p10 to p90)':>16}{'disk':>6}")
    for row in rows:
        times, ratios = (f"({row[f'{what}_p10']} to {row[f'{what}_p90']})" for what in ("seconds", "ratio"))
        print(f"{row['name']:38}{row['seconds']:7}{times:>20}{row['ratio']:6}{ratios:>16}{row['disk']:6}", flush=True)
    return rows


def keep(path: Path, directory: Path, rows: list[dict[str, Any]], rounds: int) -> None:
    results.write(
        path,
        "artifacts",
        "Seconds to bring a checkpoint into the spool, and what it takes of the disk",
        directory=directory,
        columns=COLUMNS,
        rows=rows,
        plot={"kind": "bar", "x": "name", "y": ["seconds"]},
        notes=[
            f"Medians of {rounds} rounds in one process, after one that is not counted; all ways take turns in each round, "
            "and the disk is synced before each.",
            "torch.save alone does not wait for the disk; open_artifact and log_artifact do, and hash what they store, "
            "open_artifact on another core.",
            "What earlier ways have left in the page cache is evicted before each, but for the source of the copy.",
            "open_artifact again: the same checkpoint is in the spool already, so it is written, hashed and let go.",
            "btrfs is on a loop device over the machine's ext4; there log_artifact shares extents with the file.",
        ],
    )


if __name__ == "__main__":
    main()
