"""Limits: how many units may be dead."""

import re
from dataclasses import dataclass

from reludiag.errors import UsageError


@dataclass(frozen=True)
class Limit:
    """How many units may be dead or not finite: a share of all units, or a number."""

    text: str
    value: float
    is_share: bool

    @classmethod
    def parse(cls, text: str, option: str = "--fail-over") -> "Limit":
        """Parse `5%` or `12`; raises UsageError for anything else."""
        number = text.removesuffix("%").strip()
        is_share = text.endswith("%")
        valid = re.fullmatch(r"\d+(\.\d+)?" if is_share else r"\d+", number)
        if not valid or (is_share and float(number) > 100):
            raise UsageError(
                f"{option} {text!r} was given; expected a share from 0% to 100%, such as 5%, "
                "or a number of units, such as 12"
            )
        return cls(text, float(number), is_share)

    @property
    def allows_all(self) -> bool:
        """Whether nothing can exceed it: 100 % of units."""
        return self.is_share and self.value >= 100

    def less_than(self, lost: int, units: int) -> bool:
        """Whether `lost` of `units` exceeds the limit."""
        return lost * 100 > self.value * units if self.is_share else lost > self.value
