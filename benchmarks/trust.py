"""What trust costs at the start: `python benchmarks/trust.py BUNDLE --variant NAME [--rounds N]`.

Loads one variant with no trust, and signed and required, in fresh processes in turns, and prints
the median milliseconds of `edgelm.load` of each. A copy of the bundle is signed, with a new key.
The third way is a bundle that others can write to, which is copied as it is checked.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from edgelm.runtime.trust.keys import load_signing_key, make_key
from edgelm.runtime.trust.sign import sign_bundle

LOAD = """
import sys, time
import edgelm
bundle, variant, key = sys.argv[1:]
trust = edgelm.Trust((key,)) if key else edgelm.Trust(policy="none")
began = time.perf_counter()
model = edgelm.load(bundle, variant=variant, trust=trust)
print(1e3 * (time.perf_counter() - began))
model.close()
"""


def load_ms(bundle: Path, variant: str, key: str) -> float:
    """Of one load in a process of its own."""
    command = [sys.executable, "-c", LOAD, str(bundle), variant, key]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        copy = Path(shutil.copytree(args.bundle, root / "own"))
        key = make_key(root / "bench.key", None)
        sign_bundle(copy, load_signing_key(root / "bench.key"))
        shared = Path(shutil.copytree(copy, root / "shared"))
        (shared / "variants").chmod(0o777)
        ways = {"none": (copy, ""), "required": (copy, str(key)), "copied": (shared, str(key))}
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(args.rounds + 1):  # the first warms the page cache
            for way, (bundle, trusted) in ways.items():
                times[way].append(load_ms(bundle, args.variant, trusted))
    for way, found in times.items():
        print(f"{way:10} {statistics.median(found[1:]):8.1f} ms, least {min(found[1:]):8.1f} ms")


if __name__ == "__main__":
    main()
