"""edgelm serve"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgelm.runtime.commands.device_flag import device_option
from edgelm.runtime.engine import Device
from edgelm.runtime.trust.policy import POLICIES

_PATH = click.Path(path_type=Path)


@click.command(name="serve")
@click.argument("bundles", nargs=-1, type=_PATH)
@click.option("--config", "file", type=_PATH, help="serve.yaml; flags stand over it.")
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="0 takes a free one.  [default: 8080]")
@click.option(
    "--trust-key",
    "trust_keys",
    multiple=True,
    type=_PATH,
    help="A public key or root certificate that must have signed the bundles; may be repeated.",
)
@click.option(
    "--trust",
    type=click.Choice(POLICIES),
    help="none: serve bundles without a signature; warn: say so.  [default: required]",
)
@click.option("--keys", type=_PATH, help="File of API keys, made by `edgelm keys`.")
@click.option("--no-auth", is_flag=True, default=None, help="Answer everyone; on loopback only.")
@click.option("--tls-cert", type=_PATH, help="Certificate chain, PEM.")
@click.option("--tls-key", type=_PATH, help="Its private key, PEM.")
@click.option("--tls-client-ca", type=_PATH, help="Clients need a certificate of this authority.")
@click.option("--audit", type=_PATH, help="Append a line for each request to this file.")
@click.option("--variant", help="Of the bundles: a variant's or a target's name.")
@device_option()
@click.option("--threads", type=int, help="Threads of each model's engine.")
@click.option("--context-tokens", type=int, help="Generation: of prompt and answer together.")
@click.option(
    "--sequences", type=int, default=4, show_default=True, help="Answers that grow at once."
)
def command(
    bundles: tuple[Path, ...],
    file: Path | None,
    variant: str | None,
    device: Device,
    threads: int | None,
    context_tokens: int | None,
    sequences: int,
    trust_keys: tuple[Path, ...],
    **flags: Any,
) -> None:
    """Serve BUNDLES over HTTP until a signal ends it.

    Speaks OpenAI's API (chat, completions, embeddings), /v1/classify and the Open Inference
    Protocol v2; docs/serve.md has them all. Bundles must be signed by a --trust-key, unless --trust
    none is given, and every request needs an API key, unless --no-auth is. SIGHUP serves what then
    stands at the bundles' paths, SIGTERM drains.
    """
    from edgelm.runtime.errors import MissingExtra, UsageError
    from edgelm.runtime.serve.config import ModelConfig, read_config

    try:
        from edgelm.runtime.serve.server import serve
    except ModuleNotFoundError as err:
        if err.name is None or err.name.partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        raise MissingExtra(err.name, "serve") from err

    of_bundles = (variant, threads, context_tokens, device, sequences)
    if not bundles and of_bundles != (None, None, None, "auto", 4):
        raise UsageError(
            "flags of a model's engine belong to the bundles on the command line",
            hint="name the bundles, or write the keys under `models` in serve.yaml",
        )
    models = tuple(
        ModelConfig(str(path), None, variant, device, threads, context_tokens, sequences)
        for path in bundles
    )
    given: dict[str, Any] = {n: str(v) if isinstance(v, Path) else v for n, v in flags.items()}
    given |= {"models": models or None, "trust_keys": tuple(map(str, trust_keys)) or None}
    serve(read_config(file, given))
