"""What all groups of options have in common. Each group stands beside the code that it steers."""

from __future__ import annotations

import math

from support.errors import UserError


def require(holds: bool, complaint: str) -> None:
    """Refuse options that make no sense: UserError with the complaint, which names the option and what it may be."""
    if not holds:
        raise UserError(complaint)


def at_least(least: int, settings: Settings, *options: str) -> None:
    """Refuse each of these options that is below `least`."""
    for name in options:
        value = getattr(settings, name)
        require(least <= value < math.inf, f"--{name.replace('_', '-')} {value}: at least {least}")


class Settings:
    """Base of the frozen dataclasses of options.

    p2o.Config inherits from every group, so one object is handed on whole wherever one of them is asked for. A group
    states its rules in `__post_init__`, and calls `super().__post_init__()`, which reaches the next group. So a Config
    that breaks a rule is never made.
    """

    def __post_init__(self) -> None:
        """The end of the chain. Every comparison with NaN is false, so no rule would see one."""
        for name, value in vars(self).items():
            if isinstance(value, float) and math.isnan(value):
                raise UserError(f"--{name.replace('_', '-')} {value}: not a number")
