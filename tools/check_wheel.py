"""Build the source distribution and from it the wheel, check both, and use the wheel.

    python tools/check_wheel.py FOLDER [--wheel WHEEL]
    python tools/check_wheel.py --reproducible

FOLDER gets `simct_align-*.tar.gz` and one wheel; older ones are removed. The wheel is built from
the unpacked source distribution, so that it also shows whether the source distribution is complete.
On Linux, auditwheel gives it the oldest manylinux tag that its symbols allow. With --wheel, that
wheel is checked and nothing is built. With --reproducible, both distributions are built twice, in
folders of different names and without results of earlier builds, and have to be equal byte by byte.

A wheel is installed into an environment with the run-time dependencies only, outside of the source
tree, so the check also shows what works without PyTorch.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 5 * 2**20
#: The time that files of the wheel have, unless SOURCE_DATE_EPOCH is set: the start of 2020.
BUILD_TIME = "1577836800"

#: The first steps of a user.
FIRST_USE = """
import importlib.util, sys
assert importlib.util.find_spec("torch") is None, "the environment is not clean"
import simct_align
from simct_align.demo import demo_tokenizers
aligner = simct_align.Aligner(*demo_tokenizers())
text = "naïve 12345 🙂"
batch = aligner.align_texts([text])
assert b"".join(unit.bytes for unit in batch.units(0)) == text.encode()
assert len(batch.index()) + batch.index().dropped_no_prefix == batch.n_units
try:
    simct_align.SimCTLoss
except ModuleNotFoundError as error:
    assert "simct-align[torch]" in str(error), error
else:
    raise AssertionError("the loss came without PyTorch")
report = aligner.report([text])
assert report.to_dict()["coverage"] == batch.coverage().as_dict()
try:
    report.save("report.html")
except ModuleNotFoundError as error:
    assert "simct-align[report]" in str(error), error
else:
    raise AssertionError("the page came without its libraries")
loaded = {"torch", "transformers", "tiktoken"} & set(sys.modules)
assert not loaded, loaded
print("clean environment:", batch, simct_align.__version__)
"""

#: With the libraries of the page, its files must be in the wheel.
PAGE = """
from simct_align import Aligner
from simct_align.demo import demo_passage, demo_tokenizers
Aligner(*demo_tokenizers()).report(demo_passage()).save("report.html")
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> None:
    """Run a command; exit if it fails."""
    parts = [str(part) for part in command]
    done = subprocess.run(parts, cwd=cwd, env=os.environ | environment, check=False)
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(parts)}")


def tool(name: str, *arguments: str | Path, cwd: Path, **environment: str) -> None:
    """Run a command-line tool of this environment, with the programs beside it on the path."""
    programs = Path(sys.executable).parent
    path = os.pathsep.join([str(programs), os.environ.get("PATH", "")])
    run(sys.executable, "-m", name, *arguments, cwd=cwd, PATH=path, **environment)


def only(folder: Path, pattern: str) -> Path:
    """Return the only file that fits the pattern."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"{folder}: expected one {pattern}, got {[path.name for path in found]}")
    return found[0]


def build(place: Path, results: Path) -> tuple[Path, Path]:
    """Build both distributions in an empty folder; return the source distribution and the wheel.

    Cargo keeps its results in the other folder. The names of both folders and of Cargo's home, and
    the time, are replaced by fixed ones in what is built.
    """
    cargo_home = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
    flags = [
        f"--remap-path-prefix={folder}={name}"
        for folder, name in ((cargo_home, "/cargo"), (results, "/target"), (place, "/build"))
    ]
    settings = {
        "CARGO_TARGET_DIR": str(results),
        "CARGO_ENCODED_RUSTFLAGS": "\x1f".join(flags),
        "SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH", BUILD_TIME),
    }
    tool("maturin", "sdist", "--out", place, cwd=ROOT, **settings)
    source = only(place, "*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(place / "unpacked", filter="data")
    tree = only(place / "unpacked", "*")
    # The archive has times of long ago. Cargo would take old results of these sources for new ones.
    for path in tree.rglob("*"):
        os.utime(path)
    command = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", place / "built", tree)
    run(sys.executable, *command, cwd=place, **settings)
    wheel = only(place / "built", "*.whl")
    if sys.platform == "linux":
        tool("auditwheel", "repair", "--wheel-dir", place / "tagged", wheel, cwd=place, **settings)
        wheel = only(place / "tagged", "*.whl")
    return source, wheel


def check_wheel(wheel: Path, place: Path) -> None:
    """Check a wheel's name and size, install it into a clean environment, and use it there."""
    if "-cp310-abi3-" not in wheel.name:
        raise SystemExit(f"not one wheel for all Pythons: {wheel.name}")
    if sys.platform == "linux":
        if "manylinux" not in wheel.name:
            raise SystemExit(f"not a manylinux wheel: {wheel.name}")
        tool("auditwheel", "show", wheel, cwd=place)
    size = wheel.stat().st_size
    if size >= LARGEST:
        raise SystemExit(f"{wheel.name}: {size:,} bytes, expected less than {LARGEST:,}")
    venv.create(place / "clean", with_pip=True)
    programs = place / "clean" / ("Scripts" if sys.platform == "win32" else "bin")
    run(programs / "python", "-m", "pip", "install", "-q", wheel, cwd=place)
    empty = place / "empty"
    empty.mkdir()
    run(programs / "python", "-c", FIRST_USE, cwd=empty, PYTHONUTF8="1")
    run(programs / "simct-align", "demo", cwd=empty, PYTHONUTF8="1")
    run(programs / "python", "-m", "pip", "install", "-q", f"{wheel}[report]", cwd=place)
    run(programs / "python", "-c", PAGE, cwd=empty, PYTHONUTF8="1")
    print(f"{wheel.name}: {size / 2**20:.1f} MiB, works in a clean environment")


def check_reproducible(place: Path) -> None:
    """Build both distributions in two folders; exit if they differ."""
    made = []
    for name in ("one", "the other folder"):
        folder = place / name
        (folder / "dist").mkdir(parents=True)
        made.append(build(folder / "dist", folder / "results"))
    for first, second in zip(*made, strict=True):
        if first.read_bytes() != second.read_bytes():
            raise SystemExit(f"{first.name}: two builds differ: {differences(first, second)}")
        print(f"{first.name}: two builds are equal, {first.stat().st_size:,} bytes")


def differences(first: Path, second: Path) -> str:
    """Return which files of two wheels differ."""
    if first.suffix != ".whl":
        return "compare their members"
    with zipfile.ZipFile(first) as one, zipfile.ZipFile(second) as other:
        names = sorted({*one.namelist(), *other.namelist()})
        known = set(one.namelist()) & set(other.namelist())
        differ = [name for name in names if name not in known or one.read(name) != other.read(name)]
    return ", ".join(differ) or "only times or the order of files"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="where the distributions will be")
    parser.add_argument("--wheel", type=Path, help="check this wheel; build nothing")
    parser.add_argument("--reproducible", action="store_true", help="build twice and compare")
    options = parser.parse_args()
    if options.folder is None and not options.reproducible:
        parser.error("FOLDER is missing")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        if options.reproducible:
            check_reproducible(place)
            return
        built = [options.wheel.resolve()] if options.wheel else [*build(place, ROOT / "target")]
        tool("twine", "check", "--strict", *built, cwd=place)
        check_wheel(built[-1], place)
        if not options.wheel:
            options.folder.mkdir(exist_ok=True)
            for old in (*options.folder.glob("*.whl"), *options.folder.glob("*.tar.gz")):
                old.unlink()
            for path in built:
                shutil.copy(path, options.folder)
                print(options.folder / path.name)


if __name__ == "__main__":
    main()
