"""minicogvx against diffusers, with the same weights, on this machine. Run nothing else meanwhile: it uses every core.

    python -m benchmarks [--quick] [--only WORDS] [--markdown] [--json FILE] [--no-memory]
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import table
from benchmarks.cases import NAMES, Case, cases
from benchmarks.measure import Timing, alternate, count_flops, difference, peak_memory
from benchmarks.sides import OURS, THEIRS
from minicogvx.speedrun.machine import ceiling


def measure(case: Case, seconds: float, memory: bool = True) -> table.Row:
    """One case: agreement, then time, then memory. Programs that disagree are not timed."""
    apart, flops, timing = _compare(case, seconds)
    if timing is None:
        return table.Row(case, apart, flops)
    peaks = (peak_memory(case, OURS), peak_memory(case, THEIRS)) if memory else (None, None)
    return table.Row(case, apart, flops, timing, peaks)


def _compare(case: Case, seconds: float) -> tuple[float, tuple[int, int], Timing | None]:
    """Difference, FLOPs and timing, None if the programs disagree; both are freed on return."""
    ours, theirs = case.side(OURS), case.side(THEIRS)
    our_inputs, their_inputs = ours.inputs(), theirs.inputs()
    our_result, our_flops = count_flops(lambda: ours.result(our_inputs))
    their_result, their_flops = count_flops(lambda: theirs.result(their_inputs))
    apart = difference(our_result, their_result)
    if not apart <= case.tolerance:
        return apart, (our_flops, their_flops), None
    del our_result, their_result
    for side in (ours, theirs):  # kernels exist by now; this creates the optimizer's state
        side.run(side.inputs(small=True))
    timing = alternate(lambda: ours.run(our_inputs), lambda: theirs.run(their_inputs), seconds)
    return apart, (our_flops, their_flops), timing


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write. Returns 1 if two programs disagree or if nothing was measured."""
    options = _parse(arguments)
    words, everything = options.only.lower().split(), cases(options.quick)
    chosen = [case for case in everything if all(word in name_of(case) for word in words)]
    if not chosen:
        print(f"no case has {options.only!r} in its name; the names are:", *map(name_of, everything), sep="\n  ",
              file=sys.stderr)
        return 1
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 1:
        print(f"Other programs are using this machine (load {os.getloadavg()[0]:.1f}): these figures will not be "
              f"reliable.", file=sys.stderr)
    start = time.perf_counter()
    ceilings = {dtype: ceiling(dtype) for dtype in NAMES if any(case.dtype == dtype for case in chosen)}
    rows = []
    for i, case in enumerate(chosen):
        print(f"[{i + 1}/{len(chosen)}, {time.perf_counter() - start:.0f} s] {name_of(case)}", file=sys.stderr)
        rows.append(measure(case, options.seconds or (1.0 if options.quick else 2.0), options.memory))
    print(table.report(rows, ceilings, options.markdown))
    if options.json:
        beside = options.json.with_name(options.json.name + ".part")
        beside.write_text(json.dumps(table.as_json(rows, ceilings), indent=1) + "\n")
        os.replace(beside, options.json)
    return int(any(row.timing is None for row in rows))


def name_of(case: Case) -> str:
    """The text that `--only` searches."""
    return f"{case.part}, {case.operation}, {NAMES[case.dtype]}".lower()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true",
                        help="about a minute and a half: only the toy, one clip at a time")
    parser.add_argument("--only", default="", metavar="WORDS",
                        help='only cases with all these words, such as "vae decode"')
    parser.add_argument("--markdown", action="store_true", help="print tables as GitHub markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure to this file")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave out peak memory")
    parser.add_argument("--seconds", type=float, default=None,
                        help="time spent on the runs of each case (default 2; quick 1)")
    options = parser.parse_args(arguments)
    if options.json and not options.json.parent.is_dir():
        parser.error(f"there is no folder {options.json.parent} to write {options.json.name} into")
    return options


if __name__ == "__main__":
    sys.exit(main())
