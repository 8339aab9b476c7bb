"""The errors of EFM: one exception class for every reason code of `efm_msgs/msg/Reason`.

A message says what was expected, what was found, where, and what to do next. The code travels in results
and statuses, so that a program can react without reading the message. Nothing here logs or retries.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum
from typing import ClassVar

# Exit code of a node whose parameters, or the files they name, were refused: it would say the same again.
EXIT_REFUSED = 2


class Reason(IntEnum):
    """The constants of `efm_msgs/msg/Reason.msg`, without their prefix REASON_."""

    UNSET = 0
    OK = 1
    CANCELLED = 2
    NOT_ACTIVE = 3
    BUSY = 4
    BAD_REQUEST = 5
    TIMEOUT = 6
    INTERNAL = 7
    EMBODIMENT_INVALID = 20
    EMBODIMENT_MISMATCH = 21
    OBSERVATION_INVALID = 22
    BUNDLE_INVALID = 40
    BUNDLE_TAMPERED = 41
    BUNDLE_UNUSABLE = 42
    BUNDLE_UNKNOWN = 43
    EPISODE_INVALID = 60
    EPISODE_TRUNCATED = 61
    EPISODE_STALE = 62
    EPISODE_DUPLICATE = 63
    TRANSFER_CORRUPT = 64
    SPOOL_FULL = 65
    SPOOL_LOCKED = 66
    PAUSED = 67
    NOT_FINITE = 80
    STALE_INPUT = 81
    ESTOP = 82
    LIMIT = 83


class EfmError(Exception):
    """Base of all errors that EFM raises on purpose."""

    reason: ClassVar[int] = Reason.INTERNAL


class BadRequest(EfmError):
    """A field of a request is out of range or contradicts another."""

    reason = Reason.BAD_REQUEST


class WaitTimeout(EfmError):
    """A wait passed its deadline; the message names what was waited for."""

    reason = Reason.TIMEOUT


class EmbodimentInvalid(EfmError):
    """An embodiment file breaks its schema."""

    reason = Reason.EMBODIMENT_INVALID


class EmbodimentMismatch(EfmError):
    """A bundle or episode was made for another embodiment."""

    reason = Reason.EMBODIMENT_MISMATCH


class ObservationInvalid(EfmError):
    """An image or state has the wrong shape, names or values."""

    reason = Reason.OBSERVATION_INVALID


class BundleInvalid(EfmError):
    """A manifest breaks its schema or a file of the bundle is missing."""

    reason = Reason.BUNDLE_INVALID


class BundleTampered(EfmError):
    """The hash of a bundle's file is not the one in its manifest."""

    reason = Reason.BUNDLE_TAMPERED


class BundleUnusable(EfmError):
    """A model does not load, or its outputs have the wrong shape or are not finite."""

    reason = Reason.BUNDLE_UNUSABLE


class BundleUnknown(EfmError):
    """No bundle of that id is here."""

    reason = Reason.BUNDLE_UNKNOWN


class EpisodeInvalid(EfmError):
    """A recording lacks a topic or contradicts itself."""

    reason = Reason.EPISODE_INVALID


class EpisodeTruncated(EfmError):
    """A recording ends before its summary."""

    reason = Reason.EPISODE_TRUNCATED


class EpisodeStale(EfmError):
    """An episode was recorded with a policy too many versions old."""

    reason = Reason.EPISODE_STALE


class EpisodeDuplicate(EfmError):
    """An episode was already received; the sender may treat it as acknowledged."""

    reason = Reason.EPISODE_DUPLICATE


class TransferCorrupt(EfmError):
    """The parts of a file do not add up to the announced SHA-256; the transfer starts again at offset 0."""

    reason = Reason.TRANSFER_CORRUPT


class SpoolFull(EfmError):
    """The quota of the spool, or its disk, is used up."""

    reason = Reason.SPOOL_FULL


class SpoolLocked(EfmError):
    """Another process owns the spool."""

    reason = Reason.SPOOL_LOCKED


class LearnerPaused(EfmError):
    """The learner takes no episodes now; try again later."""

    reason = Reason.PAUSED


class ActionNotFinite(EfmError):
    """An action was NaN or infinite."""

    reason = Reason.NOT_FINITE


class StaleInput(EfmError):
    """No new observation came within the limit of the watchdog."""

    reason = Reason.STALE_INPUT


class EstopPressed(EfmError):
    """The e-stop is pressed."""

    reason = Reason.ESTOP


class LimitExceeded(EfmError):
    """A safety limit was broken that has no code of its own."""

    reason = Reason.LIMIT


def reason_of(error: BaseException) -> Reason:
    """Returns the code of an error; `Reason.INTERNAL` for any that EFM does not raise on purpose."""
    return Reason(error.reason) if isinstance(error, EfmError) else Reason.INTERNAL


def nearest(word: object, choices: Iterable[str]) -> str:
    """Returns ", did you mean 'x'?" for the choice most like `word`, or "" where none is like it."""
    by_lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(str(word).lower(), list(by_lower), n=1, cutoff=0.6)
    return f", did you mean '{by_lower[found[0]]}'?" if found else ""
