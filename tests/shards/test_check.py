"""Checking: sound sets pass, and every changed byte is found and placed."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import simplejpeg

from shards.check import check_folder, check_set, rebuild_index
from shards.errors import DataError
from shards.images import decode_strictly
from shards.manifest import encode_json, read_manifest
from shards.reader import ShardSet
from shards.sets.compose import append_set, merge_sets, write_subset
from shards.storage.paths import write_bytes
from tests.shards.small_tree import build_set, jpeg, label_maps, write_tree


def silent(facts):
    pass


def problems(root, jobs=1):
    return check_set(root, jobs, silent).problems


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check")
    tree = write_tree(folder / "tree", {"bear": label_maps(3, (1, 2)), "cup": [*label_maps(1, (3,)), None]})
    return build_set(tree, folder / "out", shard_size=8_000).root


@pytest.fixture
def root(built, tmp_path):
    return shutil.copytree(built, tmp_path / "set")


def flip(path, position, bit=0):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_a_sound_set_has_no_problems(root, jobs):
    seen = []
    outcome = check_set(root, jobs, seen.append)
    assert outcome.problems == () and tuple(seen) == outcome.manifest.shards
    assert len(seen) == 2


def test_a_flipped_bit_at_every_kind_of_place_in_a_tar_is_found_and_placed(root):
    facts = read_manifest(root).shards[0]
    path = root / facts.name
    sound = path.read_bytes()
    with ShardSet.open(root) as shard_set:
        image, mask = shard_set.read(1).image, shard_set.read(1).mask
    frame = f"{facts.name}, video bear, frame 00001"
    places = {
        "first header's name": (3, "no tar header at byte 0"),
        "first header's padding": (511, "headers or padding"),
        "facts of the video": (sound.index(b'"kind"') + 9, "headers or padding"),
        "image": (sound.index(image) + len(image) // 2, frame),
        "padding after the image": (sound.index(image) + len(image), "headers or padding"),
        "header of the mask": (sound.index(mask) - 500, "no tar header"),
        "mask": (sound.index(mask) + 20, frame),
        "end of the archive": (len(sound) - 1, "two zero blocks"),
    }
    for place, (position, expected) in places.items():
        flip(path, position)
        found = problems(root)
        assert any("SHA-256" in problem.found for problem in found), place
        assert any(expected in problem.place + problem.found for problem in found), (place, found)
        path.write_bytes(sound)
    assert problems(root) == ()


def test_random_flips_in_tars_and_index_are_all_found(root):
    generator = np.random.default_rng(7)
    files = [*sorted(root.glob("*.tar")), *sorted(root.glob("index/*.arrow"))]
    for path in files:
        sound = path.read_bytes()
        for position in generator.integers(0, len(sound), 12):
            flip(path, int(position), int(generator.integers(8)))
            assert any(path.name in problem.place for problem in problems(root)), (path.name, position)
            path.write_bytes(sound)


@pytest.mark.parametrize("table", ["videos", "frames", "objects"])
def test_a_damaged_index_is_made_again(root, table):
    path = root / "index" / f"{table}.arrow"
    sound = path.read_bytes()
    flip(path, len(sound) // 2)
    (found,) = problems(root)
    assert found.place == str(path) and f"from byte {len(sound) // 2} on" in found.found
    assert "--rebuild-index" in found.remedy
    path.unlink()
    assert [problem.found for problem in problems(root)] == ["missing"]
    rebuild_index(root)
    assert path.read_bytes() == sound and problems(root) == ()


def test_no_index_is_made_from_changed_shards(root):
    tar = root / read_manifest(root).shards[0].name
    table = root / "index" / "frames.arrow"
    before = table.read_bytes()
    flip(tar, tar.stat().st_size // 2)
    with pytest.raises(DataError, match="the index was left as it is"):
        rebuild_index(root)
    assert table.read_bytes() == before
    assert not any("--rebuild-index" in problem.remedy for problem in problems(root))


def test_missing_cut_and_extra_tars_are_found(root):
    path = root / read_manifest(root).shards[1].name
    sound = path.read_bytes()
    path.write_bytes(sound[:-512])
    assert any("bytes, SHA-256" in problem.found for problem in problems(root))
    path.unlink()
    assert [(problem.place, problem.found) for problem in problems(root)] == [(str(path), "missing")]
    path.write_bytes(sound)
    (root / "stray.tar").touch()
    assert [problem.found for problem in problems(root)] == ["a tar that the manifest does not list"]


def sealed(manifest):
    """The bytes of a manifest with these keys and a fingerprint that fits them, as somebody who lies would make it."""
    fields = {key: value for key, value in manifest.items() if key != "fingerprint"}
    return encode_json(fields | {"fingerprint": hashlib.sha256(encode_json(fields)).hexdigest()})


@pytest.mark.parametrize("made", ["built", "view", "union", "grown"])
def test_every_flipped_byte_of_the_small_files_is_found(root, tmp_path, made):
    """Ids and counts can be derived from the tars; kind, options, parents and remarks cannot: they have sums."""
    if made == "view":
        write_subset(root, tmp_path / "some", ["cup"])
    elif made == "union":
        merge_sets([root], tmp_path / "some")
    elif made == "grown":
        append_set(root, build_set(write_tree(tmp_path / "t", {"zebra": label_maps(2, (1,))}), tmp_path / "new").root)
    made_set = tmp_path / "some" if (tmp_path / "some").is_dir() else root
    generator = np.random.default_rng(3)
    small = [path for path in made_set.rglob("*.json*") if path.is_file()]
    assert len(small) == 3 + (made in ("view", "union"))
    for path in small:
        sound = path.read_bytes()
        assert problems(made_set) == () and sound
        for position in generator.integers(0, len(sound), 24):
            flip(path, int(position), int(generator.integers(8)))
            assert is_found(made_set), (path.name, int(position), path.read_bytes())
            path.write_bytes(sound)


def is_found(root):
    try:
        return bool(list(check_folder(root, read_manifest(root)))) or bool(problems(root))
    except DataError:
        return True


def test_a_changed_manifest_is_refused_by_whoever_reads_it(root):
    path = root / "manifest.json"
    sound = path.read_bytes()
    for before, after in ((b'"kind": "davis2017"', b'"kind": "davis2016"'), (b'"num_videos": 2', b'"num_videos": 3')):
        path.write_bytes(sound.replace(before, after))
        for read in (problems, ShardSet.open):
            with pytest.raises(DataError, match=r"manifest\.json: expected contents of the fingerprint it holds"):
                read(root)
    path.write_bytes(sound.replace(b"\n", b""))
    assert [problem.found for problem in problems(root)] == ["not in canonical form: somebody edited it"]
    path.write_bytes(sound.replace(b'"format_version": 1', b'"format_version": 2'))
    with pytest.raises(DataError, match="a manifest of format 1, found format 2"):
        problems(root)
    path.write_bytes(sound[:50])
    with pytest.raises(DataError, match=r"manifest\.json: expected a manifest of format 1"):
        problems(root)


def test_counts_that_are_not_those_of_the_tars_are_found_whatever_fingerprint_vouches_for_them(root):
    path = root / "manifest.json"
    fields = json.loads(path.read_bytes())
    path.write_bytes(sealed(fields | {"num_videos": 3}))
    assert any(problem.found == "videos: 3, the tars hold 2" for problem in problems(root))
    path.write_bytes(sealed(fields | {"splits": {"train": 1}}))
    assert any(problem.found == "splits: {'train': 1}, the tars hold {'train': 2}" for problem in problems(root))


def test_a_manifest_of_an_older_version_is_read_with_a_warning_and_gets_its_fingerprint(root, caplog):
    path = root / "manifest.json"
    sound = path.read_bytes()
    fields = json.loads(sound)
    fingerprint = fields.pop("fingerprint")
    path.write_bytes(encode_json(fields))
    assert read_manifest(root).fingerprint == fingerprint
    assert "holds no fingerprint" in caplog.text and "--rebuild-index" in caplog.text
    (found,) = problems(root)
    assert "an older version wrote it" in found.found and "--rebuild-index" in found.remedy
    rebuild_index(root)
    assert path.read_bytes() == sound and problems(root) == ()


def test_a_path_that_is_no_set_gets_the_right_advice(root, tmp_path):
    with pytest.raises(DataError, match=rf"found none; give the folder of a set: {root}"):
        read_manifest(root.parent)
    tar = root / read_manifest(root).shards[0].name
    with pytest.raises(DataError, match=rf"found a file; give the folder of the set it belongs to, {root}$"):
        read_manifest(tar)
    with pytest.raises(DataError, match=r"found no such folder; give the folder that tools/shard\.py made"):
        read_manifest(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"found none; give the folder that tools/shard\.py made, or run it again"):
        read_manifest(tmp_path / "empty")


def test_a_list_of_refusals_that_does_not_fit_is_found(root):
    path = root / "rejected.jsonl"
    sound = path.read_bytes()
    assert sound.count(b"\n") == 1
    path.write_bytes(sound.replace(b"short video", b"shirt video"))
    assert [problem.found.partition(" ")[0] for problem in problems(root)] == ["SHA-256"]
    write_bytes(path, b"{}\n")
    assert "cannot be read" in problems(root)[0].found
    path.unlink()
    assert "cannot be read" in problems(root)[0].found


def test_an_image_that_does_not_decode_is_found_even_where_all_sums_fit(tmp_path, tree, monkeypatch):
    from shards.building import convert
    from shards.images import SourceImage

    monkeypatch.setattr(convert, "read_image", lambda data, scaling: SourceImage(data, (40, 56), (40, 56), ()))
    bad = tree / "JPEGImages/480p/fox/00002.jpg"
    bad.write_bytes(bad.read_bytes()[:-100])
    root = build_set(tree, tmp_path / "out").root
    (found,) = problems(root)
    assert found.place.endswith("video fox, frame 00002") and "Premature end" in found.found


def test_decoding_an_eighth_finds_the_faults_of_decoding_it_all():
    generator = np.random.default_rng(5)
    original = jpeg(3, height=160, width=240, quality=95)
    verdicts = []
    for _ in range(400):
        data = bytearray(original)
        if generator.random() < 0.3:
            del data[int(generator.integers(300, len(data))) :]
        else:
            data[int(generator.integers(2, len(data)))] ^= 1 << int(generator.integers(8))
        verdicts.append((_fails(_decode_all, data), _fails(decode_strictly, data)))
    assert all(whole == eighth for whole, eighth in verdicts)
    assert 100 < sum(eighth for _, eighth in verdicts) < 400


def _decode_all(data):
    simplejpeg.decode_jpeg(data, "RGB", strict=True)


def _fails(decode, data):
    try:
        decode(bytes(data))
    except ValueError:
        return True
    return False
