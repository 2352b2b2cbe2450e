"""A world as one file: whole or refused by name, never over what is there, never outside its folder."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from worlds import tiny_world

from dreamloop.models.core import pack as packs
from dreamloop.models.core.errors import WorldError
from dreamloop.models.core.pack import pack, unpack
from dreamloop.models.core.world import FIGURES_FILE, World, load_world


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(tmp_path)
    tiny_world("tiny")
    Path("tiny", FIGURES_FILE).write_text('{"assets": "nobody\'s"}')
    return load_world("tiny")


def rewritten(change: Callable[[dict[str, bytes]], None], compression: int = zipfile.ZIP_STORED) -> Path:
    """The pack of `tiny` with its entries changed."""
    path, _ = pack("tiny", "good.dreamworld")
    with zipfile.ZipFile(path) as packed:
        entries = {name: packed.read(name) for name in packed.namelist()}
    change(entries)
    with zipfile.ZipFile("bad.dreamworld", "w", compression) as packed:
        for name, data in entries.items():
            packed.writestr(name, data)
    return Path("bad.dreamworld")


def test_a_world_goes_into_one_file_and_comes_out_the_same(world: World) -> None:
    path, digest = pack("tiny")
    assert path == Path("tiny.dreamworld") and len(digest) == 64
    again = unpack(path, "there", digest)
    assert (again.hash, again.card, again.figures) == (world.hash, world.card, {"assets": "nobody's"})
    for name, value in world.weights.items():
        np.testing.assert_array_equal(value, again.weights[name])
    assert sorted(p.name for p in Path("there").iterdir()) == sorted(p.name for p in Path("tiny").iterdir())
    assert sorted(p.name for p in Path.cwd().iterdir()) == ["there", "tiny", "tiny.dreamworld"], "nothing else is left"


def test_the_same_world_makes_the_same_file(world: World) -> None:
    shutil.copytree("tiny", "copy")
    assert pack("tiny", "one")[1] == pack("copy", "two")[1]


def test_nothing_is_overwritten(world: World) -> None:
    pack("tiny")
    before = Path("tiny.dreamworld").read_bytes()
    with pytest.raises(WorldError, match=r"tiny.dreamworld is there already"):
        pack("tiny")
    with pytest.raises(WorldError, match="tiny is there already"):
        unpack("tiny.dreamworld")
    Path("link").symlink_to("nowhere")
    with pytest.raises(WorldError, match="link is there already"):
        unpack("tiny.dreamworld", "link")
    assert Path("tiny.dreamworld").read_bytes() == before and load_world("tiny").hash == world.hash


def test_a_file_of_another_hash_is_refused(world: World) -> None:
    path, digest = pack("tiny")
    with pytest.raises(WorldError, match=f"SHA-256 is {digest}, expected 00ff"):
        unpack(path, "there", "00ff")


def manifest(entries: dict[str, bytes], **changes: object) -> None:
    entries["pack.json"] = json.dumps({**json.loads(entries["pack.json"]), **changes}).encode()


CHANGES: dict[str, tuple[Callable[[dict[str, bytes]], object], str]] = {
    "a path upwards": (lambda e: e.update({"../evil": b"x"}), "unknown entry '../evil'"),
    "an absolute path": (lambda e: e.update({"/tmp/evil": b"x"}), "unknown entry '/tmp/evil'"),
    "a file of another kind": (lambda e: e.update({"run.py": b"x"}), "unknown entry 'run.py'"),
    "other weights": (lambda e: e.update({"weights.safetensors": e["weights.safetensors"][:-1] + b"\1"}),
                      "weights.safetensors does not match its hash"),
    "fewer weights": (lambda e: e.update({"weights.safetensors": e["weights.safetensors"][:-9]}),
                      "weights.safetensors does not match its hash"),
    "another card": (lambda e: e.update({"README.md": b"# free money\n"}), "README.md does not match its hash"),
    "a file less": (lambda e: e.pop("starts.safetensors"), "starts.safetensors is in pack.json or in the pack"),
    "a file more": (lambda e: manifest(e, files={k: v for k, v in json.loads(e["pack.json"])["files"].items()
                                                 if k != "README.md"}), "README.md is in pack.json or in the pack"),
    "no manifest": (lambda e: e.pop("pack.json"), "pack.json is missing"),
    "no JSON": (lambda e: e.update({"pack.json": b"{"}), "pack.json is not JSON"),
    "another format": (lambda e: manifest(e, format=2), "format 2 is not known"),
    "an unknown key": (lambda e: manifest(e, more=1), "expected format, name, hash and files"),
    "a name that climbs": (lambda e: manifest(e, name="../x"), "cannot be a folder's"),
    "a hidden name": (lambda e: manifest(e, name=".ssh"), "cannot be a folder's"),
    "another world's name": (lambda e: manifest(e, name="other"), "the world is tiny"),
    "another world's hash": (lambda e: manifest(e, hash="0" * 64), "pack.json says tiny 0000"),
    "sizes that are none": (lambda e: manifest(e, files=dict.fromkeys(json.loads(e["pack.json"])["files"], 3)),
                            "has bytes and sha256"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_pack_that_was_changed_is_refused_by_name_and_leaves_nothing(world: World, case: str) -> None:
    change, message = CHANGES[case]
    path = rewritten(lambda entries: [change(entries), None][1])
    with pytest.raises(WorldError, match=message) as refused:
        unpack(path, "there")
    assert "\n" not in str(refused.value) and str(refused.value).startswith("bad.dreamworld: ")
    assert sorted(p.name for p in Path.cwd().iterdir()) == ["bad.dreamworld", "good.dreamworld", "tiny"]


def test_compressed_and_doubled_entries_are_refused(world: World) -> None:
    with pytest.raises(WorldError, match="is compressed or encrypted"):
        unpack(rewritten(lambda entries: None, zipfile.ZIP_DEFLATED), "there")
    Path("good.dreamworld").unlink()
    path = rewritten(lambda entries: None)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as packed:
        packed.writestr("README.md", b"again")
    with pytest.raises(WorldError, match="stands twice"):
        unpack(path, "there")


def test_an_entry_above_its_cap_is_refused_before_it_is_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = pack("tiny")
    monkeypatch.setitem(packs.LIMITS, "starts.safetensors", 100)
    with pytest.raises(WorldError, match=r"starts.safetensors has \d+ bytes, above the cap of 100"):
        unpack(path, "there")


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06", b"no zip at all", b"\0" * 4000])
def test_what_is_no_pack_is_refused_in_one_line(world: World, content: bytes) -> None:
    Path("bad").write_bytes(content)
    with pytest.raises(WorldError, match=r"^bad: ") as refused:
        unpack("bad", "there")
    assert "\n" not in str(refused.value)
    with pytest.raises(WorldError, match="No such file"):
        unpack("none")


def test_a_pack_with_any_byte_changed_is_refused_or_harmless(world: World) -> None:
    """What comes out is the world that went in, or nothing."""
    path, _ = pack("tiny")
    whole = bytearray(path.read_bytes())
    rng = np.random.default_rng(1)
    refused = 0
    for number in range(300):
        changed = whole.copy()
        place = int(rng.integers(len(whole))) if number % 2 else len(whole) - 1 - int(rng.integers(900))
        changed[place] ^= int(rng.integers(1, 256))
        Path("bad").write_bytes(changed)
        try:
            assert unpack("bad", "there").hash == world.hash
            shutil.rmtree("there")
        except WorldError as error:
            refused += 1
            assert "\n" not in str(error)
        assert sorted(p.name for p in Path.cwd().iterdir()) == ["bad", "tiny", "tiny.dreamworld"]
    assert refused > 150


@pytest.mark.parametrize("text", ["[]", "{", '{"more": 1}', '{"assets": 3}', '{"evaluation": []}'])
def test_figures_are_read_strictly(world: World, text: str) -> None:
    Path("tiny", FIGURES_FILE).write_text(text)
    with pytest.raises(WorldError, match=r"figures.json"):
        load_world("tiny")
