"""Which options there are; how answers are decoded and paced, in LangChain's names. Knows no messages, no documents."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Self

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list
from pydantic import BaseModel, model_validator

from acre_rag import ACRE, GenerationSettings
from acre_rag.errors import ConfigError

_PER_CALL = ("max_tokens", "temperature", "top_p", "top_k", "stop", "seed", "timeout")
_BATCHES_IN_FLIGHT = 2


class KnownOptions(BaseModel):
    """Refuses an option that no field knows: LangChain's own base classes swallow it, and the default holds in silence.

    Attributes:
        tolerated: names that LangChain passes to every component of a kind, whether or not they mean anything there.
        elsewhere: what to do with an option that belongs to a part of the component; ends the message.
    """

    tolerated: ClassVar[Collection[str]] = ()
    elsewhere: ClassVar[str] = ""

    def __init__(self, **options: Any) -> None:
        self.check_options(options)
        super().__init__(**options)

    @classmethod
    def check_options(cls, options: Collection[str]) -> None:
        """Refuse what is no field; makers that read documents first ask before that.

        Raises:
            ConfigError: an unknown option.
        """
        if unknown := sorted(set(options) - cls.model_fields.keys() - set(cls.tolerated)):
            there_are = ", ".join(cls.model_fields)
            raise ConfigError(f"{unknown[0]!r} is no option of {cls.__name__}; there are: {there_are}.{cls.elsewhere}")


class DecodingOptions(KnownOptions):
    """Fields of every component that decodes; each may also be given with a single call.

    Attributes:
        max_tokens: most tokens of an answer.
        temperature: 0 decodes greedily; higher samples.
        top_p: nucleus of the samples.
        top_k: most candidates of a sample; 0 for all.
        stop: strings that end an answer.
        seed: makes sampling repeatable.
        timeout: most seconds of waiting and answering.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: list[str] | None = None
    seed: int | None = None
    timeout: float | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.decoding()
        return self

    def decoding(self, given: Mapping[str, Any] | None = None) -> tuple[GenerationSettings, float | None]:
        """The engine's settings and the deadline of one call.

        Args:
            given: options of this call alone; `None` values leave the field's.

        Raises:
            ConfigError: out of range, or no option of that name.
        """
        own = {name: value for name, value in (given or {}).items() if value is not None}
        if unknown := sorted(own.keys() - set(_PER_CALL)):
            raise ConfigError(f"Unknown options: {', '.join(unknown)}. A call may take {', '.join(_PER_CALL)}.")
        chosen = {name: own.get(name, getattr(self, name)) for name in _PER_CALL}
        stop = chosen["stop"] or ()
        settings = GenerationSettings(
            max_new_tokens=chosen["max_tokens"],
            temperature=chosen["temperature"],
            top_p=chosen["top_p"],
            top_k=chosen["top_k"],
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            seed=chosen["seed"],
        )
        return settings, chosen["timeout"]

    def decoding_fields(self) -> dict[str, Any]:
        """These fields with their values."""
        return {name: getattr(self, name) for name in _PER_CALL}


def at_once(acre: ACRE) -> int:
    """Questions of a batch to send to an engine at a time: two of its own batches.

    One is decoded while the next gathers; more would only fill the line that other callers wait in.
    """
    return _BATCHES_IN_FLIGHT * acre.decoder.worker.max_batch


def paced(config: RunnableConfig | list[RunnableConfig] | None, n_inputs: int, most: int) -> list[RunnableConfig]:
    """The configuration of each input of a batch: `most` at a time, unless it says otherwise."""
    return [
        each if each.get("max_concurrency") else {**each, "max_concurrency": most}
        for each in get_config_list(config, n_inputs)
    ]
