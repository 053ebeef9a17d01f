"""`minicogvx words`: the vocabulary of the shipped model."""

from minicogvx.data.world.captions import vocabulary, words_by_kind
from minicogvx.parsing import Parser

EXAMPLES = ("a red circle moves right", "a small yellow star near the top left bounces on a navy background")


def main(argv: list[str] | None = None) -> int:
    """Prints the words, one line per kind, and two example captions."""
    Parser(prog="minicogvx words", description="The words that the shipped model knows, by kind.").parse_args(argv)
    print(f"toy knows {len(vocabulary())} words; capital letters and punctuation are ignored\n")
    for kind, words in words_by_kind().items():
        print(f"{kind:<15}  {', '.join(words)}")
    print("\nA caption is best about one object:")
    for caption in EXAMPLES:
        print(f"  minicogvx generate \"{caption}\"")
    return 0
