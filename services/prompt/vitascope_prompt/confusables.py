"""Characters that people read as Latin letters: what `fold` makes of them.

Our own short table of the scripts and signs that serve as disguise; what Unicode itself calls compatible (fullwidth,
mathematical, superscript, circled letters) is left to NFKD. Only judged: a wrong guess never reaches a model.
"""

_PAIRS = {
    # Cyrillic
    "а": "a", "б": "b", "в": "b", "г": "r", "д": "d", "е": "e", "ё": "e", "з": "e", "и": "n", "й": "n", "к": "k",
    "м": "m", "н": "h", "о": "o", "п": "n", "р": "p", "с": "c", "т": "t", "у": "y", "ф": "o", "х": "x", "ц": "u",
    "ч": "y", "ш": "w", "щ": "w", "ь": "b", "я": "r", "є": "e", "і": "i", "ї": "i", "ј": "j", "ѕ": "s", "ѡ": "w",
    "ѵ": "v", "ү": "y", "ұ": "y", "һ": "h", "қ": "k", "ң": "h", "ӏ": "l", "ԁ": "d", "ԍ": "g", "ԛ": "q", "ԝ": "w",
    "ҽ": "e", "ғ": "f", "ө": "o", "ә": "e", "ћ": "h", "ђ": "h", "љ": "jb", "ѐ": "e", "ҳ": "x", "ҫ": "c",
    # Greek
    "α": "a", "β": "b", "γ": "y", "δ": "d", "ε": "e", "ζ": "z", "η": "n", "θ": "o", "ι": "i", "κ": "k", "λ": "l",
    "μ": "u", "ν": "v", "ξ": "e", "ο": "o", "π": "n", "ρ": "p", "σ": "s", "ς": "s", "τ": "t", "υ": "u", "φ": "o",
    "χ": "x", "ω": "w", "ϲ": "c", "ϳ": "j", "ϱ": "p", "ϐ": "b", "Λ": "a", "Η": "h", "Μ": "m", "Ν": "n", "Σ": "e",
    "Υ": "y",
    # Armenian, Hebrew, Georgian and others that are taken for single letters
    "ա": "w", "զ": "q", "հ": "h", "յ": "j", "ո": "n", "ռ": "n", "ս": "u", "ց": "g", "ք": "p", "օ": "o", "լ": "l",
    "ե": "t", "է": "e", "ס": "o", "ו": "l", "ט": "u", "ი": "o", "ძ": "d", "ყ": "y", "ᴑ": "o", "ᑕ": "c", "ᗪ": "d",
    "ᗩ": "a", "ᗷ": "b", "ᗴ": "e", "ᖴ": "f", "ᕼ": "h", "ᒍ": "j", "ᒪ": "l", "ᗰ": "m", "ᑎ": "n", "ᑭ": "p", "ᖇ": "r",
    "ᑌ": "u", "ᐯ": "v", "ᗯ": "w", "᙭": "x", "ℓ": "l", "℮": "e",
    # Cherokee (casefolds to its capitals)
    "Ꭰ": "d", "Ꭱ": "r", "Ꭲ": "t", "Ꭵ": "i", "Ꭺ": "a", "Ꭻ": "j", "Ꭼ": "e", "Ꮃ": "w", "Ꮇ": "m", "Ꮋ": "h", "Ꮐ": "g",
    "Ꮓ": "z", "Ꮖ": "i", "Ꮞ": "4", "Ꮢ": "r", "Ꮤ": "w", "Ꮥ": "s", "Ꮩ": "v", "Ꮪ": "s", "Ꮮ": "l", "Ꮯ": "c", "Ꮲ": "p",
    "Ꮶ": "k", "Ᏼ": "b",
    # Latin beyond ASCII that has no decomposition
    "æ": "ae", "œ": "oe", "ø": "o", "đ": "d", "ð": "d", "ħ": "h", "ı": "i", "ĸ": "k", "ł": "l", "ŋ": "n", "þ": "p",
    "ŧ": "t", "ƀ": "b", "ƃ": "b", "ƈ": "c", "ƌ": "d", "ƒ": "f", "ƙ": "k", "ƚ": "l", "ƞ": "n", "ƥ": "p", "ƭ": "t",
    "ƴ": "y", "ƶ": "z", "ǝ": "e", "ǥ": "g", "ȼ": "c", "ɇ": "e", "ɉ": "j", "ɍ": "r", "ɏ": "y", "ɐ": "a", "ɑ": "a",
    "ɓ": "b", "ɔ": "o", "ɕ": "c", "ɖ": "d", "ɗ": "d", "ə": "e", "ɛ": "e", "ɜ": "e", "ɠ": "g", "ɡ": "g", "ɢ": "g",
    "ɥ": "h", "ɦ": "h", "ɨ": "i", "ɩ": "i", "ɪ": "i", "ɫ": "l", "ɭ": "l", "ɯ": "m", "ɱ": "m", "ɲ": "n", "ɳ": "n",
    "ɴ": "n", "ɵ": "o", "ɹ": "r", "ɾ": "r", "ʀ": "r", "ʁ": "r", "ʂ": "s", "ʃ": "s", "ʇ": "t", "ʈ": "t", "ʉ": "u",
    "ʊ": "u", "ʋ": "v", "ʌ": "v", "ʍ": "w", "ʏ": "y", "ʐ": "z", "ʙ": "b", "ʜ": "h", "ʞ": "k", "ʟ": "l", "ʠ": "q",
    "ᴀ": "a", "ᴄ": "c", "ᴅ": "d", "ᴇ": "e", "ᴊ": "j", "ᴋ": "k", "ᴍ": "m", "ᴏ": "o", "ᴘ": "p", "ᴛ": "t", "ᴜ": "u",
    "ᴠ": "v", "ᴡ": "w", "ᴢ": "z", "ꜰ": "f", "ꜱ": "s", "ꞯ": "q", "ꭓ": "x",
    # Signs
    "€": "e", "£": "l", "¢": "c", "¥": "y", "₽": "p", "¡": "i", "∂": "d", "∑": "e", "∆": "a", "√": "v",
    "ⅼ": "l", "×": "x", "\u2019": "'", "\u2018": "'", "\u02bc": "'", "\uff07": "'",
}  # fmt: skip

_ALPHABETS = (0x1F150, 0x1F170, 0x1F1E6, 0x249C)
"""Where A to Z begin, in rows that NFKD leaves alone or puts in brackets: negative circled and squared letters,
regional indicators, letters in parentheses."""


def _table() -> dict[int, str]:
    table = {ord(char): latin for char, latin in _PAIRS.items()}
    for char, latin in _PAIRS.items():
        upper = char.upper()
        if len(upper) == 1:
            table.setdefault(ord(upper), latin)
    for start in _ALPHABETS:
        table |= {start + index: chr(ord("a") + index) for index in range(26)}
    return table


LOOKALIKES: dict[int, str] = _table()
"""Code point to lower-case Latin letters, for `str.translate`."""
