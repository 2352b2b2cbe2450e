"""A world as one flat file: what the native engine opens, from Python and from C.

    python -m dreamloop.models.core.packed doom-arena doom-arena.dream

    8 bytes     DREAMLP1
    32 bytes    the world's hash (SHA-256)
    64 int64    frame height and width, latent channels, stages, then five places each for widths, encoder blocks
                and decoder blocks; width, layers, heads, MLP width, patch, passes; window, sinks, dilated frames,
                dilation, max_age; plan policy (its place in `PLAN_POLICIES`), its window, its block tokens; buttons,
                axes, start frames; top_blocks; zeros
    float64     fps, rope_base, each sigma, each axis limit
    text        the names of buttons and axes, UTF-8, each ended by a newline; zeros up to a multiple of 8 bytes
    float32     every tensor of `weight_shapes`, in its order
    uint8       the start frames (N, H, W, 3)

All little-endian. `csrc/cpu/load.cpp` reads it and trusts none of it. A world whose plan has a linear branch has no
such file.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dreamloop.models.core.errors import WorldError
from dreamloop.models.core.spec import PLAN_POLICIES, WorldSpec, weight_shapes
from dreamloop.models.core.world import World, load_world

MAGIC = b"DREAMLP1"
NUMBERS, MOST_STAGES = 64, 5


def _numbers(spec: WorldSpec, starts: int) -> np.ndarray:
    a, d, m, p = spec.autoencoder, spec.dynamics, spec.memory, spec.plan

    def five(values: tuple[int, ...]) -> list[int]:
        return [*values, *[0] * (MOST_STAGES - len(values))]

    numbers = [spec.frame_height, spec.frame_width, a.latent_channels, len(a.widths),
               *five(a.widths), *five(a.encoder_blocks), *five(a.decoder_blocks),
               d.width, d.layers, d.heads, d.mlp_width, d.patch, len(d.sigmas),
               m.window_frames, m.sink_frames, m.dilated_frames, m.dilation, m.max_age,
               PLAN_POLICIES.index(p.policy), p.window_frames, p.block_tokens,
               len(spec.actions.buttons), len(spec.actions.axes), starts, p.top_blocks]
    return np.array([*numbers, *[0] * (NUMBERS - len(numbers))], "<i8")


def pack(world: World) -> bytearray:
    """The bytes of the flat file. Raises `WorldError` for a plan with a linear branch: the C side has none."""
    spec = world.spec
    if spec.plan.linear:
        raise WorldError(f"world {world.name} has a linear branch for what its plan skips, which no flat file holds")
    doubles = np.array([spec.fps, spec.dynamics.rope_base, *spec.dynamics.sigmas,
                        *(axis.limit for axis in spec.actions.axes)], "<f8")
    names = "".join(f"{name}\n" for name in spec.actions.names).encode()
    packed = bytearray(MAGIC + bytes.fromhex(world.hash))
    packed += _numbers(spec, len(world.starts)).tobytes() + doubles.tobytes() + names + bytes(-len(names) % 8)
    for name, shape in weight_shapes(spec).items():
        value = np.ascontiguousarray(world.weights[name], "<f4")
        assert value.shape == shape, (name, value.shape, shape)
        packed += value.data.cast("B")
    packed += np.ascontiguousarray(world.starts, np.uint8).data.cast("B")
    return packed


def save_packed(world: World, path: str | os.PathLike[str]) -> None:
    """Write the flat file, whole or not at all."""
    target = Path(path)
    part = target.with_name(target.name + ".part")
    part.write_bytes(pack(world))
    os.replace(part, target)


def main(argv: Sequence[str] | None = None) -> int:
    """Pack a world of the zoo, or a folder."""
    parser = argparse.ArgumentParser(prog="python -m dreamloop.models.core.packed", description=main.__doc__)
    parser.add_argument("world", metavar="WORLD", help="a world of the zoo or a folder")
    parser.add_argument("out", metavar="OUT.dream", help="file to write")
    args = parser.parse_args(argv)
    try:
        save_packed(load_world(args.world), args.out)
    except (WorldError, OSError) as error:
        print(f"packed: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
