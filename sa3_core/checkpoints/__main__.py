"""Command line for the models on the Hugging Face Hub.

python -m sa3_core.checkpoints list
python -m sa3_core.checkpoints download small-music --folder models/checkpoints
python -m sa3_core.checkpoints verify FILE
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import SA3Error
from .download import download, verify
from .releases import RELEASES, SOURCES, find, listing


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m sa3_core.checkpoints", description="Stable Audio 3 models on the Hugging Face Hub.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="all models with size and licence")
    one = commands.add_parser("download", help="download a model after showing its size and licence")
    one.add_argument("model", help=", ".join(RELEASES))
    one.add_argument("--folder", type=Path, default=Path("models"), help="where the model's own folder is created (default: models)")
    one.add_argument("--source", choices=SOURCES, default="official")
    one.add_argument("--yes", action="store_true", help="do not ask: you have read and accept the licence")
    check = commands.add_parser("verify", help="compare a weights file on disk with the published sha256")
    check.add_argument("file", type=Path)
    check.add_argument("--model", help="the expected release (default: any)")
    options = parser.parse_args(arguments)
    if options.command == "list":
        print("\n".join(listing()))
        return 0
    try:
        if options.command == "verify":
            print(verify(options.file, options.model))
            return 0
        release = find(options.model)
        print(release.describe(options.folder, options.source))
        if not options.yes and input("Download it? [y/N] ").strip().lower() not in ("y", "yes"):
            print("Nothing was downloaded.")
            return 1
        print(download(release, options.folder, options.source))
        return 0
    except EOFError:
        print("\nThere is no terminal to answer on. If you accept the licence, repeat the command with --yes.", file=sys.stderr)
        return 1
    except (SA3Error, KeyboardInterrupt) as error:
        print(f"{error or 'Stopped. What has arrived is kept: the same command resumes the download.'}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
