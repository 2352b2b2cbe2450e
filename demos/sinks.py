"""Where frames go when there is no window: nowhere, a video file, or several places at once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from dreamloop.models.core.errors import DreamloopError
from dreamloop.runtime.loop import Sink
from dreamloop.runtime.session import Frame

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import OutputContainer

VIDEO_SCALE = 2  # so that the halved colour resolution of yuv420p loses nothing
PANE_GAP = 4  # pixels of the frame between two pictures side by side
PANE_COLOUR = (8, 8, 11)


def joined(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one height, (H, W, 3) uint8 each, from left to right with a gap."""
    if len(pictures) == 1:
        return pictures[0]
    gap = np.full((len(pictures[0]), PANE_GAP, 3), PANE_COLOUR, np.uint8)
    parts = [part for shown in pictures for part in (gap, shown)]
    return np.concatenate(parts[1:], axis=1)


class NoSink:
    """Drops every frame."""

    def present(self, frame: Frame) -> None:
        pass

    def hold(self) -> None:
        pass


class Sinks:
    """Shows every frame on each of several sinks, in order."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks

    def present(self, frame: Frame) -> None:
        for sink in self._sinks:
            sink.present(frame)

    def hold(self) -> None:
        for sink in self._sinks:
            sink.hold()


class VideoSink:
    """Writes frames to an MP4 through PyAV: H.264 where this build has an encoder, MPEG-4 otherwise.

    The file is written beside the target and takes its name on a clean `close`; a failed recording
    leaves nothing behind. Pauses are not recorded.
    """

    def __init__(self, path: str | os.PathLike[str], height: int, width: int, fps: float) -> None:
        try:
            import av
        except ImportError as error:
            raise DreamloopError(f"recording needs PyAV ({error}); pip install av") from error
        self.path = Path(path)
        if self.path.suffix.lower() != ".mp4":
            raise DreamloopError(f"--record {self.path}: a recording is an .mp4 file")
        self._part = self.path.with_name(self.path.name + ".part")
        try:
            self._part.open("wb").close()  # PyAV's own message does not say which file it was
        except OSError as error:
            raise self._refused(error) from error
        self._container: OutputContainer | None = av.open(str(self._part), "w", format="mp4")
        codec, options = "mpeg4", {"qscale": "2"}
        with contextlib.suppress(av.codec.codec.UnknownCodecError):
            av.Codec("libx264", "w")
            codec, options = "libx264", {"crf": "18", "preset": "veryfast"}
        stream = self._container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000), options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = height * VIDEO_SCALE, width * VIDEO_SCALE  # even, as yuv420p needs it
        stream.pix_fmt = "yuv420p"
        self._stream = stream
        self.codec = codec
        self.frames = 0

    def present(self, frame: Frame) -> None:
        import av
        assert self._container is not None, "the recording is closed"
        pixels = frame.pixels.repeat(VIDEO_SCALE, axis=0).repeat(VIDEO_SCALE, axis=1)
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        try:
            self._encode(self._container, picture)
        except OSError as error:  # such as a full disk
            raise self._refused(error) from error
        self.frames += 1

    def _encode(self, container: OutputContainer, picture: VideoFrame | None) -> None:
        """Write a picture; None writes what the encoder still holds."""
        for packet in self._stream.encode(picture):
            container.mux(packet)

    def _refused(self, error: OSError) -> DreamloopError:
        return DreamloopError(f"cannot write {self.path}: {error.strerror}")

    def hold(self) -> None:
        pass

    def close(self, keep: bool = True) -> None:
        """Finish the file; keep=False throws it away. A second call does nothing."""
        if self._container is None:
            return
        container, self._container = self._container, None
        keep = keep and self.frames > 0
        try:
            if keep:
                self._encode(container, None)
            container.close()
            if keep:
                os.replace(self._part, self.path)
        except OSError as error:
            if keep:
                raise self._refused(error) from error
        finally:
            self._part.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close(keep=kind is None or issubclass(kind, KeyboardInterrupt))
