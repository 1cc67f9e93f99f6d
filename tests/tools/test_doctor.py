"""The doctor measures what is there, says what it means, and tells bad places from bad words."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from pipelines.reading.doctor import Diagnosis, Examination, RecipePrediction, diagnose_set, speed_of, verdict
from shards.reader import ShardSet
from shards.sets.sparse_set import SparseSet, write_sparse_set
from shards.shard_files import SlowStorage
from shards.speed import Measured, StorageSpeed, Target, measure_reads, targets_of_folder, targets_of_set
from shards.storage_limits import device_limit
from tests.servers import range_server
from tests.shards.small_tree import build_set, label_maps, write_tree
from tools import doctor as tool


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("set")
    tree = write_tree(out / "tree", {f"video{n}": label_maps(30, (1, 2), seed=n) for n in range(3)})
    return build_set(tree, out).root


def reads(*rates: tuple[int, int, float], cold: float | None = 1.0) -> tuple[Measured, ...]:
    return tuple(Measured(size, n, 100, size * 100 / rate, 0.002, 0.01, cold) for size, n, rate in rates)


def test_the_table_the_walls_the_recipes_and_the_verdict_are_printed(root, tmp_path, capsys):
    report = tmp_path / "doctor.json"
    assert tool.doctor([str(root), "--seconds", "0.05", "--json", str(report)]) == 0
    printed, found = capsys.readouterr().out, json.loads(report.read_text())
    assert {(read["size"], read["parallel"]) for read in found["reads"]} >= {(4096, 1), (4096, 4), (4096, 16)}
    for words in ("walls", "CRC-32", "rde_video", "not for this set: expected soft masks", "MB/s at best"):
        assert words in printed
    video = next(one for one in found["recipes"] if one["recipe"] == "rde_video")
    assert video["num_frames"] == 5 and set(video["clips_per_second"]) == {"frame", "span", "resident"}
    assert video["decoding"] > 0 and "is the limit on" in printed
    assert found["speed"]["bandwidth"] == pytest.approx(
        speed_of([Measured(**read) for read in found["reads"]]).bandwidth
    )
    assert " ".join(found["verdict"]) in " ".join(printed.split())


def test_a_url_and_a_plain_folder_can_be_examined(root, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("VOSFORGE_CACHE", str(tmp_path / "index"))
    with range_server(root.parent) as server:
        assert tool.doctor([f"{server.url}/{root.name}", "--seconds", "0.01"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "over the network; the server may hold it in its memory" in printed
    assert "Copies of the indexes of 1 remote set take 0 MB in " in printed and "ms of CPU a request" in printed
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "large").write_bytes(bytes(3 << 20))
    assert tool.doctor([str(tmp_path / "files"), "--seconds", "0.01"]) == 0
    assert "clips as of BL30K" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: expected a shard set, or a folder with files of 1 MB or more, found neither"),
        (["{root}", "--split", "vall"], "no split 'vall'; there are: train"),
    ],
)
def test_a_place_without_data_is_one_message(root, words, message):
    with pytest.raises(ValueError, match=message):
        tool.doctor([word.format(root=root) for word in words])


@pytest.mark.parametrize("words", [["--seconds", "0"], ["--memory", "much"], ["--threads", "0"]])
def test_bad_usage_is_status_2(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        tool.doctor(["somewhere", *words])
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_slowed_storage_is_measured_as_slow_as_it_is(tmp_path):
    root = write_sparse_set(tmp_path, SparseSet(num_videos=4, num_frames=20))
    with ShardSet.open(root, SlowStorage(0.02, 2e8)) as slow:
        found = diagnose_set(slow, Examination(seconds=0.1))
    assert 0.02 <= found.speed.latency < 0.2
    assert 2e7 < found.speed.bandwidth < 2.2e8
    assert found.recipes[0].decoding is None  # zeros do not decode
    frame = next(one for one in found.recipes if one.recipe == "rde_bl30k")
    assert 0.4 < frame.megabytes < 1.1


def test_places_are_spread_and_the_same_in_every_call(tmp_path):
    class Recorder:
        def __init__(self) -> None:
            self.asked: list[tuple[int, int]] = []

        def read(self, ranges, *, fresh=False):
            self.asked += ranges
            return [b""] * len(ranges)

    files = [Recorder(), Recorder()]
    targets = [Target(file, size, None) for file, size in zip(files, (10_000_000, 30_000_000), strict=True)]
    measured = measure_reads(targets, 1000, 1, num_reads=200)
    first, second = (sorted(start for start, _ in file.asked) for file in files)
    assert (len(first) + len(second), measured.num_reads, measured.cold) == (200, 200, None)
    assert 45 <= len(first) <= 55  # a quarter of the bytes
    assert max(b - a for a, b in pairwise(second)) < 30_000_000 * 3 / 150
    before = list(files[0].asked)
    measure_reads(targets, 1000, 1, num_reads=200)
    assert files[0].asked == before * 2


def test_what_the_kernel_was_made_to_forget_is_called_cold(tmp_path):
    (tmp_path / "large").write_bytes(bytes(8 << 20))
    targets = targets_of_folder(tmp_path)
    warm = measure_reads(targets, 4096, 1, num_reads=8, forget=False)
    assert warm.cold == 0.0
    with (tmp_path / "large").open("rb+") as file:
        os.fsync(file.fileno())
    cold = measure_reads(targets, 4096, 1, num_reads=8)
    assert cold.cold in (0.0, 1.0)  # file systems that live in memory forget nothing, and then it must say so


def test_shards_of_a_set_are_measured_as_the_set_opens_them(root):
    with ShardSet.open(root) as shard_set:
        (target,) = targets_of_set(shard_set)
        assert target.file.read([(0, 5)]) == [b"video"]


@pytest.mark.parametrize(
    ("name", "rotational", "link", "rate"),
    [
        ("sda", "1", None, 150e6),
        ("sdb", "0", None, None),
        ("vda", "1", None, None),
        ("nvme0n1", "0", ("16.0 GT/s PCIe", "4"), 16e9 * 128 / 130 * 4 / 8),
        ("nvme0n1", "0", ("5.0 GT/s PCIe", "2"), 1e9),
        ("nvme0n1", "0", ("Unknown", "255"), None),
        ("nvme0n1", "0", None, None),
    ],
)
def test_a_disk_says_what_its_kind_and_link_allow(tmp_path, name, rotational, link, rate):
    card = tmp_path / "0000:01:00.0"
    (card / "nvme" / name / "queue").mkdir(parents=True)
    (card / "nvme" / name / f"{name}p1").mkdir()
    (card / "nvme" / name / "queue" / "rotational").write_text(f"{rotational}\n")
    if link is not None:
        (card / "current_link_speed").write_text(f"{link[0]}\n")
        (card / "current_link_width").write_text(f"{link[1]}\n")
    for device in (card / "nvme" / name, card / "nvme" / name / f"{name}p1"):
        (tmp_path / "259:0").unlink(missing_ok=True)
        (tmp_path / "259:0").symlink_to(device)
        assert device_limit("disk", tmp_path / "259:0").bytes_per_second == (rate and pytest.approx(rate))
    assert "no block device" in device_limit("disk", tmp_path / "1:2").note


def test_reads_of_the_same_bytes_are_no_measure_of_the_storage(tmp_path):
    (tmp_path / "large").write_bytes(bytes(8 << 20))
    targets = targets_of_folder(tmp_path)
    over_each_other = measure_reads(targets, 6 << 20, 4, num_reads=8)
    assert over_each_other.num_reads == 8
    assert over_each_other.cold is not None and over_each_other.cold <= 1 / 8
    side_by_side = measure_reads(targets, 1 << 20, 1, num_reads=24)
    assert 3 <= side_by_side.num_reads <= 8, "as many as there is room for"
    small, memory, disk = reads((4096, 1, 1e6), (1 << 20, 16, 5e9), (1 << 20, 4, 5e8))
    mixed = (small, replace(memory, cold=0.5), disk)
    assert speed_of(mixed).bandwidth == pytest.approx(5e8)
    lines = verdict(diagnosis(mixed))
    assert "1 of 3 measurements are left out" in lines[0] and "500 MB/s at best" in lines[0]
    assert "It takes 4 requests at a time" in lines[-1]
    for cold in (0.0, 1.0):  # small reads alone say nothing of bandwidth
        assert speed_of((replace(small, cold=cold), replace(memory, cold=0.0))).bandwidth == pytest.approx(5e9)


@pytest.mark.parametrize(
    ("cold", "words"),
    [
        (1.0, "cold: not in this machine's memory"),
        (0.0, "WARM"),
        (0.5, "partly WARM: 50 %"),
        (None, "of files that belong to others the kernel does not tell"),
    ],
)
def test_the_verdict_says_what_was_measured(cold, words):
    assert words in " ".join(verdict(diagnosis(reads((4096, 1, 1e6), (1 << 20, 16, 5e8), cold=cold))))


def test_the_verdict_names_the_limit_and_the_threads_it_takes():
    text = " ".join(verdict(diagnosis(reads((4096, 1, 1e6), (1 << 20, 16, 5e8)))))
    assert "2.00 ms to answer a small read, 500 MB/s at best" in text
    assert "Storage is the limit on 8 cores, 90 clips/s: slow." in text
    assert "Decoding is the limit on 8 cores, 250 to 300 clips/s: fast, faster." in text
    assert "It takes 16 requests at a time" in text
    assert "although" not in text, "each is advised the fastest way"


def test_the_verdict_says_why_a_slower_plan_is_advised():
    found = diagnosis(reads((4096, 1, 1e6), (1 << 20, 16, 5e8)))
    enough = RecipePrediction("enough", 3, 0.4, "frame", {"frame": 900.0, "span": 950.0, "resident": 100.0}, 300.0)
    text = " ".join(verdict(replace(found, recipes=(*found.recipes, enough))))
    assert "By frame although another way is predicted to be faster for enough: of frame, span, resident" in text


def diagnosis(measured: tuple[Measured, ...]) -> Diagnosis:
    slow = RecipePrediction("slow", 5, 0.7, "span", {"frame": 20.0, "span": 90.0, "resident": 10.0}, 400.0)
    fast = RecipePrediction("fast", 3, 0.4, "frame", {"frame": 900.0}, 300.0)
    faster = RecipePrediction("faster", 3, 0.2, "frame", {"frame": 1800.0}, 250.0)
    return Diagnosis("data", measured, measured[0], speed_of(measured), (), 16, 8, (slow, fast, faster), {})


def test_a_speed_of_nothing_is_refused():
    with pytest.raises(ValueError, match="bandwidth above 0"):
        StorageSpeed(0.1, 0)
