"""The question's template between LlamaIndex's form and the engine's; knows nothing of what precedes a document."""

from llama_index.core.prompts import BasePromptTemplate, PromptTemplate, SelectorPromptTemplate

from acre_rag.errors import ConfigError

QUESTION_TEMPLATE = "question_template"
"""Key of the template in `get_prompts` and `update_prompts`."""

_VARIABLE = "query_str"
_MARK = "\ue000question\ue000"  # private-use characters: no template holds them


def as_llama_index(after: str) -> PromptTemplate:
    """The engine's text after the document, as a LlamaIndex template of `{query_str}`."""
    return PromptTemplate(after.replace("{question}", f"{{{_VARIABLE}}}"))


def from_llama_index(template: BasePromptTemplate) -> str:
    """A LlamaIndex template as the engine's text after the document.

    Args:
        template: a text template whose only open variable is `{query_str}`.

    Raises:
        ConfigError: no place for the question, or a place for something else.
    """
    if isinstance(template, SelectorPromptTemplate):
        template = template.default_template
    if not isinstance(template, PromptTemplate):
        raise ConfigError(
            f"The question's template is text that follows the document inside one message; a "
            f"{type(template).__name__} is not. Use PromptTemplate('... {{query_str}}')."
        )
    if template.function_mappings:
        raise ConfigError("The question's template is fixed once: use partial_format instead of function_mappings.")
    mapped = (template.template_var_mappings or {}).get(_VARIABLE, _VARIABLE)
    open_variables = set(template.template_vars) - template.kwargs.keys() - {mapped}
    if "context_str" in open_variables:
        raise ConfigError(
            "The document comes from its cache and stands before the question: leave {context_str} out of the template."
        )
    if open_variables:
        raise ConfigError(f"Nothing fills {{{sorted(open_variables)[0]}}} in this template; only {{query_str}} is.")
    text = template.format(query_str=_MARK)
    if text.count(_MARK) != 1:
        raise ConfigError(f"The question's template needs {{{_VARIABLE}}} exactly once, to put the question in.")
    return text.replace(_MARK, "{question}")
