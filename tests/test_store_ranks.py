"""Films encoded by torchrun: one of two ranks is killed, three resume, and none waits for another's error."""

import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from minicogvx.data.clips import contents, encode
from minicogvx.data.clips.cache import CachedClips
from minicogvx.data.clips.cache_files import files_of
from minicogvx.data.films.folder import read_clip, scan_folder
from minicogvx.engine.ranks import by_first, leave, on_each, ranks
from minicogvx.files import locked
from tests.films import caption, mp4, pan
from tests.ranks import start_ranks
from tests.test_store import SETTINGS, by_name, encoded, make, small_models, write_films

OPTIONS = {"shard_bytes": 4000, "batch_size": 1}  # as much as one clip: as many files as clips


def work(home: Path) -> None:
    """What each rank does. First rank 1 is killed when it has written a file; the next time all is encoded."""
    here, models, real = ranks("cpu", timeout=60.0), small_models(), contents.write_tensors
    note = (home / f"read_{here.world_size}_{here.rank}.txt").open("a")

    def noted(clip, *rest):
        print(clip.name, file=note, flush=True)
        if clip.name == "z.mp4":
            raise OSError(5, "Input/output error")  # on one rank only
        return read_clip(clip, *rest)

    def die(path, *rest):
        real(path, *rest)
        if here.rank == 1 and here.world_size == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return path

    def full(path, *rest):
        raise OSError(f"{path} cannot be written: No space left on device")

    encode.read_clip, contents.write_tensors = noted, die
    films = by_first(lambda: scan_folder(home / "films", 0.0).clips, here)
    clips, problems = encoded(films, home / "out", models, ranks=here, **OPTIONS)
    told = on_each(lambda: (len(clips), sorted(problems), clips.latents(0).sum().item()), here)
    assert told == [told[0]] * here.world_size and told[0][0] == 6

    encode.read_clip, contents.write_tensors = read_clip, full if here.rank == 1 else real
    with pytest.raises(OSError, match="cannot be written: No space left"):
        encoded(films, home / "full", models, ranks=here, **OPTIONS)
    with pytest.raises(ValueError, match="in use by another run"):
        with locked(home / "busy") if here.rank == 2 else nullcontext():
            on_each(lambda: None, here)
            encoded(films, home / "busy", models, ranks=here, **OPTIONS)
    with pytest.raises(FileNotFoundError if here.first else OSError, match="there is no folder"):
        by_first(lambda: scan_folder(home / "nowhere"), here)
    leave()


def test_ranks_share_the_films_and_other_ranks_resume(tmp_path):
    (tmp_path / "films").mkdir()
    films = write_films(tmp_path / "films")
    for seed, name in ((7, "y.mp4"), (8, "z.mp4")):
        caption(mp4(films / name, pan(12, 40, 40, seed=seed)), "a pan")
    killed = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m",
                             "tests.test_store_ranks", str(tmp_path)], capture_output=True, text=True, timeout=120,
                            cwd=Path(__file__).parents[1])
    assert killed.returncode and "Signal 9 (SIGKILL) received" in killed.stderr, killed.stderr[-3000:]
    kept = {number: path.stat().st_mtime_ns for number, path in files_of(tmp_path / "out", "latents").items()}
    assert kept and not files_of(tmp_path / "out", "clips")

    start_ranks("tests.test_store_ranks", tmp_path, 3)
    clips = CachedClips(tmp_path / "out")
    read = [(tmp_path / f"read_3_{rank}.txt").read_text().split() for rank in range(3)]
    assert all(read)
    first = {name for name, i in by_name(clips).items() if int(clips._index["latents"][i]) in kept}
    every = {"a.mp4", "b.mp4", "short.mp4", "still.png", "wide.mp4", "y.mp4", "z.mp4"}
    assert first and sorted(name for names in read for name in names) == sorted(every - first)  # nothing is read twice
    assert all(path.stat().st_mtime_ns == kept.get(number, path.stat().st_mtime_ns)
               for number, path in files_of(tmp_path / "out", "latents").items())
    alone = make(films, tmp_path / "alone", small_models(), SETTINGS)
    assert by_name(alone).keys() == every and by_name(clips).keys() == every - {"z.mp4"}
    for name, i in by_name(clips).items():
        assert torch.allclose(clips.latents(i), alone.latents(by_name(alone)[name]), atol=5e-3)
        assert torch.allclose(clips.text(i), alone.text(by_name(alone)[name]), atol=1e-3)
    assert not (tmp_path / "busy").exists() or not any((tmp_path / "busy").iterdir())


if __name__ == "__main__":
    work(Path(sys.argv[1]))
