"""What all groups of options have in common. Each stands beside the code that it steers, and lists its own rules."""

from __future__ import annotations

import math

from support.errors import UserError


class Settings:
    """Base of frozen dataclasses of options. Their `rules()` are {what to say if it does not hold: does it hold?}.

    p2o.Config inherits from every group, so it can be handed on whole wherever one of them is asked for. An object
    that breaks a rule is never made: UserError says in one line which option, and what it may be.
    """

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, float) and math.isnan(value):  # every comparison with it is false, and no rule sees it
                raise UserError(f"--{name.replace('_', '-')} {value}: not a number")
        for group in type(self).__mro__:
            for complaint, holds in vars(group).get("rules", lambda _: {})(self).items():
                if not holds:
                    raise UserError(complaint)
