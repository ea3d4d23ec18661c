"""A chain of X.509 certificates, from a signer's to a trusted one.

The day for which it must be valid is the first of the signer's certificate: a device's clock may be
years off, and a bundle that was good must not stop on some date. Who has to take back a key takes
its certificate out of the trusted ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgelm.runtime.errors import UntrustedError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.x509 import Certificate


def signer_of(
    chain: Sequence[bytes], roots: Sequence[Certificate]
) -> tuple[EllipticCurvePublicKey, str]:
    """The key of the chain's first certificate (DER), and its subject. Raises UntrustedError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509 import InvalidVersion, load_der_x509_certificate
    from cryptography.x509 import verification as v

    if not roots:
        raise UntrustedError(
            "signed with a certificate, and none is trusted", hint="trust the root certificate"
        )
    try:
        leaf, *others = map(load_der_x509_certificate, chain)
        verifier = (
            v.PolicyBuilder()
            .store(v.Store(list(roots)))
            .time(leaf.not_valid_before_utc)
            .extension_policies(
                ca_policy=v.ExtensionPolicy.webpki_defaults_ca(),
                ee_policy=v.ExtensionPolicy.permit_all(),
            )
            .build_client_verifier()
        )
        verifier.verify(leaf, others)
        who = leaf.subject.rfc4514_string()
        may_sign = _may_sign(leaf)
        public = leaf.public_key()
    except (ValueError, InvalidVersion, UnsupportedAlgorithm, v.VerificationError) as err:
        raise UntrustedError(
            f"no certificate that is trusted vouches for the signer: {err}",
            hint="trust the certificate that ends its chain",
        ) from err
    known = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, known):
        raise UntrustedError(f"{who}: its key is none of P-256, P-384 and P-521")
    if not may_sign:
        raise UntrustedError(f"{who}: the certificate is not for signing code")
    return public, who


def _may_sign(leaf: Certificate) -> bool:
    """Whether it says that its key makes signatures of code, and no certificates."""
    from cryptography import x509

    try:
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
        purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    is_code = x509.oid.ExtendedKeyUsageOID.CODE_SIGNING in purposes
    return usage.digital_signature and not usage.key_cert_sign and is_code
