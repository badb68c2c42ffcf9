"""Build the wheel, install it into a clean environment and use it there.

The environment has the run-time dependencies only, so the check also shows what works without
PyTorch.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: The first steps of a user; run outside of the source tree.
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


def run(*command: str | Path, cwd: Path) -> None:
    """Run a command; exit if it fails."""
    subprocess.run([str(part) for part in command], cwd=cwd, check=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", place, ROOT, cwd=ROOT)
        (wheel,) = place.glob("*.whl")
        if "-cp310-abi3-" not in wheel.name:
            raise SystemExit(f"not one wheel for all Pythons: {wheel.name}")
        venv.create(place / "clean", with_pip=True)
        python = place / "clean" / "bin" / "python"
        run(python, "-m", "pip", "install", "-q", wheel, cwd=place)
        run(python, "-c", FIRST_USE, cwd=place)
        run(place / "clean" / "bin" / "simct-align", "demo", cwd=place)
        run(python, "-m", "pip", "install", "-q", f"{wheel}[report]", cwd=place)
        run(python, "-c", PAGE, cwd=place)
        print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB, works in a clean environment")


if __name__ == "__main__":
    main()
