"""The top-level packages of this distribution, and packages of others that hide them.

The distribution installs `golden`, `rtl` and `sim` beside `kvtq_hw`. These names are short, so a
folder or a file of the user's may have one of them. Python takes whichever comes first in
``sys.path``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from kvtq_hw.contract.errors import UserError

__all__ = ["check_packages"]

_PACKAGES = ("golden", "rtl", "sim")


def check_packages() -> None:
    """Check that Python finds this distribution's packages under their names.

    Raises
    ------
    UserError
        When another package or module has one of the names.
    """
    home = Path(__file__).resolve().parents[2]
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        expected = home / name / "__init__.py"
        if spec is None:  # nothing hides what is not there
            continue
        if spec.origin is None or Path(spec.origin).resolve() != expected:
            raise UserError(
                f"package {name!r}: Python finds {spec.origin or 'a folder without __init__.py'!r} "
                f"instead of {str(expected)!r}; rename the other one, or run in another folder"
            )
