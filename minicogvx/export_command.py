"""`minicogvx export`: a model as a folder that diffusers opens."""

from pathlib import Path

from minicogvx.options import DTYPES, check_names
from minicogvx.parsing import Parser, one_of, path_to


def main(argv: list[str] | None = None) -> int:
    """Writes the folder. Raises ValueError for one that is not empty, OSError for one that cannot be written."""
    arguments = _parser().parse_args(argv)
    check_names(arguments)
    folder = Path(arguments.folder)
    import torch

    from minicogvx.files import check_writable
    from minicogvx.interop import find_folder
    from minicogvx.interop.diffusers_folder import is_free, read_folder, write_folder

    if not is_free(folder):
        raise ValueError(f"{folder} already exists and is not an empty folder; name a new one")

    source = find_folder(arguments.model)
    check_writable(folder, folder=True)
    parts = read_folder(source)  # on the CPU, in the number format of the files
    write_folder(parts, folder, getattr(torch, arguments.dtype) if arguments.dtype else None)
    print(folder)
    return 0


def _parser() -> Parser:
    parser = Parser(prog="minicogvx export", description="Write a folder that diffusers opens.")
    parser.add_argument("folder", metavar="FOLDER", type=path_to(), help="a new or empty folder")
    parser.add_argument("--model", type=path_to(), default="toy", metavar="toy|FOLDER",
                        help="what to export (default: toy)")
    parser.add_argument("--dtype", type=one_of(DTYPES), metavar="|".join(DTYPES),
                        help="dtype of the files (default: the model's)")
    return parser
