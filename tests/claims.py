"""What a text claims: sentences with a figure or a comparison, and the entries of `docs/claims.md` that back them."""

import re
from dataclasses import dataclass

FIELDS = ("shown by", "figure", "data", "machine", "date")
"""The names of the fields that every entry of the page has."""

_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+(?=[A-Z\d-])")

_FIGURES = (
    r"\d\s?x\b",  # 8x
    r"\d\s?%",
    r"\b\d[\d.,]* times\b",
    r"(?<![\w.])[+-]?\.\d+",  # .0009, +.036
    r"\b0\.\d+\b",
    r"±",
    r"\b\d[\d.]* of (it|the|our|what)\b",
    r"\b(an? (half|third|quarter|fifth|eighth|tenth)|half the|twice|double[sd]?|halve[sd]?)\b",
)
_COMPARISONS = (
    r"\b(smaller|faster|quicker|cheaper|slower|better|worse|higher|lower|smallest|fastest|best) than\b",
    r"\b(less|fewer|more|sooner|earlier|shorter|longer|larger)\b[^.]*\bthan\b",
    r"\bas (accurate|fast|quick|good|small|exact|long) as\b|\bas accurate\b",
    r"\b(no|never|without) (loss|slower|worse|cost|overhead)\b",
    r"\b(costs?|loses?|for) (next to |almost )?nothing\b",
    r"\b(is|are|for) free\b",
    r"\b(outperforms?|beats?|wins|state.of.the.art|unmatched|superior|the only)\b",
    r"\b(exact|identical|the same) (at every|in every)\b",
    r"\bto the bit\b",
)
_ADDRESS = re.compile(r"https?://\S+")
_CLAIMS = re.compile("|".join((*_FIGURES, *_COMPARISONS)), re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])[+-]?\d*\.?\d+(?![\w.]*\d)")


def sentences(text: str) -> list[str]:
    """Returns the sentences outside code, each on one line: of paragraphs, of items of a list and of cells of a table.

    Blank lines, bars and dashes end them as full stops do; marks of emphasis, code and links are taken off.
    """
    found = []
    for block in re.split(r"\n\s*\n|^\s*[-*] |^#+ .*$|\|", _CODE.sub("\n\n", text), flags=re.MULTILINE):
        plain = " ".join(_LINK.sub(r"\1", block).replace("`", "").replace("**", "").split())
        found += [sentence for sentence in _SENTENCE_END.split(plain) if sentence]
    return found


def claims_of(text: str) -> list[str]:
    """Returns the sentences that state a ratio, a share, a small decimal, or a comparison."""
    return [sentence for sentence in sentences(text) if _CLAIMS.search(_ADDRESS.sub("", sentence))]


@dataclass(frozen=True)
class Entry:
    """A claim with what backs it: the sentence, and what is said of each of `FIELDS`."""

    sentence: str
    fields: dict[str, str]

    def lacks(self) -> list[str]:
        """Returns the fields that it does not have, and the numbers of its sentence that its figure does not repeat."""
        missing = [name for name in FIELDS if not self.fields.get(name)]
        backed = set(_NUMBER.findall(self.fields.get("figure", "")))
        return missing + [number for number in _NUMBER.findall(self.sentence) if number not in backed]


def entries_of(text: str) -> list[Entry]:
    """Reads `docs/claims.md`: quoted sentences, each followed by a list of fields."""
    entries = []
    for block in re.split(r"\n\n(?=> )", f"\n\n{text}")[1:]:
        quote, _, rest = block.partition("\n\n")
        joined = " ".join(line.removeprefix(">").strip() for line in quote.splitlines())
        found = re.findall(r"^- (\w[\w ]*): (.*(?:\n  .*)*)", rest, re.MULTILINE)
        fields = {name: " ".join(value.split()) for name, value in found}
        entries += [Entry(sentence, fields) for sentence in sentences(joined)]
    return entries
