"""Texts on which tokenizers and lowered graphs like to disagree; every compile checks them."""

NASTY = (
    "",
    " ",
    "a",
    "我的卡丢了, where is it?",
    "繁體中文，全形標點。１２３",
    "emoji 😀👩‍👩‍👧 flags 🇫🇷 skin 👍🏽",
    "e\u0301 combining a\u0308\u0323 marks, Zalgo Z\u0351\u036b",
    "control \x00\x01\x1b\t\n\r chars",
    "word " * 400,
    " ".join(str(i) for i in range(400)),  # truncated on the wrong side, it is seen
    "[CLS] [SEP] [MASK] <s> </s> <mask> <|endoftext|>",
    "ﬁ ligature ％ full-width Ａ ½ ™",
    "\u200bzero\u200dwidth\ufeff and \u00a0 nbsp \u3000",
    "مرحبا שלום नमस्ते สวัสดี",
    "#12345 $9.99!!! ...  double  spaces",
    "donaudampfschifffahrtsgesellschaftskapitän" * 8,
)
