"""python -m diffusion.dashboard runs/ [--out FILE] [--serve [PORT]] — one page that shows all runs."""

import argparse
from pathlib import Path

from diffusion.dashboard.page import Pictures, contents, html
from diffusion.dashboard.read import Reader
from diffusion.dashboard.serve import server
from diffusion.support.errors import one_sentence
from diffusion.support.files import atomic

MIB = 2**20


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m diffusion.dashboard", description="One HTML file that shows all runs of a folder.")
    parser.add_argument("folder", nargs="?", default="runs", help="the folder that holds the runs' folders (runs)")
    parser.add_argument("--out", type=Path, help="the file to write (FOLDER/dashboard.html)")
    parser.add_argument("--serve", nargs="?", type=int, const=8000, metavar="PORT", help="keep the page live at localhost (8000)")
    parser.add_argument("--pictures", type=float, default=40, metavar="MB", help="how much of sample grids the file may hold (40)")
    return parser.parse_args()


def write_page(folder: str, out: Path, megabytes: float) -> None:
    """Read the runs below `folder` and write the page, whole or not at all."""
    reader = Reader(folder)
    runs = reader()
    page = html(contents(runs, Pictures(runs, int(megabytes * MIB)), folder, warnings=reader.warnings))
    with atomic(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(f"{out}  ({len(runs)} runs, {out.stat().st_size / MIB:.1f} MB)", *reader.warnings, sep="\n")


def main() -> None:
    """Write the page, or serve it until Ctrl-C."""
    given = arguments()
    with one_sentence(OSError):
        if given.serve is None:
            return write_page(given.folder, given.out or Path(given.folder) / "dashboard.html", given.pictures)
        with server(given.folder, given.serve) as running:
            print(f"http://127.0.0.1:{running.server_address[1]}  (Ctrl-C ends it)", flush=True)
            try:
                running.serve_forever()
            except KeyboardInterrupt:
                print()


if __name__ == "__main__":
    main()
