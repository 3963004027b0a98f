"""Real files of every format, and every kind of bad file, through `extract`."""

import gzip
import io
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import docx
import pytest
from fpdf import FPDF
from fpdf.enums import EncryptionMethod

from acre_rag.errors import DocumentError, MissingExtraError
from acre_rag.extract import MAX_BYTES, ExtractedText, extract

FRENCH = "Le café est à côté du marché, où l'été s'achève déjà. Ça va très bien."


def write_pdf(path: Path, pages: list[str], **encryption) -> Path:
    pdf = FPDF()
    pdf.set_font("Helvetica", size=12)
    for page in pages:
        pdf.add_page()
        if page:
            pdf.multi_cell(0, 8, page)
    if encryption:
        pdf.set_encryption(owner_password="owner", encryption_method=EncryptionMethod.RC4, **encryption)
    pdf.output(str(path))
    return path


def write_raw_pdf(path: Path, objects: list[bytes], trailer: bytes = b"") -> Path:
    """A PDF of these objects, numbered from 1, of which the first is the catalog."""
    data, table = b"%PDF-1.7\n", b"0000000000 65535 f \n"
    for number, body in enumerate(objects, start=1):
        table += b"%010d 00000 n \n" % len(data)
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    end = b"trailer\n<</Root 1 0 R/Size %d%s>>\nstartxref\n%d\n%%%%EOF\n"
    size = len(objects) + 1
    path.write_bytes(data + b"xref\n0 %d\n%s" % (size, table) + end % (size, trailer, len(data)))
    return path


def write_docx(path: Path) -> Path:
    document = docx.Document()
    document.add_heading("Annual report", level=1)
    document.add_paragraph("The turbine in Ålesund was repaired in May.")
    table = document.add_table(rows=1, cols=2)
    table.rows[0].cells[0].text = "Cost"
    table.rows[0].cells[1].text = "4200 kroner"
    document.save(str(path))
    return path


def write_epub(path: Path, *, mimetype_first: bool = True) -> Path:
    chapters = {
        "one.xhtml": "The storm began at noon.",
        "two.xhtml": "The lighthouse keeper slept until seven.",
    }
    manifest = "".join(f'<item id="{n[:3]}" href="{n}" media-type="application/xhtml+xml"/>' for n in chapters)
    spine = "".join(f'<itemref idref="{n[:3]}"/>' for n in chapters)
    container = '<rootfile full-path="OPS/content.opf" media-type="application/oebps-package+xml"/>'
    namespace = 'xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/"'
    metadata = "<metadata><dc:title>Keepers</dc:title></metadata>"
    package = f"{metadata}<manifest>{manifest}</manifest><spine>{spine}</spine>"
    with zipfile.ZipFile(path, "w") as book:
        if mimetype_first:
            book.writestr("mimetype", "application/epub+zip", zipfile.ZIP_STORED)
        book.writestr("META-INF/container.xml", f"<container><rootfiles>{container}</rootfiles></container>")
        book.writestr("OPS/content.opf", f"<package {namespace}>{package}</package>")
        for name, sentence in chapters.items():
            book.writestr(f"OPS/{name}", f"<html><body><h1>Chapter</h1><p>{sentence}</p></body></html>")
    return path


def refused(source: Path | str, *words: str, stdin: io.BytesIO | None = None) -> DocumentError:
    """The error for `source`; it names the file and holds every word."""
    with pytest.raises(DocumentError) as caught:
        extract(source, stdin=stdin)
    for word in ("stdin" if source == "-" else Path(source).name, *words):
        assert word in str(caught.value)
    return caught.value


# Plain text and its encodings


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.rst", "a.csv", "a.py", "server.log", "README", "v1.2.final"])
def test_text_of_any_extension_is_kept_as_it_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"# Title\n\n\n\n*one*,  two\t<b>three</b>\n")
    assert extract(path) == ExtractedText(name, "# Title\n\n\n\n*one*,  two\t<b>three</b>\n")
    assert extract(str(path)) == extract(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
@pytest.mark.parametrize("suffix", [".txt", ".html"])
def test_encodings(tmp_path: Path, encoding: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(FRENCH.encode(encoding))
    assert extract(path).text == FRENCH


@pytest.mark.parametrize("mark,encoding", [(b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")])
def test_utf_16_of_both_byte_orders_even_cut_short(tmp_path: Path, mark: bytes, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(mark + FRENCH.encode(encoding) + b"\x41")
    assert extract(path).text == FRENCH + "\ufffd"


@pytest.mark.parametrize("damage", [b"\xff end", b"\xe9t\xe9", "—".encode()[:2]])
def test_a_few_broken_bytes_do_not_spoil_utf_8(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "a.txt"
    text = "A plain sentence. " * 500 + "“Hello”, he said — in the café. " + "A plain sentence. " * 500
    path.write_bytes(text.encode() + damage)
    assert extract(path).text == text + damage.decode(errors="replace")


@pytest.mark.parametrize(
    "encoding,text",
    [
        ("cp1251", "Все люди рождаются свободными и равными в своем достоинстве и правах. "),
        ("cp1250", "Zażółć gęślą jaźń. Każdy człowiek ma prawo do życia, wolności i bezpieczeństwa. "),
        ("gb18030", "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心。"),
        ("koi8-r", "Все люди рождаются свободными и равными в своем достоинстве и правах. "),
        ("shift_jis", "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。"),
    ],
)
def test_other_encodings_are_guessed(tmp_path: Path, encoding: str, text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes((text * 20).encode(encoding))
    assert extract(path).text == text * 20


def test_line_ends_become_line_feeds(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\ntwo\rthree\n\r\nfour")
    assert extract(path).text == "one\ntwo\nthree\n\nfour"


def test_form_feeds_part_pages(tmp_path: Path) -> None:
    path = tmp_path / "rfc.txt"
    path.write_bytes(b"first\r\n\fsecond\n\f\fthe fourth\n\f")
    document = extract(path)
    assert document.page_starts == (0, 7, 15, 16)
    assert [document.page_at(document.text.index(word)) for word in ("first", "second", "fourth")] == [
        1,
        2,
        4,
    ]
    assert document.page_at(6) == 1  # the form feed belongs to the page that it closes
    assert document.page_at(7) == 2
    path.write_bytes(b"the only page\f\n")
    assert extract(path).page_starts == (0,)


def test_text_without_pages_has_no_page_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"text")
    assert extract(path).page_starts == ()
    assert extract(path).page_at(0) is None


def test_stdin() -> None:
    assert extract("-", stdin=io.BytesIO(b"piped\ntext")) == ExtractedText("stdin", "piped\ntext")
    assert extract(Path("-"), stdin=io.BytesIO(b"<!DOCTYPE html><p>a <b>page</b>")).text == "a **page**"


def test_stdin_of_the_process() -> None:
    code = "from acre_rag.extract import extract; print(extract('-').text)"
    run = subprocess.run([sys.executable, "-c", code], input="piped".encode("utf-16"), capture_output=True)
    assert run.stdout.decode().strip() == "piped", run.stderr.decode()


@pytest.mark.parametrize("name", ["a.txt.gz", "a.TXT.GZ", "a.gz", "packed"])
def test_gzip(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"packed\r\ntext"))
    assert extract(path) == ExtractedText(name, "packed\ntext")


def test_gzip_of_another_format(tmp_path: Path) -> None:
    for name in ("a.html.gz", "A.HTM.GZ"):
        (tmp_path / name).write_bytes(gzip.compress(b"<p>a <b>page</b></p>"))
        assert extract(tmp_path / name).text == "a **page**"


# Documents


def test_pdf_pages(tmp_path: Path) -> None:
    pages = [f"Page {i}: the {word} stands here." for i, word in enumerate(["fox", "owl", "elk"], start=1)]
    document = extract(write_pdf(tmp_path / "zoo.pdf", [*pages[:2], "", pages[2]]))
    assert document == ExtractedText("zoo.pdf", "\n\n".join([*pages[:2], "", pages[2]]), document.page_starts)
    assert [document.text[start:][:6] for start in document.page_starts] == [
        "Page 1",
        "Page 2",
        "\n\nPage",
        "Page 3",
    ]
    assert [document.page_at(document.text.index(word)) for word in ("fox", "owl", "elk")] == [1, 2, 4]
    assert document.page_at(document.page_starts[1] - 1) == 1
    assert document.page_at(document.page_starts[1]) == 2
    assert document.page_at(len(document.text)) == 4


def test_pdf_that_forbids_only_changes_is_read(tmp_path: Path) -> None:
    assert "open to all" in extract(write_pdf(tmp_path / "a.pdf", ["open to all"], user_password="")).text


def test_pdf_whose_font_table_names_half_a_character(tmp_path: Path) -> None:
    table = b"1 begincodespacerange <00> <FF> endcodespacerange 1 beginbfchar <41> <D835> endbfchar"
    page = b"BT /F1 12 Tf 72 700 Td (A BCD) Tj ET"
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>\nstream\n%s\nendstream" % (len(page), page),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/ToUnicode 6 0 R>>",
        b"<</Length %d>>\nstream\n%s\nendstream" % (len(table), table),
    ]
    assert extract(write_raw_pdf(tmp_path / "a.pdf", objects)).text.encode() == "\ufffd BCD".encode()


def test_docx(tmp_path: Path) -> None:
    document = extract(write_docx(tmp_path / "report.docx"))
    assert document.text.startswith("# Annual report\n\nThe turbine in Ålesund was repaired in May.\n")
    assert "4200 kroner" in document.text
    assert document.page_starts == ()


def test_epub(tmp_path: Path) -> None:
    text = extract(write_epub(tmp_path / "book.epub")).text
    assert text.index("Keepers") < text.index("began at noon") < text.index("slept until seven")
    assert extract(write_epub(tmp_path / "sloppy.epub", mimetype_first=False)).text == text


def test_html(tmp_path: Path) -> None:
    path = tmp_path / "page.htm"
    path.write_bytes(
        b"<html><head><title>T</title><script>var hidden = 1;</script><style>p {}</style></head>"
        b"<body><h2>Head</h2>\r\n\r\n\r\n\r\n<p>One <em>two</em>.</p><br/><br/><br/><p>Three.</p></body>"
    )
    assert extract(path).text == "## Head\n\nOne *two*.\n\nThree."


def test_html_in_the_encoding_that_it_declares(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    for encoding, text in {
        "iso-8859-15": "10 €",
        "iso-8859-2": "Łódź, Kraków",
        "iso-8859-4": "Tēja ļoti",
    }.items():
        path.write_bytes(f'<meta charset="{encoding}"><p>{text}</p>'.encode(encoding))
        assert extract(path).text == text
    path.write_bytes(b'<meta charset="no-such-code"><p>' + FRENCH.encode("latin-1"))
    assert extract(path).text == FRENCH


def test_content_outranks_a_wrong_or_absent_extension(tmp_path: Path) -> None:
    makers = {"pdf": lambda path: write_pdf(path, ["A page."]), "docx": write_docx, "epub": write_epub}
    for kind, make in makers.items():
        expected = extract(make(tmp_path / f"right.{kind}"))
        for name in ("bare", "wrong.txt", "wrong.html", "wrong.pdf", "wrong.docx", "wrong.epub"):
            found = extract(make(tmp_path / name))
            assert (found.text, found.page_starts) == (expected.text, expected.page_starts)
        data = io.BytesIO((tmp_path / f"right.{kind}").read_bytes())
        assert extract("-", stdin=data) == ExtractedText("stdin", expected.text, expected.page_starts)


# What is refused


def test_missing_file(tmp_path: Path) -> None:
    assert isinstance(refused(tmp_path / "no.txt", "No such file", str(tmp_path), "exists").__cause__, OSError)


def test_directory(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder", f"{tmp_path}/*.txt")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of POSIX")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "secret.txt"
    path.write_text("secret")
    path.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root may read everything
        refused(path, "Permission denied", "may read")
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("name", ["a.txt", "a.pdf", "a.docx", "a"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    refused(tmp_path / name, "is empty (0 bytes)")
    refused("-", "is empty", stdin=io.BytesIO())


@pytest.mark.parametrize("name,data", [("a.txt", b" \r\n\t\f\n"), ("a.html", b"<p> </p><script>x()</script>")])
def test_white_space_alone(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    refused(tmp_path / name, "white space", "Give a file")
    (tmp_path / "empty.gz").write_bytes(gzip.compress(b""))
    refused(tmp_path / "empty.gz", "white space")


def test_docx_without_text(tmp_path: Path) -> None:
    docx.Document().save(str(tmp_path / "blank.docx"))
    refused(tmp_path / "blank.docx", "white space or pictures")


def test_scanned_pdf(tmp_path: Path) -> None:
    refused(write_pdf(tmp_path / "scan.pdf", ["", " "]), "no text layer", "(2)", "scanned", "OCR")


@pytest.mark.parametrize("suffix", [".txt", ".html", ""])
def test_binary_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo{suffix}"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + random.Random(0).randbytes(5000))
    refused(path, "binary", "NUL", "Convert it", ".docx")
    path.write_bytes(b"\xff\xfe" + random.Random(0).randbytes(2_000_000))
    refused(path, "binary")


def test_zip_of_an_unknown_format(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("notes.txt", "text " * 100)
    refused(tmp_path / "a.zip", "binary", "unknown format")


def test_utf_16_without_a_mark_is_told_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(FRENCH.encode("utf-16-le"))
    refused(tmp_path / "a.txt", "save it as UTF-8")


def test_undecodable_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(byte or 1 for byte in random.Random(0).randbytes(5000)))
    refused(tmp_path / "a.txt", "not in UTF-8", "Save text as UTF-8")


@pytest.mark.parametrize("kind", ["pdf", "docx", "epub"])
def test_damaged_document(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    makers = {"pdf": lambda path: write_pdf(path, ["A page."]), "docx": write_docx, "epub": write_epub}
    whole = makers[kind](path).read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:20], b"plain words\n" * 20, b"\0\x01\x02" * 100):
        path.write_bytes(damaged)
        error = refused(path, "damaged", kind.upper(), "again")
        assert error.__cause__ is not None


@pytest.mark.parametrize("kind,part", [("docx", "word/document.xml"), ("epub", "OPS/content.opf")])
def test_document_with_a_damaged_part(tmp_path: Path, kind: str, part: str) -> None:
    path = {"docx": write_docx, "epub": write_epub}[kind](tmp_path / f"whole.{kind}")
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / f"a.{kind}", "w") as damaged:
        for name in whole.namelist():
            data = whole.read(name)
            damaged.writestr(name, data[: len(data) // 2] if name == part else data)
    refused(tmp_path / f"a.{kind}", "damaged", kind.upper())


def test_damaged_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    packed = gzip.compress(random.Random(0).randbytes(5000).hex().encode())
    for damaged in (packed[:2000], packed[:20] + b"\xff" * 200 + packed[220:], packed[:-8] + bytes(8)):
        path.write_bytes(damaged)
        refused(path, "damaged", "gzip")


def test_encrypted_pdf(tmp_path: Path) -> None:
    error = refused(write_pdf(tmp_path / "a.pdf", ["secret"], user_password="pw"), "is encrypted", "qpdf")
    assert "damaged" not in str(error)


def test_pdf_encrypted_with_aes(tmp_path: Path) -> None:
    keys = b"/U<%s>/O<%s>/UE<%s>/OE<%s>/Perms<%s>" % tuple(b"00" * n for n in (48, 48, 32, 32, 16))
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[]/Count 0>>",
        b"<</Filter/Standard/V 5/R 6/Length 256/P -4/StmF/StdCF/StrF/StdCF"
        b"/CF<</StdCF<</CFM/AESV3/Length 32>>>>" + keys + b">>",
    ]
    path = write_raw_pdf(tmp_path / "a.pdf", objects, b"/Encrypt 3 0 R/ID[<00><00>]")
    refused(path, "is encrypted", "qpdf")


def test_too_large_file(tmp_path: Path) -> None:
    path = tmp_path / "huge.txt"
    with path.open("wb") as stream:
        stream.truncate(MAX_BYTES + 100)
    refused(path, f"{MAX_BYTES + 100:,}", f"{MAX_BYTES:,}", "Split")
    with path.open("rb") as stream:
        refused("-", f"{MAX_BYTES + 1:,}", f"{MAX_BYTES:,}", stdin=stream)


def test_decompression_bomb(tmp_path: Path) -> None:
    block = bytes(2**20)
    gz, word = tmp_path / "bomb.txt.gz", write_docx(tmp_path / "bomb.docx")
    with (
        gzip.open(gz, "wb", compresslevel=1) as packed,
        zipfile.ZipFile(word, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("word/media/image1.png", "w") as entry,
    ):
        for _ in range(MAX_BYTES // len(block) + 1):
            packed.write(block)
            entry.write(block)
    assert max(gz.stat().st_size, word.stat().st_size) < MAX_BYTES // 50
    refused(gz, f"{MAX_BYTES:,}", "Split")
    refused(word, f"{MAX_BYTES:,}", "Split")


# Packages that are absent


@pytest.mark.parametrize(
    "kind,module",
    [
        ("pdf", "pypdf"),
        ("docx", "markitdown"),
        ("docx", "mammoth"),
        ("epub", "markitdown"),
        ("html", "markitdown"),
    ],
)
def test_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, module: str) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(b"<p>text</p>")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"(?i)Reading {kind}.*pip install 'acre-rag\[documents\]'"):
        extract(path)


def test_text_needs_no_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("markitdown", "pypdf", "mammoth", "bs4", "charset_normalizer"):
        monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / "a.txt"
    path.write_bytes(FRENCH.encode())
    assert extract(path).text == FRENCH
    path.write_bytes(FRENCH.encode("latin-1"))
    refused(path, "not in UTF-8", "Save it as UTF-8", "pip install 'acre-rag[documents]'")


def test_import_is_light() -> None:
    code = "import sys, acre_rag.extract; print([m for m in ('markitdown', 'pypdf') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr
