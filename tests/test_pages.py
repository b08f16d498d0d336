"""Huge pages are asked for inside of large tensors, and for no others; without them everything is as it is."""

import sys

import pytest
import torch

from fastpack.torch import pages


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    found: list[tuple[int, int, int]] = []
    monkeypatch.setattr(pages, "_madvise", lambda: lambda *arguments: found.append(arguments) or 0)
    return found


def test_whole_pages_of_large_tensors_are_asked_for(asked: list) -> None:
    small, large = torch.empty(1000), torch.empty(pages.LARGE // 8 + 5, dtype=torch.float64)
    assert pages.in_huge_pages(small) is small
    assert asked == []
    assert pages.in_huge_pages(large) is large
    ((start, nbytes, advice),) = asked
    end = large.data_ptr() + large.numel() * 8
    assert start % pages.mmap.PAGESIZE == nbytes % pages.mmap.PAGESIZE == 0
    assert large.data_ptr() <= start < large.data_ptr() + pages.mmap.PAGESIZE
    assert end - pages.mmap.PAGESIZE < start + nbytes <= end
    assert advice == 14


def test_the_system_takes_the_request() -> None:
    tensor, advise = torch.empty(pages.LARGE // 4), pages._madvise()
    assert pages.in_huge_pages(tensor) is tensor
    assert (tensor.fill_(3) == 3).all()
    assert (advise is None) == (sys.platform != "linux")
    assert advise is None or advise(1, 1, 14) == -1  # it would say so if it did not


def test_elsewhere_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages.sys, "platform", "darwin")
    pages._madvise.cache_clear()
    try:
        tensor = torch.empty(pages.LARGE)
        assert pages._madvise() is None
        assert pages.in_huge_pages(tensor) is tensor
    finally:
        pages._madvise.cache_clear()
