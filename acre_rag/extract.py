"""Turns a user's file into text with the offset of each page; knows nothing of tokens, models or answers."""

import codecs
import gzip
import importlib
import io
import re
import sys
import zipfile
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

from acre_rag.errors import DocumentError, MissingExtraError

MAX_BYTES = 256 * 2**20
"""Most bytes that one document may have, packed or unpacked."""


@dataclass(frozen=True)
class ExtractedText:
    """The text of one document, and where its pages begin.

    Attributes:
        name: file name shown to people; "stdin" for standard input.
        text: the whole text, its lines ended by a line feed.
        page_starts: character offset at which page 1, 2, ... starts; empty when the format has no pages.

    """

    name: str
    text: str
    page_starts: tuple[int, ...] = ()

    def page_at(self, offset: int) -> int | None:
        """Page, counted from 1, that holds the character at `offset` (0 or more); None without pages."""
        return bisect_right(self.page_starts, offset) if self.page_starts else None


def extract(source: str | Path, *, stdin: BinaryIO | None = None) -> ExtractedText:
    """Read text, Markdown, HTML, EPUB, Word (.docx) or PDF, gzipped or not; bytes outrank the extension.

    Args:
        source: path of the file; "-" reads standard input.
        stdin: stream that "-" reads; None takes the process's own.

    Raises:
        DocumentError: the file is missing, unreadable, too large, empty, binary, damaged or encrypted.
        MissingExtraError: the format needs a package that is not installed.

    """
    if str(source) == "-":
        name, data = "stdin", _read(sys.stdin.buffer if stdin is None else stdin, "stdin")
    else:
        name, data = Path(source).name, _read_file(Path(source))
    if not data:
        raise DocumentError(f"{name} is empty (0 bytes). Give a file that holds text.")
    if data.startswith(b"\x1f\x8b"):
        with _damage(name, "gzip"), gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            data = _read(stream, name)
    kind = _kind(data, Path(name.lower().removesuffix(".gz")).suffix)
    if kind == "pdf":
        return _read_pdf(data, name)
    text = _clean(_decode(data, name)) if kind == "text" else _read_markup(data, name, kind)
    if not text.strip():
        raise DocumentError(f"{name} holds white space or pictures alone. Give a file that holds text.")
    if "\f" not in text:
        return ExtractedText(name, text)
    # A form feed that only closes the last page opens no new one, hence rstrip.
    return ExtractedText(name, text, (0, *(match.end() for match in re.finditer("\f", text.rstrip()))))


def _read_file(path: Path) -> bytes:
    try:
        _check_size(path.stat().st_size, path.name)
        with path.open("rb") as stream:
            return _read(stream, path.name)
    except IsADirectoryError as error:
        raise DocumentError(f"{path} is a folder. Name its files; a shell does that for you: {path}/*.txt") from error
    except OSError as error:
        remedy = "Give the path of one file that exists and that you may read."
        raise DocumentError(f"{path} cannot be read: {error.strerror or error}. {remedy}") from error


def _read(stream: BinaryIO | gzip.GzipFile, name: str) -> bytes:
    data = stream.read(MAX_BYTES + 1)
    _check_size(len(data), name)
    return data


def _check_size(size: int, name: str) -> None:
    if size > MAX_BYTES:
        raise DocumentError(f"{name} holds {size:,} bytes or more; the limit is {MAX_BYTES:,}. Split it.")


def _kind(data: bytes, suffix: str) -> str:
    """Format of the bytes: pdf, docx, epub, html or text."""
    head = data[:1024].lstrip()
    if head.startswith(b"%PDF-"):
        return "pdf"
    if data.startswith(b"PK\x03\x04"):
        # The EPUB standard wants this entry first and stored as it is, so that it stands at a fixed place.
        if data[30:58] == b"mimetypeapplication/epub+zip":
            return "epub"
        if b"word/document.xml" in data:
            return "docx"
    if suffix in (".html", ".htm", ".xhtml"):
        return "html"
    if not suffix and head.lower().startswith((b"<!doctype html", b"<html")):
        return "html"
    return suffix[1:] if suffix in (".pdf", ".docx", ".epub") else "text"


@contextmanager
def _damage(name: str, kind: str) -> Iterator[None]:
    try:
        yield
    except (DocumentError, MemoryError):
        raise
    except Exception as error:  # parsers raise nearly anything on a broken file, KeyError and zlib.error too
        cause = f"it is damaged, or is no {kind}: {str(error).rstrip('.') or type(error).__name__}"
        remedy = "Save or download it again, or give its text as .txt."
        raise DocumentError(f"{name} cannot be read, {cause}. {remedy}") from error


def _read_pdf(data: bytes, name: str) -> ExtractedText:
    try:
        from pypdf import PdfReader
        from pypdf.errors import DependencyError
    except ImportError as error:
        raise MissingExtraError("pypdf", "documents", "Reading PDF") from error
    with _damage(name, "PDF"):
        try:
            reader = PdfReader(io.BytesIO(data))
            locked = reader.is_encrypted and not reader.decrypt("")
        except DependencyError:  # pypdf leaves AES to a package that no other PDF needs
            locked = True
        if locked:
            raise DocumentError(f"{name} is encrypted. Decrypt a copy: qpdf --decrypt --password=PW IN OUT")
        pages = [_clean(page.extract_text()) for page in reader.pages]
    if not any(page.strip() for page in pages):
        remedy = "it is probably scanned. Run OCR first: ocrmypdf IN OUT"
        raise DocumentError(f"{name} has no text layer on any of its pages ({len(pages)}): {remedy}")
    starts = accumulate((len(page) + len("\n\n") for page in pages[:-1]), initial=0)
    return ExtractedText(name, "\n\n".join(pages), tuple(starts))


def _clean(text: str) -> str:
    """Text without carriage returns, nor the lone surrogates that some PDFs hold and tokenizers reject."""
    return re.sub("\r\n?", "\n", text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _read_markup(data: bytes, name: str, kind: str) -> str:
    try:
        from markitdown import StreamInfo, converters

        importlib.import_module("mammoth" if kind == "docx" else "markitdown")
    except ImportError as error:
        raise MissingExtraError("markitdown[docx]", "documents", f"Reading {kind}") from error
    # One converter alone: MarkItDown.convert would try others next, and read a damaged .docx as plain text.
    converter = getattr(converters, f"{kind.capitalize()}Converter")()
    with _damage(name, kind.upper()):
        if kind == "html":
            data = _decode(data, name).encode()
        else:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                _check_size(sum(entry.file_size for entry in archive.infolist()), name)
        markdown: str = converter.convert(io.BytesIO(data), StreamInfo(extension=f".{kind}")).markdown
    return re.sub(r"\n([ \t]*\n)+", "\n\n", _clean(markdown))


def _decode(data: bytes, name: str) -> str:
    """Text in UTF-16 with a byte order mark, in UTF-8, in the one it declares, or in the likeliest."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        data = data.decode("utf-16", "replace").encode()  # a file cut inside a character is still of use
    if b"\0" in data:
        remedy = "Convert it to .txt, .md, .html, .epub, .docx or .pdf; if it is UTF-16, save it as UTF-8."
        raise DocumentError(f"{name} is a binary file of an unknown format (it holds NUL bytes). {remedy}")
    with suppress(UnicodeDecodeError):
        return data.decode("utf-8-sig")
    text = data.decode("utf-8-sig", "replace")
    # Some broken characters in UTF-8 are better than a guess that misreads all the others.
    if 2 * text.count("\ufffd") < len(text) - len(text.encode("ascii", "ignore")):
        return text
    cause = f"{name} is not in UTF-8, and its encoding cannot be told"
    try:
        from charset_normalizer import from_bytes
    except ImportError as error:
        raise DocumentError(f"{cause}. Save it as UTF-8, or: pip install 'acre-rag[documents]'") from error
    matches = from_bytes(data)  # one match alone when the text declares its encoding, as HTML does
    # For short texts the library ranks Baltic code pages above the Western one, which is far more common.
    guess = next((match for match in matches if match.encoding == "cp1252"), matches.best())
    if guess is None:
        raise DocumentError(f"{cause}. Save text as UTF-8; convert anything else to .docx, .pdf or .txt.")
    return str(guess)
