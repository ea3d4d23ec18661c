"""The worker process: `python -m edgelm.runtime.serve.worker JSON`.

It loads one bundle, checks its golden answers on this device, says so, and answers until its stdin
ends. Messages go over stdin and stdout; whatever else a library prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from edgelm.runtime.bundle import Bundle
from edgelm.runtime.chat_model import ChatModel
from edgelm.runtime.errors import EdgelmError, VerificationError
from edgelm.runtime.load import load
from edgelm.runtime.model import Model
from edgelm.runtime.serve.chats import serve_chats
from edgelm.runtime.serve.frames import Channel, Header, error_header
from edgelm.runtime.serve.texts import serve_texts
from edgelm.runtime.text_model import TextModel
from edgelm.runtime.trust.policy import Trust
from edgelm.runtime.verify import check_loaded


def main() -> NoReturn:
    # a terminal's Ctrl-C is for the web process, which ends this one when its answers are out
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asked = os.fdopen(os.dup(0), "rb")
    said = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    channel = Channel(asked, said)
    given = json.loads(sys.argv[1])
    try:
        trust = Trust(tuple(given["trust"]["keys"]), given["trust"]["policy"])
        bundle = Bundle(Path(given["path"]), trust)
        model = _load(bundle, given, trust)
        check = check_loaded(bundle, model)
        if not check.ok:
            raise VerificationError(f"{given['path']}: {check.name}: {check.detail}")
    except EdgelmError as err:
        channel.say({"op": "failed", "error": error_header(err)})
        os._exit(err.exit_code)
    channel.say({"op": "ready", **_facts(model), "golden": check.detail})
    try:
        if isinstance(model, ChatModel):
            serve_chats(model, channel)
        else:
            assert isinstance(model, TextModel)
            serve_texts(model, channel)
    except BrokenPipeError:  # the web process is gone
        pass
    model.close()
    sys.exit(0)


def _load(bundle: Bundle, given: dict[str, Any], trust: Trust) -> Model:
    options = {name: given[name] for name in ("variant", "device", "threads")}
    if bundle.manifest.task.kind == "text-generation":
        options |= {"context_tokens": given["context_tokens"], "parallel": given["sequences"]}
    return load(bundle.root, **options, trust=trust)


def _facts(model: Model) -> Header:
    manifest, variant = model.manifest, model.variant
    return {
        "pid": os.getpid(),
        "variant": variant.name,
        "device": model.device,
        "release": manifest.release,
        "engine": {name: _version(name) for name in variant.engine},
        "context_tokens": model.context_tokens if isinstance(model, ChatModel) else None,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
