"""Keys, certificates and signatures; the reference implementation reads ours and writes for us."""

from __future__ import annotations

import base64
import datetime
import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import make_bundle

import edgelm
from edgelm.runtime.bundle import Bundle
from edgelm.runtime.trust.envelope import read_envelope, read_statement
from edgelm.runtime.trust.keys import load_signing_key, load_trusted_keys, make_key
from edgelm.runtime.trust.sign import sign_bundle
from edgelm.runtime.trust.verify import verify_bundle

pytest.importorskip("cryptography")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "tiny.edgelm")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    make_key(tmp_path / "release.key", None)
    return tmp_path / "release.key"


def trusted(*paths: Path) -> edgelm.Trust:
    return edgelm.Trust(paths)


def test_what_is_signed_is_opened(bundle: Path, key: Path) -> None:
    sign_bundle(bundle, load_signing_key(key))
    opened = Bundle(bundle, trusted(key.with_suffix(".pub")))
    opened.check(opened.all_files())
    assert opened.signer and opened.extra_files() == []
    sign_bundle(bundle, load_signing_key(key))  # again, in its own place
    assert Bundle(bundle, trusted(key.with_suffix(".pub"))).signer == opened.signer


def test_policies(bundle: Path, key: Path) -> None:
    keys = (key.with_suffix(".pub"),)
    with pytest.raises(edgelm.UntrustedError, match="not signed"):
        Bundle(bundle, edgelm.Trust(keys))
    with pytest.warns(UserWarning, match="not signed"):
        assert Bundle(bundle, edgelm.Trust(keys, "warn")).signer is None
    assert Bundle(bundle, edgelm.Trust(policy="none")).signer is None
    sign_bundle(bundle, load_signing_key(key))
    assert Bundle(bundle, edgelm.Trust(keys, "warn")).signer
    for wrong in (("required", ()), ("always", keys), ("required", str(keys[0]))):
        with pytest.raises(edgelm.UsageError, match="trust"):
            edgelm.Trust(wrong[1], wrong[0])


def test_another_key_is_not_trusted(bundle: Path, key: Path, tmp_path: Path) -> None:
    sign_bundle(bundle, load_signing_key(key))
    other = make_key(tmp_path / "other.key", None)
    with pytest.raises(edgelm.UntrustedError, match="not trusted"):
        Bundle(bundle, trusted(other))
    assert Bundle(bundle, trusted(other, key.with_suffix(".pub"))).signer
    # a signature that claims to be of the trusted key
    raw = json.loads((bundle / "model.sig").read_text())
    (hint,) = load_trusted_keys([other]).public
    raw["verificationMaterial"]["publicKey"]["hint"] = hint
    (bundle / "model.sig").write_text(json.dumps(raw))
    with pytest.raises(edgelm.UntrustedError, match="not one of"):
        Bundle(bundle, trusted(other))


def test_private_keys_are_their_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    make_key(path, b"open sesame")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"ENCRYPTED" in path.read_bytes()
    for wrong in (None, b"sesame"):
        with pytest.raises(edgelm.UsageError, match=r"a\.key"):
            load_signing_key(path, wrong)
    assert load_signing_key(path, b"open sesame").private.curve.name == "secp256r1"
    before = path.read_bytes()
    with pytest.raises(edgelm.StorageError, match="exists"):
        make_key(path, None)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"])
def test_what_is_no_key_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.pem"
    path.write_text(text)
    with pytest.raises(edgelm.UsageError, match=r"odd\.pem"):
        load_trusted_keys([path])
    with pytest.raises(edgelm.UsageError, match=r"odd\.pem"):
        load_signing_key(path)


def test_a_spoiled_bundle_is_not_signed(bundle: Path, key: Path) -> None:
    (bundle / "notes.txt").write_text("x")
    with pytest.raises(edgelm.TamperedError, match=r"notes\.txt"):
        sign_bundle(bundle, load_signing_key(key))
    assert not (bundle / "model.sig").exists()


def test_the_command_line(bundle: Path, tmp_path: Path, run_cli, monkeypatch) -> None:
    monkeypatch.setenv("WORD", "open sesame")
    assert run_cli("keygen", tmp_path / "b.key", "--passphrase-env", "WORD").code == 0
    assert run_cli("sign", bundle, "--key", tmp_path / "b.key").code == 2
    (tmp_path / "word").write_text("open sesame\n")
    done = run_cli(
        "sign", bundle, "--key", tmp_path / "b.key", "--passphrase-file", tmp_path / "word"
    )
    assert done.code == 0, done.err
    make_key(tmp_path / "c.key", None)
    refused = run_cli("verify", bundle, "--key", tmp_path / "c.pub")
    assert refused.code == 5 and "not trusted" in refused.err
    refused = run_cli("predict", bundle, "hi", "--trust-key", tmp_path / "c.pub")
    assert refused.code == 5 and "not trusted" in refused.err
    (bundle / "model.sig").unlink()
    refused = run_cli("predict", bundle, "hi", "--trust-key", tmp_path / "b.pub")
    assert refused.code == 5 and "not signed" in refused.err


def test_a_real_bundle_runs_with_trust(classifier: Path, key: Path, run_cli, tmp_path) -> None:
    import shutil

    copy = Path(shutil.copytree(classifier, tmp_path / "copy.edgelm"))
    sign_bundle(copy, load_signing_key(key))
    public = key.with_suffix(".pub")
    done = run_cli("verify", copy, "--key", public, "--threads", 1)
    assert done.code == 0 and "signed by the key" in done.out
    with (
        edgelm.load(copy, variant="onnx-fp32", threads=1, trust=trusted(public)) as model,
        edgelm.load(classifier, variant="onnx-fp32", threads=1) as plain,
    ):
        assert model.predict("hello") == plain.predict("hello")


def test_without_cryptography_the_cure_is_named(bundle: Path, key: Path, monkeypatch) -> None:
    sign_bundle(bundle, load_signing_key(key))
    code = f"""
import sys, importlib.util
sys.modules["cryptography"] = None
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "cryptography" else real(name, *a)
import edgelm
from edgelm.runtime.bundle import Bundle
Bundle(__import__("pathlib").Path({str(bundle)!r}))
try:
    edgelm.load({str(bundle)!r}, trust=edgelm.Trust(({str(key.with_suffix(".pub"))!r},)))
except edgelm.MissingExtra as err:
    print(err.hint)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "edgelm[trust]" in run.stdout, run.stderr


# -- the reference implementation --


@pytest.fixture
def reference() -> Any:
    return pytest.importorskip("model_signing", exc_type=ImportError)


def test_the_reference_implementation_accepts_ours(bundle: Path, key: Path, reference) -> None:
    sign_bundle(bundle, load_signing_key(key))
    checker = reference.verifying.Config().use_elliptic_key_verifier(
        public_key=key.with_suffix(".pub")
    )
    checker.verify(bundle, bundle / "model.sig")
    (bundle / "card.md").write_text("other")
    with pytest.raises(ValueError, match="mismatch"):
        checker.verify(bundle, bundle / "model.sig")


@pytest.mark.parametrize("inside", [True, False])
def test_ours_accepts_the_reference_implementation(
    bundle: Path, key: Path, reference, inside: bool, tmp_path: Path
) -> None:
    path = bundle / "model.sig" if inside else tmp_path / "apart.sig"
    hashing = reference.hashing.Config()
    ignored = [path] if inside else []
    hashing.set_ignored_paths(paths=ignored, ignore_git_paths=False)
    signer = reference.signing.Config().use_elliptic_key_signer(private_key=key)
    signer.set_hashing_config(hashing).sign(bundle, path)
    path.replace(bundle / "model.sig")
    opened = Bundle(bundle, trusted(key.with_suffix(".pub")))
    opened.check(opened.all_files())


def test_ignored_paths_are_refused(bundle: Path, key: Path, reference, tmp_path: Path) -> None:
    """The reference implementation's own default ignores git's files."""
    signer = reference.signing.Config().use_elliptic_key_signer(private_key=key)
    signer.sign(bundle, tmp_path / "apart.sig")
    (tmp_path / "apart.sig").replace(bundle / "model.sig")
    with pytest.raises(edgelm.UntrustedError, match="ignore_paths"):
        Bundle(bundle, trusted(key.with_suffix(".pub")))


# -- certificates --

NOW = datetime.datetime(2026, 1, 1)


def certificate(
    name: str, by: tuple[Any, Any] | None = None, *, ca: bool = True, code: bool = True
) -> tuple[Any, Any]:
    """A key and its certificate, made by another such pair or by itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)])
    maker, issuer = (key, subject) if by is None else (by[0], by[1].subject)
    purposes = x509.oid.ExtendedKeyUsageOID
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW)
        .not_valid_after(NOW + datetime.timedelta(days=30))  # in the past for most who run this
        .add_extension(x509.BasicConstraints(ca, None), True)
        .add_extension(
            x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False), True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(maker.public_key()), False
        )
    )
    if not ca:
        usage = purposes.CODE_SIGNING if code else purposes.SERVER_AUTH
        made = made.add_extension(x509.ExtendedKeyUsage([usage]), False)
    return key, made.sign(maker, hashes.SHA256())


def write_pem(folder: Path, name: str, pair: tuple[Any, Any]) -> Path:
    from cryptography.hazmat.primitives import serialization as s

    key, cert = pair
    path = folder / f"{name}.pem"
    path.write_bytes(cert.public_bytes(s.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    )
    return path


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Root, intermediate, signer."""
    root = certificate("root")
    middle = certificate("middle", root)
    leaf = certificate("signer", middle, ca=False)
    names = ("root", "middle", "leaf")
    a, b, c = (write_pem(tmp_path, n, p) for n, p in zip(names, (root, middle, leaf), strict=True))
    return a, b, c


def test_certificates_both_ways(bundle: Path, chain, reference, tmp_path: Path) -> None:
    root, middle, leaf = chain
    sign_bundle(bundle, load_signing_key(leaf.with_suffix(".key"), None, [leaf, middle]))
    assert Bundle(bundle, trusted(root)).signer == "CN=signer"
    checker = reference.verifying.Config().use_certificate_verifier(certificate_chain=[root])
    checker.verify(bundle, bundle / "model.sig")
    hashing = reference.hashing.Config()
    hashing.set_ignored_paths(paths=[bundle / "model.sig"], ignore_git_paths=False)
    signer = reference.signing.Config().use_certificate_signer(
        private_key=leaf.with_suffix(".key"), signing_certificate=leaf, certificate_chain=[middle]
    )
    signer.set_hashing_config(hashing).sign(bundle, bundle / "model.sig")
    assert Bundle(bundle, trusted(root)).signer == "CN=signer"


def test_certificates_that_vouch_for_nothing(bundle: Path, chain, key, tmp_path: Path) -> None:
    root, middle, leaf = chain
    signer = load_signing_key(leaf.with_suffix(".key"), None, [leaf, middle])
    sign_bundle(bundle, signer)
    other = write_pem(tmp_path, "other", certificate("root"))
    for keys in ((other,), (key.with_suffix(".pub"),)):
        with pytest.raises(edgelm.UntrustedError, match="certificate"):
            Bundle(bundle, trusted(*keys))
    sign_bundle(bundle, load_signing_key(leaf.with_suffix(".key"), None, [leaf]))  # a gap
    with pytest.raises(edgelm.UntrustedError, match="vouches"):
        Bundle(bundle, trusted(root))
    with pytest.raises(edgelm.UsageError, match="not of this key"):
        load_signing_key(leaf.with_suffix(".key"), None, [middle])


@pytest.mark.parametrize("kind", [{"ca": True}, {"ca": False, "code": False}])
def test_a_certificate_for_something_else(bundle: Path, tmp_path: Path, kind) -> None:
    root = certificate("root")
    leaf = write_pem(tmp_path, "leaf", certificate("leaf", root, **kind))
    sign_bundle(bundle, load_signing_key(leaf.with_suffix(".key"), None, [leaf]))
    with pytest.raises(edgelm.UntrustedError, match=r"not for signing code|vouches"):
        Bundle(bundle, trusted(write_pem(tmp_path, "root", root)))


# -- the format's own rules --


def vary(bundle: Path, key: Path, change) -> None:
    """Sign a statement that `change` was made to."""
    from edgelm.runtime.trust.envelope import write_envelope

    signer = load_signing_key(key)
    sign_bundle(bundle, signer)
    envelope = read_envelope((bundle / "model.sig").read_bytes())
    statement = json.loads(envelope.payload)
    change(statement)
    payload = json.dumps(statement).encode()
    (bundle / "model.sig").write_bytes(write_envelope(signer.sign(payload)))


def resource(**values: Any):
    return lambda s: s["predicate"]["resources"][0].update(values)


def serialization(**values: Any):
    return lambda s: s["predicate"]["serialization"].update(values)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(predicateType="https://model_signing/Digests/v0.1"),
        lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda s: s.pop("subject"),
        lambda s: s["subject"].append(s["subject"][0]),
        lambda s: s["subject"][0]["digest"].update(sha256="0" * 64),
        lambda s: s["predicate"].pop("serialization"),
        lambda s: s["predicate"].update(resources=[]),
        lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]),
        serialization(method="shards", shard_size=10),
        serialization(hash_type="blake3"),
        serialization(allow_symlinks=True),
        serialization(allow_symlinks=0),
        serialization(ignore_paths=["model.sig", "variants"]),
        resource(name="../card.md"),
        resource(name="/card.md"),
        resource(name="a//b"),
        resource(name=".git"),
        resource(name="model.sig"),
        resource(name="a\\b"),
        resource(name=7),
        resource(digest="0" * 63),
        resource(digest="A" * 64),
        resource(algorithm="sha1"),
    ],
)
def test_statements_that_are_refused_though_well_signed(bundle: Path, key: Path, change) -> None:
    vary(bundle, key, change)
    with pytest.raises(edgelm.UntrustedError, match=r"model\.sig"):
        verify_bundle(bundle, load_trusted_keys([key.with_suffix(".pub")]))


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b.clear(),
        lambda b: b.pop("dsseEnvelope"),
        lambda b: b.pop("verificationMaterial"),
        lambda b: b.update(mediaType="application/vnd.dev.sigstore.bundle+json;version=0.2"),
        lambda b: b["verificationMaterial"].update(tlogEntries=[{}]),
        lambda b: b["verificationMaterial"].update(certificate={"rawBytes": "AA=="}),
        lambda b: b["verificationMaterial"].pop("publicKey"),
        lambda b: b["verificationMaterial"]["publicKey"].update(hint=None),
        lambda b: b["dsseEnvelope"].update(payloadType="text/plain"),
        lambda b: b["dsseEnvelope"].update(signatures=[]),
        lambda b: b["dsseEnvelope"]["signatures"].append(b["dsseEnvelope"]["signatures"][0]),
        lambda b: b["dsseEnvelope"]["signatures"][0].update(keyid="k"),
        lambda b: b["dsseEnvelope"]["signatures"][0].update(sig="AA="),
        lambda b: b["dsseEnvelope"]["signatures"][0].update(sig=["AA=="]),
        lambda b: b["dsseEnvelope"]["signatures"][0].update(sig="AB=="),
    ],
)
def test_envelopes_that_are_refused(bundle: Path, key: Path, change) -> None:
    sign_bundle(bundle, load_signing_key(key))
    raw = json.loads((bundle / "model.sig").read_text())
    change(raw)
    (bundle / "model.sig").write_text(json.dumps(raw))
    with pytest.raises(edgelm.UntrustedError, match=r"model\.sig"):
        verify_bundle(bundle, load_trusted_keys([key.with_suffix(".pub")]))


def test_what_the_format_lets_others_write(bundle: Path, key: Path) -> None:
    """No keyid, more facts of a resource, another order of files."""

    def change(statement: dict[str, Any]) -> None:
        import hashlib

        resources = statement["predicate"]["resources"]
        resources.reverse()
        resources[0]["annotations"] = {}
        joined = b"".join(bytes.fromhex(r["digest"]) for r in resources)
        statement["subject"][0]["digest"]["sha256"] = hashlib.sha256(joined).hexdigest()

    vary(bundle, key, change)
    raw = json.loads((bundle / "model.sig").read_text())
    raw["dsseEnvelope"]["signatures"][0].pop("keyid")
    raw["verificationMaterial"].pop("tlogEntries")
    (bundle / "model.sig").write_text(json.dumps(raw))
    assert len(read_statement(base64.b64decode(raw["dsseEnvelope"]["payload"]))) == 8
    assert Bundle(bundle, trusted(key.with_suffix(".pub"))).signer


def test_a_bundle_that_others_can_write_to_is_copied(bundle: Path, key: Path) -> None:
    sign_bundle(bundle, load_signing_key(key))
    public = key.with_suffix(".pub")
    assert Bundle(bundle, trusted(public)).folder == bundle
    (bundle / "variants").chmod(0o777)
    opened = Bundle(bundle, trusted(public))
    copy = opened.folder
    assert copy != bundle and stat.S_IMODE(copy.stat().st_mode) == 0o700
    opened.check(opened.all_files())
    for entry in opened.all_files():
        assert (copy / entry.path).read_bytes() == (bundle / entry.path).read_bytes()
        assert (copy / entry.path).stat().st_nlink == 1
    del opened
    assert not copy.exists()
