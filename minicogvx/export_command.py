"""`minicogvx export`: a model as a folder that diffusers opens."""

from pathlib import Path

from minicogvx.options import DTYPES
from minicogvx.parsing import Parser, one_of, path_to


def main(argv: list[str] | None = None) -> int:
    """Writes the folder. Raises ValueError for one that holds something, OSError for one that cannot be written."""
    arguments = _parser().parse_args(argv)
    folder = Path(arguments.folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and is not an empty folder; name a new one")
    import torch

    from minicogvx.files import check_writable
    from minicogvx.interop import diffusers, find_folder

    source = find_folder(arguments.model)
    check_writable(folder, folder=True)
    pipe = diffusers.load_pipeline(source)  # on the CPU, in the number format of the files
    diffusers.export(pipe, folder, getattr(torch, arguments.dtype) if arguments.dtype else None)
    print(folder)
    return 0


def _parser() -> Parser:
    parser = Parser(prog="minicogvx export", description="Write a folder that diffusers opens.")
    parser.add_argument("folder", metavar="FOLDER", type=path_to(), help="a new or empty folder")
    parser.add_argument("--model", type=path_to(), default="toy", metavar="toy|FOLDER",
                        help="what to export (default: toy)")
    parser.add_argument("--dtype", type=one_of(DTYPES), metavar="|".join(DTYPES),
                        help="number format in the files (default: that of the model's)")
    return parser
