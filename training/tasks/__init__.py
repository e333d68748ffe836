"""What the trainer does for each model family: a module of it here has ``TASK``, its class.

base.py says what a task is. A module is imported when its family is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from luseel_model.errors import ConfigError

if TYPE_CHECKING:
    from .base import Task

#: Families that can be trained; a family's module has its name ('-' and '_' are the same).
TASKS = ("luseel", "lass", "tsel", "id_uss", "multi_clue")


def find_task(family: str) -> type[Task]:
    """The class that trains a model family.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    name = family.replace("-", "_")
    if name in TASKS:
        try:
            return importlib.import_module(f"{__name__}.{name}").TASK
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":  # something that it needs is missing
                raise
    raise ConfigError(f"no training of the family {family!r}; there are: {', '.join(TASKS)}")
