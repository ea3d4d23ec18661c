"""A page as a test reads it, and texts that try to break one."""

from __future__ import annotations

from html.parser import HTMLParser

HOSTILE = (
    '<script>alert("x")</script>',
    "a|b\nc",
    "quote ' and \" and &amp;",
    "\u202eעברית العربية",
    "nul \x00 and half \ud800",
    "`code` *stars* [link](javascript:alert(1)) {{ 7*7 }} </svg></style><img src=x onerror=f()>",
    "漢字かな交じり文の長い長いラベル名でございますがどうでしょうか",
)
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Checks that tags balance, and keeps what is shown."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.shown: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.shown.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.shown).split())
