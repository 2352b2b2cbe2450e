"""Plays the exported world of this folder with numpy and ONNX Runtime alone.

    python run.py            dreams 100 frames with the first button held, and writes the last one to frame.ppm
    python run.py --check    plays the session in check/ and says how far the latents are from those there

It is written to be read: each function is a rule of README.md, and a port to another language is these few lines.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(bool)": np.bool_,
         "tensor(int32)": np.int32, "tensor(int64)": np.int64}


def slot_of(w: dict[str, Any], t: int) -> int:
    """The slot that frame t, which is 1 or more, is written to."""
    if t <= w["sinks"]:
        return t - 1
    if w["dilation"] and t % w["dilation"] == 0:
        return int(w["sinks"] + t // w["dilation"] % w["dilated_frames"])
    windowed = t - 1 - w["sinks"]  # frames before t that went to the window ring
    if w["dilation"]:
        windowed -= (t - 1) // w["dilation"] - w["sinks"] // w["dilation"]
    return int(w["sinks"] + w["dilated_frames"] + windowed % w["window_frames"])


def read_slots(w: dict[str, Any], held: list[int], t: int) -> list[int]:
    """Slots that frame t reads; held: the frame in each slot, t itself in its own, 0 where none is yet."""
    far = w["plan_window_frames"] or t  # the plan `dense` reads all of them
    return [slot for slot, past in enumerate(held) if past and (t - past <= far or past <= w["sinks"])]


def condition(w: dict[str, Any], action: np.ndarray, index: int) -> np.ndarray:
    """Action, then sines and cosines of noise level, step size and 0."""
    octaves = 0.5 * np.pi * 2.0 ** np.arange(w["level_features"] // 2)
    angles = [level * octaves for level in (w["sigmas"][index], w["sigmas"][index], 0.0)]
    return np.concatenate([action, *(part for a in angles for part in (np.sin(a), np.cos(a)))])


def time_angles(w: dict[str, Any], time: float) -> np.ndarray:
    """(D / 2,): the first half of the pairs turns with time."""
    pairs = w["head_size"] // 2
    angles = np.zeros(pairs)
    angles[: pairs // 2] = time * w["rope_base"] ** (-np.arange(pairs // 2) / (pairs // 2))
    return angles


def space_angles(w: dict[str, Any]) -> np.ndarray:
    """(T, D / 2): the third quarter of the pairs turns with the token's row, the last with its column."""
    pairs, (_, columns) = w["head_size"] // 2, w["grid"]
    turn = w["rope_base"] ** (-np.arange(pairs // 4) / (pairs // 4))
    row, column = np.divmod(np.arange(w["tokens"]), columns)
    angles = np.zeros((w["tokens"], pairs))
    angles[:, pairs // 2 : pairs // 2 + pairs // 4] = row[:, None] * turn
    angles[:, pairs // 2 + pairs // 4 :] = column[:, None] * turn
    return angles


def memory_inputs(w: dict[str, Any], names: set[str], shapes: dict[str, list[int]], t: int,
                  slots: list[int]) -> dict[str, np.ndarray]:
    """Those inputs of the step graph that say which keys are read: they differ by form."""
    own, stride, tokens = slot_of(w, t), w["tokens_padded"], w["tokens"]
    if "block_index" in names:  # sparse: blocks of the slots that are read
        block, parts = w["block_tokens"], -(-tokens // w["block_tokens"])
        listed = [slot * (stride // block) + part for slot in slots for part in range(parts)]
        index = np.zeros(shapes["block_index"], np.int32)
        index[..., : len(listed)] = listed
        length = np.zeros(shapes["block_length"], np.int32)
        for place in listed:
            length[0, place] = min(block, tokens - place % (stride // block) * block)
        return {"block_index": index, "block_count": np.full(shapes["block_count"], len(listed), np.int32),
                "block_length": length, "slot": np.array([own], np.int64)}
    reads = np.zeros((w["slots"], stride), bool)
    reads[slots, :tokens] = True
    if "write_index" in names:  # in_place: the graph writes the own slot first
        mask = np.broadcast_to(reads.reshape(-1), shapes["mask"])
        return {"mask": mask, "write_index": np.array([own * stride], np.int64)}
    reads[own] = False  # portable: what lies there is about to be overwritten; the fresh keys are the last columns
    mask = np.where(np.append(reads.reshape(-1), np.ones(tokens, bool)), 0.0, -1e9).astype(np.float32)
    return {"mask": np.broadcast_to(mask, shapes["mask"])}


class Player:
    """One session: `latent` (1, C, h, w) is what is on the screen, `ring` its memory, `held` who lies where."""

    def __init__(self, start: np.ndarray) -> None:
        import onnxruntime

        self.w: dict[str, Any] = json.loads((HERE / "layout.json").read_text())
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", "1")  # else int8 overflows without VNNI
        step, decoder = (onnxruntime.InferenceSession(str(HERE / f"{kind}.onnx"), options, ["CPUExecutionProvider"])
                         for kind in ("step", "decode"))
        self.step, self.decoder, self.binding = step, decoder, step.io_binding()
        self.outputs = [o.name for o in step.get_outputs()]
        self.shapes = {i.name: i.shape for i in step.get_inputs()}
        self.ring = {i.name: np.zeros(i.shape, TYPES[i.type]) for i in step.get_inputs()
                     if i.name.startswith(("key_", "value_"))}
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(memory) for name, memory in self.ring.items()}
        for name, value in values.items():  # bound once: no frame copies it
            self.binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            if name.startswith("ring_"):  # in_place: the graph writes the same memory
                self.binding.bind_ortvalue_output(name, values[name.removeprefix("ring_")])
            else:
                self.binding.bind_output(name, "cpu")
        self.latent, self.frame, self.held = start.astype(np.float32), 0, [0] * self.w["slots"]

    def next(self, action: np.ndarray, noise: np.ndarray) -> None:
        """Make the next frame. action: one number a button or axis; noise: (passes, C, h, w), normal."""
        w, t = self.w, self.frame + 1
        own, time = slot_of(w, t), time_angles(w, t)
        self.held[own] = t
        turns = {"": time + space_angles(w), "store_": time * (t > w["sinks"]) + space_angles(w),
                 "sink_": np.array([time_angles(w, t - min(t - s, w["max_age"])) for s in range(1, w["sinks"] + 1)])}
        feeds = {"previous": self.latent, "action": action[None].astype(np.float32),
                 **memory_inputs(w, set(self.shapes), self.shapes, t, read_slots(w, self.held, t))}
        for name, angles in turns.items():
            if f"{name}cos" in self.shapes:
                feeds |= {f"{name}cos": np.cos(angles)[None].astype(np.float32),
                          f"{name}sin": np.sin(angles)[None].astype(np.float32)}
        z = np.zeros_like(self.latent)
        for index, sigma in enumerate(w["sigmas"]):
            feeds["x"] = ((1 - sigma) * z + sigma * noise[index]).astype(np.float32)
            feeds["condition"] = condition(w, action, index)[None].astype(np.float32)
            for name, value in feeds.items():
                self.binding.bind_cpu_input(name, np.ascontiguousarray(value))
            self.step.run_with_iobinding(self.binding)
            found = dict(zip(self.outputs, self.binding.get_outputs(), strict=True))
            z = found["z"].numpy().copy()  # the next pass writes to the same memory
        first = own * w["tokens_padded"]
        for name, value in found.items():
            if name.startswith("new_"):
                self.ring[name.removeprefix("new_")][:, :, first : first + w["tokens"]] = value.numpy()
        self.latent, self.frame = z, t

    def picture(self) -> np.ndarray:
        """(H, W, 3) uint8."""
        return np.asarray(self.decoder.run(None, {"latents": self.latent})[0][0])


def main() -> None:
    player = Player(np.load(HERE / "start.npy"))
    if "--check" in sys.argv:
        actions, noises, latents = (np.load(HERE / "check" / f"{name}.npy") for name in ("actions", "noise", "latents"))
        worst = 0.0
        for action, noise, latent in zip(actions, noises, latents, strict=True):
            player.next(action, noise)
            worst = max(worst, float(np.max(np.abs(player.latent[0] - latent))))
        print(f"{len(latents)} frames, largest difference {worst:.3g}")
        return
    action = np.eye(1, len(player.w["actions"]))[0]
    generator = np.random.default_rng(0)
    for _ in range(100):
        player.next(action, generator.standard_normal((len(player.w["sigmas"]), *player.w["latent"])))
    picture = player.picture()
    (HERE / "frame.ppm").write_bytes(b"P6 %d %d 255\n" % picture.shape[1::-1] + picture.tobytes())
    print(f"frame {player.frame} with {player.w['actions'][0]} held is in frame.ppm")


if __name__ == "__main__":
    main()
