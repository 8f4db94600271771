"""`python tests/fuzz N [SEED] [build] [say]`: N commands drawn by a seed, each of which must end in success or in one sentence. With
`build` all objects are built and nothing is trained; `say` prints each command and how it ended. `python tests/fuzz :17 [SEED]` is the
command number 17 alone, with all that it says."""

import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from commands_drawn import numbered, prepared


def main(which: str, seed: str = "0", *mode: str) -> int:
    first, _, only = which.partition(":")
    indices = [int(only)] if only else range(int(first))
    ends, failed = Counter[str](), 0
    with tempfile.TemporaryDirectory() as folder:
        at = prepared(Path(folder))
        for index in indices:
            found = numbered(index, int(seed), at, train="build" not in mode)
            ends["too slow" if found.code is None else "success" if found.code == 0 else "a sentence"] += 1
            if "say" in mode:
                print(f"{index}: {found.line}\n  {found.said.splitlines()[-1] if found.code and found.said else found.code}", flush=True)
            if found.wrong or only:
                failed += bool(found.wrong)
                print(
                    f"python tests/fuzz :{index} {seed} {' '.join(mode)}: {found.wrong}\n  {found.line}\n  {found.said[-1500:]}", flush=True
                )
    print(f"{sum(ends.values())} commands of seed {seed}: {dict(ends)}, {failed} of them wrong")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
