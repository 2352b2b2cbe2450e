"""The errors a user of dreamloop may meet; each message is one line that says what to do.

The command line prints the message of a `DreamloopError` and exits with status 2; any other
exception is a defect of ours and keeps its traceback.
"""

from __future__ import annotations


class DreamloopError(Exception):
    """Something the caller can put right: a bad world, a bad action, an engine that cannot run."""


class WorldError(DreamloopError):
    """A world folder or its specification was refused; nothing was loaded."""


class ActionError(DreamloopError):
    """An action that the world does not know; the session is as it was."""


class EngineError(DreamloopError):
    """An engine that cannot run here; the message holds the reason and what would bring it."""


class GameError(DreamloopError):
    """A real game (needed to record and to evaluate) that is unknown or not installed."""
