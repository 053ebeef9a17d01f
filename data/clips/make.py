"""Cuts an excerpt out of a video: a few seconds, scaled down, without sound, as a small mp4.

    python data/clips/make.py FILM OUT [--start 0.4] [--seconds 3] [--height 180] [--crf 21]

README.md beside this file has the line that made each clip.
"""

import argparse
import os
import tempfile
from fractions import Fraction
from pathlib import Path

import av

MAX_BYTES = 150_000  # a repository keeps every version of a file for ever


def excerpt(film: Path, start: float, seconds: float, height: int) -> tuple[list[av.VideoFrame], Fraction]:
    """The frames of `film` from second `start` on, scaled to `height` pixels and an even width, and their rate.

    Raises ValueError if the video is too short.
    """
    with av.open(str(film)) as container:
        stream = container.streams.video[0]
        rate, first = stream.average_rate, round(start * stream.average_rate)
        width = 2 * round(stream.width * height / stream.height / 2)
        wanted, frames = round(seconds * rate), []
        for number, frame in enumerate(container.decode(stream)):
            if number >= first and len(frames) < wanted:
                frames.append(frame.reformat(width, height, "yuv420p", interpolation="LANCZOS"))
    if len(frames) < wanted:
        raise ValueError(f"{film} has {len(frames)} frames from second {start:g} on; {seconds:g} s need {wanted}")
    return frames, rate


def write(frames: list[av.VideoFrame], rate: Fraction, out: Path, crf: int, copyright: str) -> None:
    """Writes H.264 by way of a temporary file. Raises ValueError if the file is too large for a repository."""
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        path = Path(folder) / out.name
        with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            container.metadata["copyright"] = copyright
            stream = container.add_stream("libx264", rate=rate)
            stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, "yuv420p"
            stream.options = {"crf": str(crf), "preset": "veryslow", "threads": "1"}
            for number, frame in enumerate(frames):
                frame.pts, frame.time_base = number, 1 / rate
                frame.pict_type = av.video.frame.PictureType.NONE  # chosen by the encoder, not copied from the source
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{out} would have {path.stat().st_size:,} bytes; at most {MAX_BYTES:,}: raise --crf")
        os.replace(path, out)


def main() -> None:
    """Cut an excerpt from a video and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("film", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", type=float, default=0.4, help="second at which the excerpt begins")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--height", type=int, default=180)
    parser.add_argument("--crf", type=int, default=21, help="of x264: higher is smaller and worse")
    parser.add_argument("--copyright", default="(c) 2008 Blender Foundation | www.bigbuckbunny.org | CC BY 3.0")
    args = parser.parse_args()
    frames, rate = excerpt(args.film, args.start, args.seconds, args.height)
    write(frames, rate, args.out, args.crf, args.copyright)
    print(f"{args.out}: {len(frames)} frames of {frames[0].height}x{frames[0].width} at {float(rate):g} fps, "
          f"{args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
