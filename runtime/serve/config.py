"""What is served and how: the flags of `edgelm serve`, and the keys of serve.yaml."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from edgelm.runtime.engine import Device
from edgelm.runtime.errors import MissingExtra, UsageError
from edgelm.runtime.schema import SchemaError, decode
from edgelm.runtime.trust.policy import Policy, Trust

MAX_CONFIG_BYTES = 2**20


@dataclass(frozen=True)
class ModelConfig:
    """One bundle."""

    path: str
    name: str | None = None  # by which requests ask for it; the bundle's own when left out
    variant: str | None = None
    device: Device = "auto"
    threads: int | None = None
    context_tokens: int | None = None  # generation: of prompt and answer; the bundle's own
    sequences: int = 4  # generation: answers that grow at once; memory grows with it


@dataclass(frozen=True)
class ServeConfig:
    """The whole of serve.yaml."""

    models: tuple[ModelConfig, ...] = ()
    trust: Policy = "required"  # of the bundles' signatures
    trust_keys: tuple[str, ...] = ()  # public keys or root certificates that sign them
    host: str = "127.0.0.1"
    port: int = 8080
    keys: str | None = None  # file of API keys
    no_auth: bool = False  # answer everyone; on loopback only
    open_ready: bool = False  # readiness is told without a key, as liveness is
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None  # clients need a certificate of this authority
    queue_tokens: int = 65_536  # that may wait for a model, about
    queue_requests: int = 1024
    batch_tokens: int = 4096  # that a worker gets at once, about
    deadline_s: float = 60.0  # of a request, which may ask for less
    max_inputs: int = 256  # texts of a request
    body_bytes: int = 2**20
    header_bytes: int = 16_384
    connections: int = 1024
    header_s: float = 10.0  # a client has for its request's head,
    body_s: float = 20.0  # for its body,
    write_s: float = 30.0  # and for taking a piece of the answer
    idle_s: int = 65  # a connection is kept between requests
    drain_s: int = 30  # requests have to end when the server is told to
    log_requests: bool = True
    audit: str | None = None  # file that request lines are appended to

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise UsageError(f"{name}: {getattr(self, name)!r} must be over 0")
        if not 0 <= self.port < 65536:
            raise UsageError(f"port: {self.port!r} must be 0 to 65535")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("tls_cert and tls_key: give both, or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise UsageError("tls_client_ca: it needs tls_cert and tls_key")
        for model in self.models:
            if model.sequences < 1:
                raise UsageError(f"sequences: {model.sequences!r} must be at least 1")

    def trusted(self) -> Trust:
        """Whose bundles are served. Raises UsageError where nobody is trusted."""
        if self.trust == "required" and not self.trust_keys:
            raise UsageError(
                "trust: no key is named whose bundles may be served",
                hint="give --trust-key FILE; --trust none serves bundles without a signature",
            )
        return Trust(self.trust_keys, self.trust)

    def check_access(self) -> None:
        """Raise UsageError unless keys are asked for, or are left out on loopback explicitly."""
        if self.keys is not None and self.no_auth:
            raise UsageError("keys and no_auth: give one of them")
        if self.keys is None and not self.no_auth:
            raise UsageError(
                "no keys: every request would be refused",
                hint="make one with `edgelm keys FILE NAME` and give --keys FILE, or answer "
                "everyone on this machine with --no-auth",
            )
        if self.no_auth and not is_loopback(self.host):
            raise UsageError(
                f"no_auth: {self.host} can be reached from outside, so keys are needed",
                hint="give --keys FILE, or bind to 127.0.0.1",
            )


_POSITIVE = [f.name for f in fields(ServeConfig) if f.type in ("int", "float") and f.name != "port"]


def is_loopback(host: str) -> bool:
    """Whether the address is of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_config(path: Path | None, flags: dict[str, Any]) -> ServeConfig:
    """serve.yaml with the flags that were given (not None) over it. Raises UsageError."""
    config = ServeConfig() if path is None else _read(path)
    return replace(config, **{name: value for name, value in flags.items() if value is not None})


def _read(path: Path) -> ServeConfig:
    try:
        import yaml
    except ImportError as err:
        raise MissingExtra("pyyaml", "serve") from err
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_CONFIG_BYTES + 1)
        if len(raw) > MAX_CONFIG_BYTES:
            raise UsageError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes")
        return decode(ServeConfig, yaml.safe_load(raw) or {}, "")
    except OSError as err:
        raise UsageError(f"{path}: cannot be read: {err.strerror or err}") from err
    except yaml.YAMLError as err:
        raise UsageError(f"{path}: not YAML: {err}") from err
    except SchemaError as err:
        raise UsageError(f"{path}: {err}", hint="docs/serve.md lists the keys") from err
