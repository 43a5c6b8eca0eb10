"""What an operator chose, opened: keys read, files checked, graphs run once. Only what was asked for is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tintype.bundle import Bundle
from tintype.trust.certificates import OPERATOR, Certificate, certificate_for
from tintype.trust.choices import File, Operator
from tintype.trust.keys import maker_of, read_key
from tintype.trust.marking import Marker
from tintype.trust.pattern import PUBLIC_KEY

if TYPE_CHECKING:
    from tintype.trust.coded_noise import NoiseCoder
    from tintype.trust.credentials import Signer
    from tintype.trust.deck import Deck
    from tintype.trust.policy import Policy
    from tintype.trust.safety import SafetyChecker
    from tintype.trust.trustmark import TrustMark


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """None: not asked for. watermark_key: that carries payloads. certificate: None where nobody signs."""

    watermark_key: bytes
    certificate: Certificate | None
    policy: Policy | None
    checker: SafetyChecker | None
    deck: Deck | None
    trustmark: TrustMark | None

    @classmethod
    def of(cls, operator: Operator, bundle: Bundle, *, is_planned: bool) -> Chosen:
        """is_planned: within a memory budget, before which what signing takes is to be taken. Raises RequestError."""
        from tintype.engine import cache_folder

        chosen = cls(
            watermark_key=PUBLIC_KEY if operator.watermark_key is None else read_key(operator.watermark_key),
            certificate=certificate_for(operator.credentials, cache_folder()),
            policy=None if operator.policy is None else _policy_of(operator.policy),
            checker=None if operator.safety is None else _checker_of(operator.safety, bundle),
            deck=None if operator.deal is None else _deck_of(operator.deal),
            trustmark=None if operator.trustmark is None else _trustmark_of(operator.trustmark),
        )
        if chosen.certificate is not None and (is_planned or chosen.certificate.whose == OPERATOR):
            _signer_of(chosen.certificate).demand_sound()
        return chosen

    def signer(self, parent: Path | None) -> Signer | None:
        """parent: the file that a picture was made from."""
        return None if self.certificate is None else _signer_of(self.certificate, parent)

    def marker(self) -> Marker:
        """By this installation's number."""
        from tintype.engine import cache_folder

        return Marker(maker_of(cache_folder()), self.watermark_key)

    def coder(self) -> NoiseCoder:
        from tintype.engine import cache_folder
        from tintype.trust.coded_noise import NoiseCoder  # most noise is as it was drawn

        return NoiseCoder(maker_of(cache_folder()), self.watermark_key)


def _signer_of(certificate: Certificate, parent: Path | None = None) -> Signer:
    from tintype.trust.credentials import Signer

    return Signer(certificate, parent)


def _policy_of(named: File) -> Policy:
    from tintype.trust.policy import read_policy

    return read_policy(named)


def _deck_of(named: File) -> Deck:
    from tintype.trust.deck import read_deck

    return read_deck(named)


def _checker_of(named: File, bundle: Bundle) -> SafetyChecker:
    from tintype.trust.safety import open_checker

    return open_checker(named, bundle)


def _trustmark_of(folder: File) -> TrustMark:
    from tintype.trust.trustmark import open_trustmark

    return open_trustmark(folder)
