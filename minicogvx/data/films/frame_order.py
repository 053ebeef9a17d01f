"""Time stamps in the order of display, for containers such as AVI that store them in the order of decoding.

A B-frame is decoded after the frame that follows it on screen. Decoders return frames as they are shown, but each with
the stamp of its own packet: where packets are stamped one after the other, the stamps of the frames then go back.
"""

from collections.abc import Iterable, Iterator, Sequence

import av

PEEKED = 32  # packets: among so many there are B-frames, if the video has any
_WINDOW = 17  # frames: at most 16 B-frames come before the frame that is decoded before them

Timed = tuple[av.VideoFrame, float | None]  # a frame and the second of its time stamp


def are_of_decoding(packets: Sequence[av.Packet]) -> bool:
    """Whether the stamps of these packets, in the order of the file, never go back, as they must for B-frames."""
    stamps = [packet.pts for packet in packets if packet.pts is not None]
    return stamps == sorted(stamps)


def in_order(frames: Iterable[Timed]) -> Iterator[Timed]:
    """The same frames, of which the k-th gets the k-th smallest stamp. Up to 17 frames wait in memory.

    A stamp below one already given, or not above that of the first frame, which is decoded first, has restarted, as in
    joined videos: from there on stamps are put in order on their own.
    """
    waiting, stamps, least = [], [], None
    for frame, stamp in frames:
        if stamp is None or least is not None and stamp <= least:
            yield from zip(waiting, sorted(stamps))
            waiting, stamps, least = [], [], None
        if stamp is None:
            yield frame, None
            continue
        least = stamp if least is None else least
        waiting.append(frame)
        stamps.append(stamp)
        if len(waiting) > _WINDOW:
            least = min(stamps)
            stamps.remove(least)
            yield waiting.pop(0), least
    yield from zip(waiting, sorted(stamps))
