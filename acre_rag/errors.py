"""Every error a user can meet. Each message names the cause and the remedy; this file knows nothing else."""

from pathlib import Path


class AcreError(ValueError):
    """Base of all errors that a user can cause and mend."""


class ConfigError(AcreError):
    """An option is out of range, or options contradict each other."""


class DocumentError(AcreError):
    """A document cannot be read: missing, empty, binary, or of an unknown format."""


class CapacityError(AcreError):
    """A document or question does not fit the window; the message states both numbers."""


class ModelError(AcreError):
    """A model cannot be found or loaded."""


class UnsupportedModelError(ModelError):
    """A model loads, but its attention cannot be split into two layers of cache; the message says why."""


class AdapterError(AcreError):
    """A learned-L1 adapter or checkpoint is damaged, has left-over tensors, or belongs to another model."""


class CalibrationError(AcreError):
    """Retrieval heads cannot be found, or a heads file does not fit the model."""


class TrainingDataError(AcreError):
    """Training data cannot be read or built: a missing file, an unknown form, a damaged shard."""


class BusyError(AcreError):
    """Too many requests are waiting for the model."""


class DeadlineError(AcreError, TimeoutError):
    """A request was not done within its `timeout_s`; its work was stopped."""


class StoreError(AcreError):
    """A store cannot be read or written: no room, no permission, not a store."""


class CorruptCacheError(StoreError):
    """A stored cache is damaged; the message names the file and how to build it anew.

    Args:
        message: what the user reads.
        folder: of the damaged document; `None` where the message names several.
    """

    def __init__(self, message: str, folder: Path | None = None) -> None:
        super().__init__(message)
        self.folder = folder


class StoreFormatError(StoreError):
    """A store or a stored document has the format of another version; the message names both formats."""


class FingerprintError(StoreError):
    """A stored cache was built by another model or with other options; the message names what differs."""


class UnavailableError(AcreError):
    """A system cannot run here: it needs CUDA, or weights that are not on the machine; the message says which."""


class UnsupportedFeatureError(AcreError, NotImplementedError):
    """The model cannot do what a framework asks of other models; the message names another way."""


class EvaluationError(AcreError):
    """A data set, a run file or a report cannot be read or written; the message names file and line."""


class MissingExtraError(AcreError):
    """An optional dependency is needed; the message gives the install command."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed. "
            f"Install it with: pip install 'acre-rag[{extra}]'"
        )
