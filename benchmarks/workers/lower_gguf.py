"""edgelm's GGUF writer on a Hugging Face directory: f16, and nothing else; a whole process."""

from __future__ import annotations

import json
from pathlib import Path

from protocol import options

from edgelm.runtime.manifest import Task, TextLimits
from edgelm.targets import get_target
from edgelm.targets.base import LowerRequest


def main() -> None:
    given = options()
    model = Path(given["model"])
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    request = LowerRequest(
        model,
        Task("text-generation", end_ids=(int(config["eos_token_id"]),)),
        TextLimits(1024),
        "f16",
        Path(given["folder"]),
    )
    get_target("gguf").lower(request)


if __name__ == "__main__":
    main()
