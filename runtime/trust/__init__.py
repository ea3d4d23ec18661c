"""Who made a bundle, and whether it is still what was made: signatures and the closed file set.

    envelope.py      what stands in `model.sig`: a sigstore bundle, DSSE, an in-toto statement
    keys.py          private keys for signing, public keys and certificates to be trusted
    certificates.py  a chain of X.509 certificates to a trusted one
    tree.py          a bundle's files, with no link among them; opening one without leaving it
    private.py       a copy that nobody else can write to
    sign.py, verify.py
    policy.py        `Trust`: what `edgelm.load` asks of a bundle

The format is OpenSSF Model Signing v1.0, which other tools read and write. What that leaves to the
signer is refused here: ignored paths, symbolic links, files without a digest.
Signing and verifying need the package `cryptography`, the extra `trust`.
"""
