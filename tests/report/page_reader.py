"""Reads a page as a strict browser would: complains about what is not balanced, and finds tables and texts."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """elements: (tag, attributes, depth) in order; texts: of whole elements by their index."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, int]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.parents: list[int] = []
        self.doctype = ""
        self.feed(source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_decl(self, decl: str) -> None:
        self.doctype = decl

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute is given twice in <{tag}>"
        self.parents.append(self.open[-1][1] if self.open else -1)
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")
        if tag not in VOID:
            self.open.append((tag, len(self.elements) - 1))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1][0] == tag, f"</{tag}> closes <{self.open[-1][0]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for _, index in self.open:
            self.texts[index] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def values(self, *names: str) -> list[str]:
        """All values of these attributes."""
        return [value for _, attributes in self.elements for name in names if (value := attributes.get(name))]

    def text(self, tag: str) -> list[str]:
        """What elements of a kind say, spaces folded."""
        return [
            " ".join(text.split()) for (name, _), text in zip(self.elements, self.texts, strict=True) if name == tag
        ]

    def within(self, index: int, ancestor: int) -> bool:
        while index not in (-1, ancestor):
            index = self.parents[index]
        return index == ancestor

    def table(self, name: str) -> dict[str, dict[str, str]]:
        """A table by its id: row heading -> column heading -> cell."""
        (place,) = [index for index, (_, attributes) in enumerate(self.elements) if attributes.get("id") == name]
        inside = [index for index in range(place, len(self.elements)) if self.within(index, place)]
        rows: dict[int, list[str]] = {}
        for index in inside:
            if self.elements[index][0] in ("th", "td"):
                rows.setdefault(self.parents[index], []).append(" ".join(self.texts[index].split()))
        head, *body = rows.values()
        assert all(len(row) == len(head) for row in body), f"{name} is ragged"
        return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in body}

    def grid(self, name: str) -> dict[tuple[str, str], list[str]]:
        """A table in which a heading may stand before several rows: (heading, row heading) -> cells."""
        (place,) = [index for index, (_, attributes) in enumerate(self.elements) if attributes.get("id") == name]
        found: dict[tuple[str, str], list[str]] = {}
        label, waiting = "", 0
        for row in [i for i, (tag, _) in enumerate(self.elements) if tag == "tr" and self.within(i, place)][1:]:
            inside = [index for index, parent in enumerate(self.parents) if parent == row]
            heads = [index for index in inside if self.elements[index][0] == "th"]
            if not waiting:
                label, waiting = self.texts[heads[0]], int(self.elements[heads[0]][1].get("rowspan") or 1)
                heads = heads[1:]
            waiting -= 1
            key = label, "".join(self.texts[index] for index in heads)
            assert key not in found, f"{name} has {key} twice"
            found[key] = [self.texts[index] for index in inside if self.elements[index][0] == "td"]
        assert not waiting, f"a heading of {name} reaches beyond the last row"
        return found
