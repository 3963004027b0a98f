"""A text into an engine, read anew where its stored cache is of no use and the user wishes it. Knows no framework."""

from acre_rag import ACRE, Document
from acre_rag.errors import CorruptCacheError, FingerprintError


def read_text(acre: ACRE, text: str, id: str | None, *, tenant: str, rebuild: bool) -> Document:
    """Read a text once; what is there already is taken as it is.

    Args:
        acre: the engine.
        text: the document.
        id: its name; a digest of the text by default.
        tenant: whose it is.
        rebuild: read it anew when the engine's store has its cache damaged, or from another model or other options;
            else that is an error.

    Raises:
        DocumentError: empty; or the id already names another text.
        CapacityError: too long for the engine's window.
        FingerprintError: the store has its cache, of another model or of other options.
        CorruptCacheError: the store has its cache, damaged.
    """
    try:
        return acre.add(text, id, tenant=tenant)
    except (FingerprintError, CorruptCacheError):
        if not rebuild:
            raise
        return acre.add(text, id, tenant=tenant, rebuild=True)


async def aread_text(acre: ACRE, text: str, id: str | None, *, tenant: str, rebuild: bool) -> Document:
    """`read_text` on an event loop."""
    try:
        return await acre.aadd(text, id, tenant=tenant)
    except (FingerprintError, CorruptCacheError):
        if not rebuild:
            raise
        return await acre.aadd(text, id, tenant=tenant, rebuild=True)
