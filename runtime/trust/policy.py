"""`Trust`: what is asked of a bundle before it is opened."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from edgelm.runtime.errors import BundleError, UsageError

if TYPE_CHECKING:
    from edgelm.runtime.trust.verify import Signed

Policy = Literal["none", "warn", "required"]
POLICIES: tuple[Policy, ...] = get_args(Policy)


@dataclass(frozen=True)
class Trust:
    """Which keys are trusted, and what to do with a bundle that none of them signed.

    keys: PEM files, of public keys or of certificates that end a chain. policy: `required` refuses
    a bundle that is not signed by one of them, or is not what was signed; `warn` says so and opens
    it; `none`, for development, looks at no signature.

    Raises UsageError."""

    keys: tuple[str | os.PathLike[str], ...] = ()
    policy: Policy = "required"

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise UsageError(f"trust: {self.policy!r} is none of {', '.join(POLICIES)}")
        if isinstance(self.keys, (str, os.PathLike)):
            raise UsageError("trust: keys are a list of files", hint='keys=("release.pub",)')
        if self.policy != "none" and not self.keys:
            raise UsageError(
                f"trust: the policy {self.policy} needs a public key or certificate to trust",
                hint="name its file: --trust-key FILE, or Trust(keys=(FILE,))",
            )

    def check(self, root: Path) -> Signed | None:
        """The bundle's signed content; None where the policy lets it be without.

        Raises UntrustedError, TamperedError, BundleError, MissingExtra, UsageError."""
        if self.policy == "none":
            return None
        from edgelm.runtime.trust.keys import load_trusted_keys
        from edgelm.runtime.trust.verify import verify_bundle

        keys = load_trusted_keys(self.keys)
        try:
            return verify_bundle(root, keys)
        except BundleError as err:
            if self.policy == "required":
                raise
            warnings.warn(f"opened without trust: {err.message}", UserWarning, stacklevel=4)
            return None


NO_TRUST = Trust(policy="none")
