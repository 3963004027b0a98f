"""Any system of a comparison, by its name or as it is, for the frameworks' adapters. Knows no framework."""

from collections.abc import Collection
from typing import Any

from acre_rag.baselines.base import Pipeline, Setting
from acre_rag.baselines.options import check_options
from acre_rag.baselines.registry import make_system, options_of
from acre_rag.errors import ConfigError
from acre_rag.models import load_decoder


def pipeline_of(system: str | Pipeline, setting: Setting | None, **options: Any) -> Pipeline:
    """The system to ask.

    Args:
        system: a name of `acre_rag.baselines.registry.SYSTEMS`, or a system that is there already.
        setting: model, template and window of a system that is made; the built-in model by default.
        options: of a system that is made.

    Raises:
        ConfigError: no such system or option, or a system that is there already was given another setting.
        UnavailableError: it cannot run here (no CUDA, no weights).
        MissingExtraError: its packages are not installed.
    """
    if isinstance(system, str):
        _check_options(system, options)
        return make_system(system, setting or Setting(decoder=load_decoder()), **options)
    if setting is not None or options:
        raise ConfigError("This system was made with a setting and options of its own: leave them out, or name it.")
    return system


def _check_options(system: str, options: Collection[str]) -> None:
    """Refuse what no system takes before a model is loaded, and show where a model of one's own belongs."""
    known = options_of(system)
    try:
        check_options(system, options, known)
    except ConfigError as error:
        raise ConfigError(f"{error} A model, template or window of your own: setting=Setting(decoder=...).") from error


def model_name(pipeline: Pipeline) -> str:
    """What the user called the model that answers; the system's class where it does not say."""
    return str(getattr(getattr(pipeline, "decoder", None), "name", type(pipeline).__name__))
