"""Which format of the store this version reads, and how another one is told from damage. Knows no files.

Another format is not damage: another version of acre-rag reads it. So it is refused by name and never cleaned away.
"""

import re
from pathlib import Path
from typing import Any

from acre_rag.errors import StoreFormatError
from acre_rag.fingerprint import FORMAT

_OURS = re.compile(re.escape(FORMAT.partition("/")[0]) + r"/\d+")


def check_format(found: Any, place: Path) -> None:
    """Refuse what another version wrote; what is no format of a store at all is for the caller to judge.

    Args:
        found: the format that a mark or a manifest names.
        place: the store or the document's folder, for the message.

    Raises:
        StoreFormatError: another format; names both.
    """
    if isinstance(found, str) and _OURS.fullmatch(found) and found != FORMAT:
        raise StoreFormatError(
            f"{place} has the store format {found!r}, and this version of acre-rag reads {FORMAT!r}. Read the "
            "documents anew into a new folder (acre build FILE... --store NEW), or use the version that wrote it."
        )
