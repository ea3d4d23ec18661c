"""Keys over the whole table of routes, scopes, the audit log, TLS, and no way out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest
from serving import Served, client_of, serving

from edgelm.runtime.bundle import Bundle
from edgelm.runtime.errors import UntrustedError
from edgelm.runtime.serve.keys import add_key
from edgelm.runtime.serve.routes import table
from edgelm.runtime.trust.keys import load_signing_key, make_key
from edgelm.runtime.trust.policy import Trust
from edgelm.runtime.trust.sign import sign_bundle

SECRET_TEXT = "my card is at the harbour"
ROUTES = [(path.replace("{name}", "classifier"), method) for path, method, _, _ in table()]
LIVE = {"/health/live", "/v2/health/live"}
WATCHED = """
import sys
def hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        with open({file!r}, "a") as stream:
            stream.write(f"{{event}} {{args}}\\n")
sys.addaudithook(hook)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("access")


@pytest.fixture(scope="module")
def keys(folder: Path) -> dict[str, str]:
    return {scope: add_key(folder / "keys", scope, (scope,)) for scope in
            ("predict", "watch", "admin")}  # fmt: skip


@pytest.fixture(scope="module")
def guarded(classifier: Path, folder: Path, keys: dict[str, str]) -> Iterator[Served]:
    """Every connection that one of its processes opens is noted in `connects`."""
    hook = folder / "hook" / "sitecustomize.py"
    hook.parent.mkdir()
    hook.write_text(WATCHED.format(file=str(folder / "connects")))
    path = os.pathsep.join([str(hook.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    arguments = (classifier, "--keys", folder / "keys", "--audit", folder / "audit")
    with serving(*arguments, ready=("classifier",), env={"PYTHONPATH": path}) as found:
        yield found
    assert not (folder / "connects").exists(), (folder / "connects").read_text()


@pytest.mark.parametrize(("path", "method"), [*ROUTES, ("/", "GET"), ("/v1/new", "POST")])
@pytest.mark.parametrize("key", [None, "edgelm-wrong"])
def test_nothing_but_liveness_answers_without_a_key(
    guarded: Served, path: str, method: str, key: str | None
) -> None:
    with client_of(guarded, key) as client:
        answer = client.request(method, path)
    assert answer.status_code == (200 if path in LIVE else 401)
    if answer.status_code == 401:
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"


def test_a_key_is_for_its_scopes(guarded: Served, keys: dict[str, str]) -> None:
    wanted = {"predict": "/v1/classify", "watch": "/metrics", "admin": "/v1/admin/reload"}
    bodies = {"/v1/classify": {"input": SECRET_TEXT}, "/v1/admin/reload": {}}
    for scope, key in keys.items():
        with client_of(guarded, key) as client:
            assert client.get("/health/ready").is_success and client.get("/v1/models").is_success
            for other, path in wanted.items():
                body = bodies.get(path)
                answer = client.get(path) if body is None else client.post(path, json=body)
                assert answer.status_code == (200 if other == scope else 403), (scope, path)


def test_openai_says_who_may_not(guarded: Served, keys: dict[str, str]) -> None:
    def ask(key: str) -> None:
        client = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=key, max_retries=0)
        client.embeddings.create(model="classifier", input="hi")

    with pytest.raises(openai.AuthenticationError):
        ask("no")
    with pytest.raises(openai.PermissionDeniedError):
        ask(keys["watch"])
    with pytest.raises(openai.BadRequestError):
        ask(keys["predict"])


def test_the_audit_log_says_who_asked_and_not_what(
    guarded: Served, folder: Path, keys: dict[str, str]
) -> None:
    with client_of(guarded, keys["predict"]) as client:
        client.post("/v1/classify", json={"input": SECRET_TEXT}).raise_for_status()
    text = (folder / "audit").read_text()
    assert SECRET_TEXT not in text and keys["predict"] not in text
    last = json.loads(text.splitlines()[-1])
    assert (last["client"], last["route"], last["status"]) == ("predict", "/v1/classify", 200)
    assert last["model"] == "classifier" and last["tokens"] > 0
    assert SECRET_TEXT not in "".join(guarded.lines)


def test_inventory_and_document(guarded: Served, keys: dict[str, str], classifier: Path) -> None:
    import hashlib

    with client_of(guarded, keys["watch"]) as client:
        found = client.get("/v1/inventory").json()
        document = client.get("/openapi.json").json()
    (model,) = found["models"]
    digest = hashlib.sha256((classifier / "edgelm.json").read_bytes()).hexdigest()
    assert model["digest"] == f"sha256:{digest}" and model["engine"]
    assert {f["path"] for f in model["files"]} > {"tokenizer/tokenizer.json"}
    assert {"numpy", "uvicorn"} <= {c["name"].lower() for c in found["sbom"]["components"]}
    paths = {(path, method.upper()) for path, m in document["paths"].items() for method in m}
    assert paths == {(path, method) for path, method, _, _ in table()}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--no-auth"),
        (["--no-auth", "--host", "0.0.0.0"], "loopback|from outside"),
        (["--keys", "no-such-file"], "edgelm keys"),
        (["--no-auth"], "--trust none"),
    ],
)
def test_the_command_refuses_to_be_open(
    run_cli: Callable[..., object], classifier: Path, flags: list[str], said: str
) -> None:
    import re

    run = run_cli("serve", classifier, *flags)
    assert run.code == 2 and re.search(said, run.err)  # type: ignore[attr-defined]


def test_flags_of_an_engine_belong_to_a_bundle(run_cli: Callable[..., object]) -> None:
    run = run_cli("serve", "--no-auth", "--threads", 2)
    assert run.code == 2 and "serve.yaml" in run.err  # type: ignore[attr-defined]


def test_only_bundles_of_those_one_trusts_are_served(
    run_cli: Callable[..., object], classifier: Path, tmp_path: Path
) -> None:
    pytest.importorskip("cryptography")
    key = tmp_path / "release.key"
    public = make_key(key, None)
    bundle = tmp_path / "bundle"
    shutil.copytree(classifier, bundle)
    asked = run_cli("serve", bundle, "--no-auth")
    assert asked.code == 2 and "--trust none" in asked.err  # type: ignore[attr-defined]
    unsigned = run_cli("serve", bundle, "--no-auth", "--trust-key", public)
    assert unsigned.code == UntrustedError.exit_code  # type: ignore[attr-defined]
    sign_bundle(bundle, load_signing_key(key))
    with (
        serving(bundle, "--no-auth", "--trust-key", public, ready=("classifier",)) as served,
        client_of(served) as client,
    ):
        signer = client.get("/v1/inventory").json()["models"][0]["signer"]
        assert signer and signer == Bundle(bundle, Trust((public,))).signer
        (bundle / "extra").write_bytes(b"")
        assert client.post("/v1/admin/reload", json={}).status_code == 409
        assert client.post("/v1/classify", json={"input": "hi"}).status_code == 200


def test_keys_by_the_command(run_cli: Callable[..., object], tmp_path: Path) -> None:
    run = run_cli("keys", tmp_path / "keys", "app", "--scope", "watch")
    assert run.code == 0 and run.out.startswith("edgelm-")  # type: ignore[attr-defined]
    assert (tmp_path / "keys").read_text().startswith("app watch ")


def test_tls_and_client_certificates(classifier: Path, tmp_path: Path) -> None:
    files = {name: str(tmp_path / f"{name}.pem") for name in ("cert", "key", "mine", "mine_key")}
    for cert, key, name in (("cert", "key", "127.0.0.1"), ("mine", "mine_key", "client")):
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
                   "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
                   "-out", files[cert], "-keyout", files[key]]  # fmt: skip
        try:
            subprocess.run(command, check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("openssl makes the certificates")
    flags = ["--no-auth", "--tls-cert", files["cert"], "--tls-key", files["key"],
             "--tls-client-ca", files["mine"]]  # fmt: skip
    with serving(classifier, *flags, ready=("classifier",)) as served:
        assert served.url.startswith("https://")
        import ssl

        context = ssl.create_default_context(cafile=files["cert"])
        with (
            httpx.Client(verify=context, trust_env=False) as nobody,
            pytest.raises(httpx.HTTPError),
        ):
            nobody.get(f"{served.url}/health/live")
        context.load_cert_chain(files["mine"], files["mine_key"])
        with httpx.Client(verify=context, trust_env=False) as somebody:
            assert somebody.get(f"{served.url}/health/live").status_code == 200
