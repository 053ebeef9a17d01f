"""The table of all ablations, from the committed results to `docs/ablations.md`.

    python -m minicogvx.ablation.report              # writes the file
    python -m minicogvx.ablation.report --print      # prints it instead
"""

import argparse
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from minicogvx.ablation.claims import PAPER, UNTESTED, judge_claims
from minicogvx.ablation.verdicts import VERDICTS, Judged
from minicogvx.files import written_whole

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ablations.md"
_MEASURES = {"loss": "loss", "psnr": "PSNR, dB", "lpips": "LPIPS", "flicker": "flicker", "sharpness": "sharpness"}
_HEAD = """# Ablations: what the paper says, and what this size can tell

`python -m minicogvx.ablation.report` wrote this page from the files in `data/results`; a test keeps it up to date.
Notebook 15 explains how to read it.

Each row compares two variants that were trained on the same clips in the same order, once for each seed. The difference
is the new variant less the old one at the end of training, paired by seed: the mean over seeds, with its 95 % interval
by Student's t. **Agrees** and **disagrees**: the interval excludes 0, on the side that the paper names or on the other.
**Cannot be told**: it contains 0, or there is only one seed. A verdict is about this size alone: transformers of 1.3
million parameters (uniform-sampling: 0.2, twins: 0.1) on 17 frames of 64x64 (schedules: 9), VAEs of 2 to 3 million,
trained for minutes. The intervals cover other seeds; they do not cover more steps, other clips or a larger network.
"""
_REASON = """Where a number agrees, the reason may still differ. Our 3D VAE flickers less than the one without
compression in time, but also less than the true clips do (5.66), as clips would that move too slowly.
"""
_NOT_HERE = """## Without a row

RoPE extended by extrapolation or interpolation (Figure 9) is judged by eye in the paper, and shown in notebook 06.
RoPE with learned positions beside it, an expert MLP, and separate weights with twice the parameters are in the paper
or its first version, and not repeated here. *full* in the attention study and *expert* in the modulation study are the
same five runs.
"""


def page() -> str:
    """The page, as Markdown."""
    paper, untested = judge_claims(PAPER), judge_claims(UNTESTED)
    counts = Counter(found.verdict for found, _ in paper)
    told = ", ".join(f"{verdict}: {counts[verdict]}" for verdict in VERDICTS)
    intervals = sum(found.gain.seeds > 1 for found, _ in paper)
    chance = (f"Of {len(paper)} rows: {told}. Of {intervals} intervals at 95 %, about {0.05 * intervals:.1f} would "
              f"exclude 0 by chance alone if no variant made any difference. The intervals assume that the differences "
              f"are normally distributed; a test without that assumption cannot get below p = 1/16 with five seeds.")
    return "\n".join([
        _HEAD, "## The paper's comparisons\n", *_table(paper), "", textwrap.fill(chance, 120), "", _REASON,
        "## Choices that the paper does not test\n",
        "The paper shows no comparison for these. Each claim, with its direction, is a guess from its text.\n",
        *_table(untested), "", _NOT_HERE])


def _table(rows: Sequence[tuple[Judged, str]]) -> list[str]:
    lines = ["| claim | paper | new, less old | difference and 95 % interval | seeds | verdict | command |",
             "|---|---|---|---|---|---|---|"]
    for found, command in rows:
        claim, gain = found.claim, found.gain
        number = found.said().partition(" (")[0]
        interval = found.said().partition("interval ")[2].partition(",")[0] or "none"
        lines.append(f"| {claim.says} | {claim.source} | {claim.new}, less {claim.old} | {_MEASURES[claim.measure]} "
                     f"{number} ({interval}) | {gain.seeds} | **{found.verdict}** | `{command}` |")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page, or prints it."""
    parser = argparse.ArgumentParser(prog="python -m minicogvx.ablation.report",
                                     description="The table of all ablations, from data/results to docs/ablations.md.")
    parser.add_argument("--print", action="store_true", dest="shown", help="print it, and write nothing")
    if parser.parse_args(argv).shown:
        print(page())
        return 0
    with written_whole(PAGE) as part:
        part.write_text(page(), encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
