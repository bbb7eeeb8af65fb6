"""Small files in the formats that offices and publishers use, made here from their parts."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence

HTML = b"""<html><head><title>Herons</title></head><body><h1>Herons</h1><p>They stand in water.</p>
<h2>Food</h2><p>Fish and frogs.</p><script>var hidden = 1;</script></body></html>"""

_W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
_TYPES = '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">{}</Types>'
_RELATIONS = '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{}</Relationships>'


def zipped(**parts: str) -> bytes:
    """Returns a zip archive of files with these contents."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return out.getvalue()


def docx(*paragraphs: tuple[str, str]) -> bytes:
    """Returns a Word file of (style, text): `Heading1` or empty."""
    body = "".join(
        f'<w:p><w:pPr><w:pStyle w:val="{style}"/></w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>'
        for style, text in paragraphs
    )
    styles = "".join(
        f'<w:style w:type="paragraph" w:styleId="Heading{i}"><w:name w:val="heading {i}"/></w:style>' for i in (1, 2)
    )
    main = "application/vnd.openxmlformats-officedocument.wordprocessingml"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    return zipped(
        **{
            "[Content_Types].xml": _TYPES.format(
                '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
                f'<Override PartName="/word/document.xml" ContentType="{main}.document.main+xml"/>'
                f'<Override PartName="/word/styles.xml" ContentType="{main}.styles+xml"/>'
            ),
            "_rels/.rels": _RELATIONS.format(
                f'<Relationship Id="r1" Type="{office}/officeDocument" Target="word/document.xml"/>'
            ),
            "word/_rels/document.xml.rels": _RELATIONS.format(
                f'<Relationship Id="r1" Type="{office}/styles" Target="styles.xml"/>'
            ),
            "word/styles.xml": f"<w:styles {_W}>{styles}</w:styles>",
            "word/document.xml": f"<w:document {_W}><w:body>{body}</w:body></w:document>",
        }
    )


def epub(title: str, *chapters: str) -> bytes:
    """Returns an EPUB of chapters as XHTML bodies."""
    items = "".join(
        f'<item id="c{i}" href="c{i}.xhtml" media-type="application/xhtml+xml"/>' for i in range(len(chapters))
    )
    spine = "".join(f'<itemref idref="c{i}"/>' for i in range(len(chapters)))
    names = 'xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/"'
    metadata = f"<metadata><dc:title>{title}</dc:title></metadata>"
    package = f'<package {names} version="3.0">{metadata}<manifest>{items}</manifest><spine>{spine}</spine></package>'
    container = (
        '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="content.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
    )
    bodies = {f"c{i}.xhtml": f"<html><body>{chapter}</body></html>" for i, chapter in enumerate(chapters)}
    return zipped(
        **{"mimetype": "application/epub+zip", "META-INF/container.xml": container, "content.opf": package, **bodies}
    )


def pdf(pages: Sequence[str]) -> bytes:
    """Returns a PDF with a line of text on each page, or with a table: lines of `a|b|c`."""
    objects = ["<</Type/Catalog/Pages 2 0 R>>", ""]
    kids = []
    for text in pages:
        cells = [
            (72 + 160 * column, 720 - 20 * line, cell)
            for line, row in enumerate(text.split("\n"))
            for column, cell in enumerate(row.split("|"))
        ]
        stream = " ".join(f"BT /F1 12 Tf {x} {y} Td ({cell}) Tj ET" for x, y, cell in cells)
        first = len(objects) + 1
        kids.append(f"{first} 0 R")
        objects.append(
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents {first + 1} 0 R/Resources<</Font<</F1"
            "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>>>>>"
        )
        objects.append(f"<</Length {len(stream)}>>stream\n{stream}\nendstream")
    objects[1] = f"<</Type/Pages/Count {len(pages)}/Kids[{' '.join(kids)}]>>"
    out, offsets = b"%PDF-1.4\n", []
    for i, content in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{i} 0 obj{content}\nendobj\n".encode()
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    trailer = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer<</Size {len(objects) + 1}/Root 1 0 R>>"
    return out + f"{trailer}\nstartxref\n{len(out)}\n%%EOF\n".encode()


def pptx(slides: Sequence[tuple[str, str]]) -> bytes:
    """Returns a presentation of (title, text)."""
    from pptx import Presentation

    deck = Presentation()
    for title, text in slides:
        slide = deck.slides.add_slide(deck.slide_layouts[1])
        slide.shapes.title.text, slide.placeholders[1].text = title, text
    out = io.BytesIO()
    deck.save(out)
    return out.getvalue()


def xlsx(**sheets: Sequence[Sequence[object]]) -> bytes:
    """Returns a workbook; each sheet a list of rows."""
    from openpyxl import Workbook

    book = Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(list(row))
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()
