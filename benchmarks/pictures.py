"""2,000 pictures from one polite host: our two connections against what one connection could carry at best.

The server is a process of its own on the loopback; each answer takes a while to begin and then a while for its bytes,
as a museum's does. One connection's best is measured in the same run: the same requests one after the other on one
kept-alive connection, by http.client, with nothing done to the bytes. Beside it what users write first: a loop of
urllib.

    PYTHONPATH=workflow:tests/support .venv/bin/python benchmarks/pictures.py
"""

import argparse
import http.client
import io
import multiprocessing
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
from museum import send, serving
from PIL import Image

from lora_atlas.pictures.decode import decode
from lora_atlas.pictures.fetch import Client
from lora_atlas.pictures.store import Store


def jpeg(seed: int, side: int = 512) -> bytes:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def serve(pictures: int, delay: float, rate: float, pipe) -> None:
    bodies = [jpeg(n) for n in range(50)]

    def answer(n: int):
        # Another comment at the end of each: the same picture, other bytes.
        body = bodies[n % 50][:-2] + b"\xff\xfe\x00\x0a%08d" % n + b"\xff\xd9"

        def slowly(handler):
            time.sleep(len(body) / rate)
            send(handler, body)

        return slowly

    with serving(delay=delay) as museum:
        museum.paths |= {f"/{n}": answer(n) for n in range(pictures)}
        pipe.send(museum.url)
        pipe.recv()
        pipe.send(museum.most)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--delay", type=float, default=0.02, help="seconds before an answer begins")
    parser.add_argument("--rate", type=float, default=5e6, help="bytes a second of a connection")
    asked = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(asked.pictures, asked.delay, asked.rate, theirs), daemon=True)
    server.start()
    url = ours.recv()
    host = url.removeprefix("http://")
    sample = min(asked.pictures, 300)

    start, size = time.perf_counter(), 0
    connection = http.client.HTTPConnection(host)
    for n in range(sample):
        connection.request("GET", f"/{n}")
        size += len(connection.getresponse().read())
    one = sample / (time.perf_counter() - start)

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for n in range(sample):
            with urllib.request.urlopen(f"{url}/{n}") as answer:
                Path(folder, str(n)).write_bytes(answer.read())
    loop = sample / (time.perf_counter() - start)

    with tempfile.TemporaryDirectory() as folder:
        store, entries = Store(folder), [{"url": f"{url}/{n}"} for n in range(asked.pictures)]
        start = time.perf_counter()
        Client("bench@example.org", private=True).fetch_all(entries, store, lambda data: decode(data, min_side=64))
        seconds = time.perf_counter() - start
        good = sum(store.bytes_of(entry)[0] is not None for entry in entries)
    ours.send(None)
    most = ours.recv()
    print(
        f"\n{asked.pictures} pictures of {size / sample / 1000:.0f} kB, {asked.delay * 1000:.0f} ms before each answer"
    )
    print(f"one kept-alive connection, bytes thrown away: {one:.1f} pictures/s")
    print(f"urllib in a loop, saved to files, unchecked:  {loop:.1f} pictures/s")
    print(
        f"lora_atlas: {asked.pictures / seconds:.1f} pictures/s in {seconds:.0f} s, {good} decoded, hashed and stored"
    )
    print(f"ratio to one connection {asked.pictures / seconds / one:.2f}; at most {most} requests at once")


if __name__ == "__main__":
    main()
