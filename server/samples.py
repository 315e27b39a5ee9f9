"""How numbers become what a scrape reads, in one process or put together from many workers.

``Alone`` gives out the numbers of its process. ``Shared`` keeps each worker's in files of
prometheus_client's own format, and whichever worker is scraped adds all of them up. Counters and
histograms of a worker that died stay in the sum, so no total ever falls; its gauges go.

The files are written here and not by prometheus_client's metrics, which cost 10 µs an answer, have
no call for "so many more in this bucket", and decide at import what the environment was.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Final, Literal, NamedTuple, Protocol

from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.utils import floatToGoString

from seckill.tally import Histogram

__all__ = ["Alone", "Family", "Sample", "Shared", "Store", "as_metrics"]

Kind = Literal["counter", "gauge", "histogram"]

# By the first word of their names. A worker fills a half at most.
FILE_BYTES: Final = {"counter": 128 * 1024, "histogram": 256 * 1024, "gauge": 16 * 1024}
# So many dead workers have files of their own; if there are more, all of theirs become one.
DEAD_MAX: Final = 4
_PAST: Final = "past"


class Family(NamedTuple):
    """One metric. A counter's name gets ``_total`` when it is shown. ``workers`` says how the
    gauges of several workers become one."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    workers: Literal["", "livesum", "livemin", "livemax"] = ""


class Sample(NamedTuple):
    """The value of a metric under some labels, as it is now."""

    family: Family
    labels: tuple[str, ...]
    value: float | Histogram


class Store(Protocol):
    """Where samples are kept between two scrapes."""

    def write(self, samples: Iterable[Sample]) -> None:
        """Keeps the present values, all of them."""

    def collect(self) -> Iterable[Metric]:
        """What a scrape shows. May be called in another thread."""

    def close(self) -> None:
        """This process counts no more."""


class Alone:
    """The store of a process that is scraped itself."""

    def __init__(self) -> None:
        self._metrics: list[Metric] = []

    def write(self, samples: Iterable[Sample]) -> None:
        """Part of Store."""
        self._metrics = as_metrics(samples)

    def collect(self) -> Iterable[Metric]:
        """Part of Store."""
        return self._metrics

    def close(self) -> None:
        """Part of Store."""


class Shared:
    """The store of one of several workers, in a directory that all of them can write to."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError when the files can't be made."""
        self._folder = folder
        # Whoever mounts the intake may use prometheus_client in the same process, whose files have
        # names by process id alone. So these are in a folder of our own, and a process id that
        # comes again does not meet the files of the dead.
        self._mine = f"{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, MmapedDict] = {}
        self._keys: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        self._written: dict[str, float] = {}

    def write(self, samples: Iterable[Sample]) -> None:
        """Part of Store."""
        for family, labels, value in samples:
            prefix = family.kind + (f"_{family.workers}" if family.workers else "")
            file = self._files.get(prefix) or self._open(prefix)
            keys = self._keys.get((family.name, labels))
            if keys is None:
                keys = self._keys[family.name, labels] = _keys(family, labels, value)
            values = (*value.counts, value.sum) if isinstance(value, Histogram) else (value,)
            for key, number in zip(keys, values, strict=True):
                if self._written.get(key) != number:
                    file.write_value(key, number, 0.0)
                    self._written[key] = number

    def collect(self) -> Iterable[Metric]:
        """Part of Store."""
        with self._locked():
            for path in self._of_the_dead("gauge"):
                path.unlink()
            for kind in ("counter", "histogram"):
                self._bury(kind)
            metrics: Iterable[Metric] = MultiProcessCollector(None, str(self._folder)).collect()
        return metrics

    def close(self) -> None:
        """Part of Store."""
        for prefix, file in self._files.items():
            file.close()
            if prefix.startswith("gauge"):
                (self._folder / f"{prefix}_{self._mine}.db").unlink(missing_ok=True)
        self._files.clear()

    def _open(self, prefix: str) -> MmapedDict:
        path = self._folder / f"{prefix}_{self._mine}.db"
        with _making(path, prefix.partition("_")[0]) as file:
            self._files[prefix] = file
        return file

    def _of_the_dead(self, kind: str) -> list[Path]:
        return [path for path in self._folder.glob(f"{kind}_*.db") if not _is_alive(_owner(path))]

    def _bury(self, kind: str) -> None:
        """Adds the dead up into one file, or workers that die all night would fill the disk."""
        past = self._folder / f"{kind}_{_PAST}.db"
        dead = self._of_the_dead(kind)
        if len(dead) <= DEAD_MAX:
            return
        sums: Counter[str] = Counter()
        for path in (*dead, *([past] if past.exists() else [])):
            for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):
                sums[key] += value
        with _making(past, kind) as file:
            for key, value in sums.items():
                file.write_value(key, value, 0.0)
        file.close()
        for path in dead:
            path.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One scrape at a time, in whatever worker, so that none sees a dead worker twice."""
        with (self._folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@contextmanager
def _making(path: Path, kind: str) -> Iterator[MmapedDict]:
    """A new file, which has its name only once it is whole: a scrape reads whatever has that name.
    Its space is taken now, because a page that a full disk can't hold would kill the process."""
    making = path.with_suffix(".new")
    with making.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, FILE_BYTES[kind])
        else:
            file.truncate(FILE_BYTES[kind])
    yield MmapedDict(str(making))
    making.rename(path)


def as_metrics(samples: Iterable[Sample]) -> list[Metric]:
    """The samples of one process as prometheus_client shows them."""
    found: dict[str, Metric] = {}
    for sample in samples:
        family = sample.family
        metric = found.get(family.name)
        if metric is None:
            metric = found[family.name] = Metric(family.name, family.help, family.kind)
        for name, labels, value in _lines(sample):
            metric.add_sample(name, labels, value)
    return list(found.values())


def _lines(sample: Sample) -> Iterator[tuple[str, dict[str, str], float]]:
    (name, kind, _, names, _), values, value = sample
    labels = dict(zip(names, values, strict=True))
    if isinstance(value, Histogram):
        for bound, count in zip(_bounds(value), accumulate(value.counts), strict=True):
            yield f"{name}_bucket", labels | {"le": bound}, count
        yield f"{name}_count", labels, value.total
        yield f"{name}_sum", labels, value.sum
    else:
        yield f"{name}_total" if kind == "counter" else name, labels, value


def _keys(family: Family, labels: tuple[str, ...], value: float | Histogram) -> list[str]:
    """The entries of a file that hold this sample; those of buckets are not cumulative."""
    name, kind, about, names, _ = family
    if not isinstance(value, Histogram):
        shown = f"{name}_total" if kind == "counter" else name
        return [mmap_key(name, shown, list(names), list(labels), about)]
    buckets = [
        mmap_key(name, f"{name}_bucket", [*names, "le"], [*labels, bound], about)
        for bound in _bounds(value)
    ]
    return [*buckets, mmap_key(name, f"{name}_sum", list(names), list(labels), about)]


def _bounds(histogram: Histogram) -> list[str]:
    return [floatToGoString(bound) for bound in (*histogram.bounds, float("inf"))]


def _owner(path: Path) -> str:
    return path.stem.rpartition("_")[2].partition("-")[0]


def _is_alive(owner: str) -> bool:
    if owner == _PAST:
        return True  # It is read with those of the living.
    try:
        os.kill(int(owner), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
