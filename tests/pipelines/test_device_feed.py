"""The order of copies and events on a GPU, with stand-ins for the device: nothing is overwritten or read too early."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

from pipelines.device_feed import NUM_BUFFERS, CudaFeed, NoFeed, make_feed
from pipelines.types import ClipPixels


class Machine:
    """A device that remembers what was asked of it; copies to it end only when somebody waits for their event."""

    def __init__(self) -> None:
        self.log: list[tuple[str, object]] = []
        self.streams: list[str] = ["main"]
        self.pinned = 0
        self.events = 0

    @contextmanager
    def stream(self, stream: str):
        self.streams.append(stream)
        yield
        self.streams.pop()

    def current_stream(self, _device):
        return Stream(self, self.streams[-1])


@dataclass
class Stream:
    machine: Machine
    name: str = "side"

    def wait_event(self, event: Event) -> None:
        self.machine.log.append((f"{self.name} waits", event.number))


class Event:
    def __init__(self, machine: Machine) -> None:
        self.machine, self.number = machine, machine.events
        machine.events += 1

    def record(self, stream: Stream) -> None:
        self.machine.log.append((f"record on {stream.name}", self.number))

    def synchronize(self) -> None:
        self.machine.log.append(("host waits", self.number))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(machine))
    monkeypatch.setattr(torch.cuda, "Event", lambda: Event(machine))
    monkeypatch.setattr(torch.cuda, "stream", machine.stream)
    monkeypatch.setattr(torch.cuda, "current_stream", machine.current_stream)
    empty, to = torch.empty, torch.Tensor.to

    def pinned_empty(*shape, pin_memory=False, **options):
        machine.pinned += pin_memory
        return empty(*shape, **options)

    def upload(tensor, device, *, non_blocking=False):
        assert non_blocking
        machine.log.append(("copy from", tensor.data_ptr()))
        return to(tensor, "cpu").clone()

    monkeypatch.setattr(torch, "empty", pinned_empty)
    monkeypatch.setattr(torch.Tensor, "to", upload)
    return machine


def pixels(value: int, clips: int = 2) -> ClipPixels:
    images = torch.full((clips, 3, 4, 4, 3), value, dtype=torch.uint8)
    return ClipPixels(images, images[..., 0].clone(), torch.ones(clips, 3, dtype=torch.bool))


def test_a_buffer_is_filled_again_only_after_the_copy_out_of_it_has_ended(machine):
    feed = CudaFeed(torch.device("cuda", 0))
    for value in range(5):
        with feed.working():
            moved = feed.upload(pixels(value))
        assert (moved.images == value).all() and moved.soft is False
    ends = {number: place for place, (what, number) in enumerate(machine.log) if what == "record on side"}
    waits = {number: place for place, (what, number) in enumerate(machine.log) if what == "host waits"}
    copies = [(place, address) for place, (what, address) in enumerate(machine.log) if what == "copy from"]
    for turn in range(NUM_BUFFERS, 5):
        reused = copies[3 * turn : 3 * turn + 3]
        assert [address for _, address in reused] == [a for _, a in copies[3 * (turn - NUM_BUFFERS) :][:3]]
        assert ends[turn - NUM_BUFFERS] < waits[turn - NUM_BUFFERS] < reused[0][0]
    assert len({address for _, address in copies}) == 3 * NUM_BUFFERS
    assert machine.pinned == 3 * NUM_BUFFERS


def test_buffers_grow_with_the_batch_and_serve_smaller_ones(machine):
    feed = CudaFeed(torch.device("cuda", 0))
    for clips in (1, 1, 4, 4, 2, 3):
        assert feed.upload(pixels(7, clips)).images.shape == (clips, 3, 4, 4, 3)
    assert machine.pinned == 3 * NUM_BUFFERS * 2


def test_what_is_on_the_device_already_is_left_there(machine):
    feed, there = CudaFeed(torch.device("cuda", 0)), torch.zeros(2, 3, device="meta")
    clip = ClipPixels(there, there, there)
    assert feed.upload(clip) is clip and machine.log == []


def test_the_training_stream_waits_for_the_batch_and_keeps_its_tensors(machine, monkeypatch):
    kept = []
    monkeypatch.setattr("pipelines.device_feed._tensors", lambda record: record)

    class OnDevice:
        device = torch.device("cuda", 0)

        def record_stream(self, stream):
            kept.append((self, stream.name))

    feed, images, misses = CudaFeed(torch.device("cuda", 0)), OnDevice(), OnDevice()
    with feed.working():
        assert machine.streams[-1] == Stream(machine)
        mark = feed.finish()
    feed.receive(mark, {"images": images}, {"misses": misses})
    assert machine.log == [("record on side", mark.number), ("main waits", mark.number)]
    assert kept == [(images, "main"), (misses, "main")]


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu")])
def test_cpus_need_no_feed(device):
    feed, clip = make_feed(device), pixels(1)
    assert isinstance(feed, NoFeed)
    with feed.working():
        assert feed.upload(clip) is clip
    feed.receive(feed.finish(), clip)
