"""Faults of downloads (rows 1 to 15 of the catalogue), each injected by a server on the loopback."""

import email.utils
import gzip
import io
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from hashlib import sha1, sha256
from pathlib import Path

import numpy as np
import pytest
from museum import send, serving
from PIL import Image

from lora_atlas.pictures.decode import PictureError, decode, encode_png
from lora_atlas.pictures.fetch import Client, FetchError, Limits
from lora_atlas.pictures.store import Store

# Requests are counted: a deadline that a busy machine misses would ask once more. QUICK is for servers that never end.
CALM = Limits(attempts=3, connect=60, read=60, deadline=120, backoff=0.01, backoff_max=0.05, size=200_000)
QUICK = Limits(**(vars(CALM) | {"connect": 2, "read": 0.4, "deadline": 1.0}))


def picture(seed: int = 0, side: int = 40) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def jpeg(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def check(data: bytes) -> None:
    decode(data, min_side=16)


@pytest.fixture
def museum():
    with serving() as found:
        yield found


@pytest.fixture
def client():
    return Client("atlas@example.org", private=True, limits=CALM)


def failure(client: Client, url: str, **arguments) -> FetchError:
    with pytest.raises(FetchError) as caught:
        client.get(url, **arguments)
    return caught.value


def first_then(first, then: bytes):
    """A path that answers with `first` once and with the bytes `then` ever after."""
    calls = []

    def answer(handler):
        calls.append(1)
        first(handler) if len(calls) == 1 else send(handler, then)

    return answer


# --- 1 to 3: answers that are no pictures, waits, bodies that break off


@pytest.mark.fault(
    "downloads",
    "a server answers 429 or 5xx with an error page as the body",
    "it is asked again; after the last attempt the status is named, and the page is never stored",
)
@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_1_a_server_in_trouble_is_asked_again_and_its_error_page_is_never_a_picture(museum, client, status):
    museum.paths["/a"] = first_then(lambda h: send(h, b"an error page", status), picture())
    assert client.get(museum.url + "/a", check) == picture()
    museum.paths["/b"] = lambda h: send(h, b"an error page", status)
    error = failure(client, museum.url + "/b")
    assert f"HTTP {status}" in str(error) and "3 attempts" in str(error) and not error.final
    assert museum.asked("/b") == 3


@pytest.mark.fault(
    "downloads", "a picture is gone or forbidden (401, 403, 404, 410, 451)", "refused for good after one request"
)
@pytest.mark.parametrize("status", [401, 403, 404, 410, 451])
def test_1_what_is_gone_or_forbidden_is_asked_once(museum, client, status):
    museum.paths["/a"] = lambda h: send(h, b"", status)
    assert failure(client, museum.url + "/a").final and museum.asked("/a") == 1


@pytest.mark.fault("downloads", "Retry-After in seconds", "all requests to that host wait as long")
def test_2_retry_after_in_seconds_is_obeyed_by_all_that_is_asked_of_the_host(museum, client, tmp_path):
    museum.paths["/busy"] = first_then(lambda h: send(h, b"", 429, Retry_After="1"), picture(1))
    museum.paths["/other"] = picture(2)
    assert client.get(museum.url + "/busy") == picture(1)
    assert museum.at[1] - museum.at[0] >= 0.99
    host = client._host(museum.url)
    start = time.monotonic()
    host.not_before = start + 0.3
    client.get(museum.url + "/other")
    assert time.monotonic() - start >= 0.29


@pytest.mark.fault("downloads", "Retry-After as a date", "nothing is asked before that date")
def test_2_retry_after_as_a_date_is_obeyed(museum, client):
    when = datetime.fromtimestamp(int(time.time()) + 2, UTC)
    date = email.utils.format_datetime(when, usegmt=True)
    museum.paths["/a"] = first_then(lambda h: send(h, b"", 503, Retry_After=date), picture())
    assert client.get(museum.url + "/a") == picture()
    assert time.time() >= when.timestamp() - 0.01 and museum.asked("/a") == 2


@pytest.mark.fault(
    "downloads", "Retry-After of a day, or of the year 2100", "the picture is left for the next run; nobody waits"
)
@pytest.mark.parametrize("stated", ["86400", "Fri, 31 Dec 2100 23:59:59 GMT"])
def test_2_a_wait_beyond_the_cap_is_left_for_the_next_run(museum, client, stated):
    museum.paths["/a"] = lambda h: send(h, b"", 429, Retry_After=stated)
    error = failure(client, museum.url + "/a")
    assert "asks to wait" in str(error) and not error.final and museum.asked("/a") == 1


@pytest.mark.fault(
    "downloads", "Retry-After that is nonsense, negative or empty", "the request is repeated as without it"
)
@pytest.mark.parametrize("stated", ["soon", "-5", "", "Mon, 99 Foo 2026"])
def test_2_a_retry_after_that_is_none_is_no_reason_to_stop(museum, client, stated):
    museum.paths["/a"] = first_then(lambda h: send(h, b"", 503, Retry_After=stated), picture())
    assert client.get(museum.url + "/a") == picture()


def cut(data: bytes, at: int, **headers):
    def answer(handler):
        send(handler, data[:at], Content_Length=str(len(data)), **headers)
        handler.close_connection = True

    return answer


@pytest.mark.fault("downloads", "a body ends before its Content-Length", "fetched again; else refused as incomplete")
def test_3_a_body_shorter_than_its_length_is_fetched_again(museum, client):
    museum.paths["/a"] = first_then(cut(picture(), 500), picture())
    assert client.get(museum.url + "/a") == picture() and museum.asked("/a") == 2
    museum.paths["/b"] = cut(picture(), 500)
    assert "IncompleteRead" in str(failure(client, museum.url + "/b"))


# --- 4 to 6: no length, Range, drips


def closing(data: bytes):
    def answer(handler):
        send(handler, data, Content_Length=None, Connection="close")
        handler.close_connection = True

    return answer


@pytest.mark.fault("downloads", "a body without a length is cut", "the decoder refuses it, and it is fetched again")
def test_4_a_cut_body_without_a_length_is_caught_by_the_decoder(museum, client):
    museum.paths["/a"] = first_then(closing(jpeg()[:1500]), jpeg())
    assert client.get(museum.url + "/a", check) == jpeg()
    museum.paths["/b"] = closing(jpeg()[:1500])
    assert str(failure(client, museum.url + "/b", check=check)).startswith("truncated or damaged")
    museum.paths["/c"] = closing(jpeg())
    assert client.get(museum.url + "/c", check) == jpeg()


@pytest.mark.fault(
    "downloads", "the same where the manifest states a hash", "refused with the expected hash and the one that came"
)
def test_4_a_cut_body_without_a_length_is_caught_by_the_hash(museum, client, tmp_path):
    store, entry = Store(tmp_path), {"url": museum.url + "/a", "sha256": sha256(jpeg()).hexdigest()}
    museum.paths["/a"] = closing(jpeg()[:-2])
    client.fetch_all([entry], store, lambda data: None)
    data, reason = store.bytes_of(entry)
    assert data is None and sha256(jpeg()).hexdigest() in reason and sha256(jpeg()[:-2]).hexdigest() in reason


def send_rest(handler, data: bytes, asked: str, etag: str) -> None:
    """What the header Range asks for, "bytes=N-"; 416 where nothing is left."""
    at = int(asked.removeprefix("bytes=").removesuffix("-"))
    if at >= len(data):
        send(handler, b"", 416, Content_Range=f"bytes */{len(data)}", ETag=etag)
    else:
        send(handler, data[at:], 206, Content_Range=f"bytes {at}-{len(data) - 1}/{len(data)}", ETag=etag)


def ranged(data: bytes, obeys: bool, etag: str = '"one"'):
    """Cuts the first answer in half; then continues where it is asked to, or starts again."""
    calls = []

    def answer(handler):
        calls.append(1)
        asked = handler.headers.get("Range")
        if len(calls) == 1:
            cut(data, len(data) // 2, ETag=etag)(handler)
        elif asked and obeys:
            send_rest(handler, data, asked, etag)
        else:
            send(handler, data, ETag=etag)

    return answer


@pytest.mark.fault(
    "downloads",
    "a server ignores Range and sends the whole body",
    "the body begins anew; nothing is appended to the first half",
)
@pytest.mark.parametrize("obeys", [True, False])
def test_5_a_body_is_continued_where_the_server_can_and_never_appended_where_it_cannot(museum, client, obeys):
    data = picture(side=100)
    museum.paths["/a"] = ranged(data, obeys)
    assert client.get(museum.url + "/a") == data
    second = museum.log[1][1]
    assert second["Range"] == f"bytes={len(data) // 2}-" and second["If-Range"] == '"one"'


@pytest.mark.fault(
    "downloads", "a server names no strong ETag for what is half there", "nothing is continued: the whole is asked for"
)
def test_5_without_a_version_nothing_is_continued(museum, client):
    museum.paths["/a"] = ranged(picture(), True, etag='W/"weak"')
    assert client.get(museum.url + "/a") == picture() and "Range" not in museum.log[1][1]


def test_5_a_file_that_was_left_half_is_continued(museum, client, tmp_path):
    data = picture(side=100)
    museum.paths["/a"] = ranged(data, True)
    (tmp_path / "part").write_bytes(data[:100])
    museum.paths["/a"](
        type(
            "once",
            (),
            {
                "headers": {},
                "send_response": lambda *a: 0,
                "send_header": lambda *a: 0,
                "end_headers": lambda *a: 0,
                "wfile": io.BytesIO(),
                "close_connection": False,
            },
        )()
    )  # spend the cut answer
    with (tmp_path / "part").open("rb+") as sink:
        assert client.save(museum.url + "/a", sink, 100, '"one"') == '"one"'
    assert (tmp_path / "part").read_bytes() == data and museum.log[0][1]["Range"] == "bytes=100-"


def versioned(bodies: list[bytes], asked: list):
    """What nginx does for its files: a strong ETag each, Range obeyed, 416 where nothing is left."""

    def answer(handler):
        data = bodies[min(len(asked), len(bodies) - 1)]
        tag, wanted = f'"{sha1(data).hexdigest()}"', handler.headers.get("Range")
        asked.append(wanted)
        if wanted and handler.headers.get("If-Range") == tag:
            send_rest(handler, data, wanted, tag)
        else:
            send(handler, data, ETag=tag)

    return answer


@pytest.mark.fault(
    "downloads",
    "a server with strong ETags sends an error page as a whole file with 200",
    "the file is asked for from its beginning, now and in the next run; 416 (RFC 9110, 15.5.17) is never the reason",
)
def test_5_a_whole_body_that_is_no_picture_is_not_continued(museum, client, tmp_path):
    page, asked = b"<!doctype html><html>please wait</html>", []
    museum.paths["/soon"] = versioned([page, page, picture()], asked)
    assert client.get(museum.url + "/soon", check=check) == picture() and asked == [None] * 3
    museum.paths["/never"] = versioned([page], [])
    store, entry = Store(tmp_path), {"url": museum.url + "/never"}
    client.fetch_all([entry], store, check)
    assert "web page" in store.bytes_of(entry)[1] and store.wants(entry)


def test_5_a_file_that_was_left_whole_is_whole_and_one_that_has_changed_begins_anew(museum, client, tmp_path):
    data, etag = picture(side=100), f'"{sha1(picture(side=100)).hexdigest()}"'
    for left in (data, data + b"of another length"):
        (tmp_path / "part").write_bytes(left)
        museum.paths["/a"] = versioned([data], [])
        with (tmp_path / "part").open("rb+") as sink:
            assert client.save(museum.url + "/a", sink, len(left), etag) == etag
        assert (tmp_path / "part").read_bytes() == data


def drip(handler):
    send(handler, b"", Content_Length="100000")
    for _ in range(60):
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.1)


def stall(handler):
    send(handler, b"half", Content_Length="100000")
    time.sleep(2)


def drip_headers(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(60):
        handler.wfile.write(b"X-%d: y\r\n" % number)
        handler.wfile.flush()
        time.sleep(0.1)


@pytest.mark.fault("downloads", "a server stalls, or drips bytes or headers", "a total deadline ends the request")
@pytest.mark.parametrize("tease", [drip, stall, drip_headers])
def test_6_a_server_that_drips_or_stalls_holds_nobody(museum, client, tease):
    once = Client("atlas@example.org", private=True, limits=Limits(**(vars(QUICK) | {"attempts": 1})))
    museum.paths["/a"] = tease
    error = failure(once, museum.url + "/a")
    assert "no end after 1 s" in str(error) or "Timeout" in str(error)


# --- 7, 8: killed, changed


KILLED = """
import sys
from lora_atlas.pictures.fetch import Client, Limits
from lora_atlas.pictures.store import Store
url, folder = sys.argv[1:]
client = Client("atlas@example.org", private=True, limits=Limits(attempts=1))
client.fetch_all([{"url": f"{url}/{n}"} for n in range(40)], Store(folder), lambda data: None)
"""


@pytest.mark.fault(
    "downloads",
    "SIGKILL while pictures are fetched, ten times",
    "each is whole or absent; the next run asks for what is missing alone",
)
@pytest.mark.slow
def test_7_killed_at_any_moment_a_rerun_fetches_only_what_is_missing(tmp_path):
    """Ten kills, each somewhere else; every picture that was stored is asked for once."""
    data = {f"/{n}": picture(n) for n in range(40)}
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3] / "workflow")}
    rng = np.random.default_rng(0)
    with serving(delay=0.02) as museum:
        museum.paths |= data

        def stored() -> set[str]:
            return {path for path in data if Store(tmp_path).bytes_of({"url": museum.url + path})[0]}

        for kill in range(10):
            before = len(museum.log)
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    KILLED.replace("range(40)]", "range(40) if not Store(folder).bytes_of({'url': f'{url}/{n}'})[0]]"),
                    museum.url,
                    str(tmp_path),
                ],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            while len(museum.log) == before and process.poll() is None:
                time.sleep(0.005)
            time.sleep(float(rng.uniform(0, 0.1)))
            while kill == 9 and not stored() and process.poll() is None:
                time.sleep(0.005)  # however slow the disk is
            process.send_signal(signal.SIGKILL)
            process.communicate()
            store = Store(tmp_path)
            for path, wanted in data.items():
                found = store.bytes_of({"url": museum.url + path})[0]
                assert found in (None, wanted)
        there = stored()
        assert there  # some were stored between the kills
        museum.log.clear()
        client = Client("atlas@example.org", private=True)
        entries = [{"url": museum.url + path} for path in data]
        client.fetch_all([entry for entry in entries if store.wants(entry)], store, lambda data: None)
        assert museum.numbers() == {path: 1 for path in data if path not in there}
    assert all(store.bytes_of({"url": museum.url + path})[0] == wanted for path, wanted in data.items())


@pytest.mark.fault(
    "downloads",
    "upstream bytes change, after a disk lost the old ones",
    "refused with both hashes; the right bytes are taken when they come back",
)
def test_8_changed_bytes_are_refused_with_both_hashes_and_the_old_stay(museum, client, tmp_path, capsys):
    store, entry = Store(tmp_path), {"url": museum.url + "/a"}
    museum.paths["/a"] = picture(1)
    client.fetch_all([entry], store, check)
    blob = next((tmp_path / "bytes").rglob("?" * 64))
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")  # a disk that forgets
    assert store.wants(entry) and store.bytes_of(entry)[0] is None
    museum.paths["/a"] = picture(2)
    client.fetch_all([entry], store, check)
    old, new = sha256(picture(1)).hexdigest(), sha256(picture(2)).hexdigest()
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert f"expected sha256 {old}, got {new}" in line
    museum.paths["/a"] = picture(1)
    client.fetch_all([entry], store, check)
    assert store.bytes_of(entry) == (picture(1), None)


@pytest.mark.fault(
    "downloads", "a manifest states another hash than before", "the old bytes stay, and are used by who names them"
)
@pytest.mark.parametrize("kind", ["sha256", "sha1"])
def test_8_a_new_manifest_with_another_hash_costs_no_old_bytes(museum, client, tmp_path, kind):
    digest = {"sha256": sha256, "sha1": sha1}[kind]
    store, url = Store(tmp_path), museum.url + "/a"
    museum.paths["/a"] = picture(1)
    old = {"url": url, kind: digest(picture(1)).hexdigest()}
    new = {"url": url, kind: digest(picture(2)).hexdigest()}
    client.fetch_all([old], store, check)
    assert not store.wants(old) and store.wants(new)
    client.fetch_all([new], store, check)  # the server still has the old ones
    assert store.bytes_of(new) == (None, f"changed: expected {kind} {new[kind]}, got {old[kind]}")
    assert store.bytes_of(old)[0] == picture(1)
    museum.paths["/a"] = picture(2)
    client.fetch_all([new], store, check)
    assert store.bytes_of(new)[0] == picture(2)


# --- 9 to 11: pages, addresses, bombs


@pytest.mark.fault(
    "downloads", "a captcha page sent as image/jpeg", "refused as a web page; asked again in the next run"
)
def test_9_a_page_sent_as_a_jpeg_is_refused_by_what_it_is(museum, client):
    museum.paths["/a"] = lambda h: send(h, b"<!doctype html><p>are you human?", Content_Type="image/jpeg")
    error = failure(client, museum.url + "/a", check=check)
    assert str(error).startswith("html: a web page") and not error.final


@pytest.mark.fault("downloads", "a URL of a loopback, private or link-local address", "refused before anything is sent")
@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]", "169.254.1.1"])
def test_10_an_address_that_is_not_public_is_refused_unless_allowed(museum, address):
    strict = Client("atlas@example.org", limits=CALM)
    museum.paths["/a"] = picture()
    port = museum.url.rsplit(":", 1)[1]
    error = failure(strict, f"http://{address}:{port}/a")
    assert "private address" in str(error) and error.final
    assert museum.log == []  # nothing was sent


@pytest.mark.fault(
    "downloads", "a public server redirects to a private address", "the hop is refused; the private server is not asked"
)
def test_10_every_hop_of_a_redirect_is_checked(museum, monkeypatch):
    """A public server that sends us to the loopback: here both are the loopback, and the first is let pass."""
    from lora_atlas.pictures import connect

    museum.paths["/in"] = lambda h: send(h, b"", 302, Location=museum.url.replace("127.0.0.1", "localhost") + "/secret")
    museum.paths["/secret"] = b"keys"
    allowed = []
    real = connect._Public._new_conn

    def first_passes(self):
        if self.host == "127.0.0.1":
            allowed.append(self.host)
            return super(connect._Public, self)._new_conn()
        return real(self)

    monkeypatch.setattr(connect._Public, "_new_conn", first_passes)
    error = failure(Client("atlas@example.org", limits=CALM), museum.url + "/in")
    assert "private address: localhost is at" in str(error) and error.final
    assert allowed and museum.asked("/secret") == 0


@pytest.mark.fault("downloads", "a redirect to file:, ftp: or a URL with a password", "refused")
@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://example.org/a", "http://user:word@127.0.0.1/", "http://["]
)
def test_10_a_redirect_to_no_web_address_is_refused(museum, client, location):
    museum.paths["/a"] = lambda h: send(h, b"", 302, Location=location)
    error = failure(client, museum.url + "/a")
    assert "web address" in str(error) or "ValueError" in str(error)


@pytest.mark.fault("downloads", "a redirect to itself", "given up after five")
def test_10_redirects_are_followed_and_end(museum, client):
    museum.paths["/a"] = lambda h: send(h, b"", 301, Location="/b")
    museum.paths["/b"] = picture()
    assert client.get(museum.url + "/a") == picture()
    museum.paths["/loop"] = lambda h: send(h, b"", 302, Location="/loop")
    assert "more than 5 redirects" in str(failure(client, museum.url + "/loop"))


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    while True:
        handler.wfile.write(b"x" * 65536)


@pytest.mark.fault(
    "downloads", "a body of a terabyte, stated, or without an end", "refused as too large, after one request"
)
def test_11_a_body_has_a_size_stated_or_not(museum, client):
    museum.paths["/stated"] = lambda h: send(h, b"", Content_Length=str(10**12))
    museum.paths["/endless"] = endless
    for path in ("/stated", "/endless"):
        error = failure(client, museum.url + path)
        assert str(error).startswith("too large") and error.final and museum.asked(path) == 1


@pytest.mark.fault("downloads", "a gzip bomb of 300 MB", "refused as too large, in less than 30 MB of memory")
def test_11_a_bomb_is_measured_after_decompression_and_never_held_whole(museum, client):
    import tracemalloc

    bomb = gzip.compress(b"\0" * 300_000_000, compresslevel=6)
    assert len(bomb) < 400_000
    museum.paths["/a"] = lambda h: send(h, bomb, Content_Encoding="gzip")
    small = Client("atlas@example.org", private=True, limits=Limits(**(vars(CALM) | {"size": 1_000_000})))
    tracemalloc.start()
    error = failure(small, museum.url + "/a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "too large" in str(error) and peak < 30_000_000
    museum.paths["/b"] = lambda h: send(h, gzip.compress(picture()), Content_Encoding="gzip")
    assert small.get(museum.url + "/b") == picture()


# --- 12 to 15: opt-outs, manners, names


@pytest.mark.fault(
    "downloads", "X-Robots-Tag: noai, or a TDM reservation", "recorded as an opt-out, and never asked again"
)
@pytest.mark.parametrize(
    "headers",
    [{"X_Robots_Tag": "noai"}, {"X_Robots_Tag": "otherbot: noindex, NoImageAI"}, {"tdm_reservation": "1"}],
)
def test_12_an_opt_out_is_recorded_and_never_asked_again(museum, client, tmp_path, headers):
    store, entry = Store(tmp_path), {"url": museum.url + "/a"}
    museum.paths["/a"] = lambda h: send(h, picture(), **headers)
    client.fetch_all([entry], store, check)
    assert store.bytes_of(entry)[1].startswith("opted out")
    assert not store.wants(entry) and museum.asked("/a") == 1
    museum.paths["/b"] = lambda h: send(h, picture(), X_Robots_Tag="noindex")
    assert client.get(museum.url + "/b") == picture()


@pytest.mark.fault(
    "downloads",
    "a host that bans generic clients and crowds",
    "requests name the project and a contact, two at once; without a contact none is made",
)
def test_13_requests_name_the_project_and_a_contact_and_never_more_than_two_at_once(tmp_path):
    with serving(delay=0.03) as museum:
        museum.paths |= {f"/{n}": picture(n) for n in range(24)}
        client = Client("atlas@example.org", private=True, limits=CALM)
        client.fetch_all([{"url": f"{museum.url}/{n}"} for n in range(24)], Store(tmp_path), check)
        agents = {headers["User-Agent"] for _, headers in museum.log}
    assert museum.most == 2 and len(museum.log) == 24
    (agent,) = agents
    assert agent.startswith("LoRA-Atlas/") and "(atlas@example.org)" in agent
    with pytest.raises(FetchError, match=r"pictures\.contact is not set"):
        Client(None)


def test_13_a_redirect_to_another_host_counts_there(tmp_path):
    # Two names of this machine, for either has two requests at once of its own.
    with serving(delay=0.05) as target, serving() as first, serving() as second:
        target.paths |= {f"/{n}": picture(n) for n in range(12)}
        for museum in (first, second):
            for n in range(12):
                museum.paths[f"/{n}"] = lambda h, n=n: send(h, b"", 302, Location=f"{target.url}/{n}")
        client = Client("atlas@example.org", private=True, limits=CALM)
        named = (first.url, second.url.replace("127.0.0.1", "localhost"))
        urls = [f"{url}/{n}" for url in named for n in range(6)]
        client.fetch_all([{"url": url} for url in urls], Store(tmp_path), check)
    assert target.most == 2 and len(target.log) == 12


@pytest.mark.fault("downloads", "a URL with ../, NUL or a line break", "a row with the reason; no file of that name")
@pytest.mark.parametrize(
    "url",
    [
        "../../etc/passwd",
        "file:///etc/passwd",
        "http://a b/",
        "http://x/\0",
        "http://x/\n",
        "http:///x",
        "",
        "http://北斎/",
    ]
    + ["http://127.0.0.1:99999/"],
)
def test_15_what_is_no_web_address_is_a_reason_and_no_path(client, tmp_path, url, capsys):
    store = Store(tmp_path / "store")
    client.fetch_all([{"url": url}], store, check)
    assert "web address" in store.bytes_of({"url": url})[1] and not store.wants({"url": url})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
    assert len(capsys.readouterr().out.strip().splitlines()) == 1


@pytest.mark.fault("downloads", "names of 300 bytes, case twins, %2F and %00", "kept apart, under hashes")
def test_15_long_names_and_case_twins_are_kept_apart(museum, client, tmp_path):
    paths = ["/" + "x" * 300, "/Monet.png", "/monet.png", "/up%2F..%2Fup", "/a%00b"]
    museum.paths |= {path: picture(n) for n, path in enumerate(paths)}
    store = Store(tmp_path)
    entries = [{"url": museum.url + path} for path in paths]
    client.fetch_all(entries, store, check)
    assert [store.bytes_of(entry)[0] for entry in entries] == [picture(n) for n in range(len(paths))]
    assert all(len(path.name) <= 69 for path in tmp_path.rglob("*"))


# --- many


@pytest.mark.fault("downloads", "some pictures of many fail", "the others are stored; each failure is one line")
def test_a_bad_one_costs_nothing_of_the_others_and_each_is_one_line(museum, client, tmp_path, capsys):
    museum.paths |= {f"/{n}": picture(n) for n in range(12)}
    museum.paths |= {"/3": lambda h: send(h, b"", 500), "/5": lambda h: send(h, b"<html>"), "/7": cut(picture(), 90)}
    store, entries = Store(tmp_path), [{"url": f"{museum.url}/{n}"} for n in range(13)]
    client.fetch_all(entries, store, check)
    good = [n for n, entry in enumerate(entries) if store.bytes_of(entry)[0]]
    assert good == [0, 1, 2, 4, 6, 8, 9, 10, 11]
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 13 and all(any(f"/{n}" in line for line in lines) for n in range(13))
    museum.log.clear()
    client.fetch_all([entry for entry in entries if store.wants(entry)], store, check)
    assert set(museum.numbers()) == {"/3", "/5", "/7"}  # the 404 is final


@pytest.mark.fault(
    "downloads", "a host fails for every picture", "given up after a few; the rest is said and left for the next run"
)
def test_a_host_that_answers_nothing_is_given_up_after_a_while(museum, tmp_path, capsys):
    for n in range(40):
        museum.paths[f"/{n}"] = lambda h: send(h, b"", 500)
    limits = Limits(**(vars(CALM) | {"attempts": 1, "in_a_row": 6}))
    Client("atlas@example.org", private=True, limits=limits).fetch_all(
        [{"url": f"{museum.url}/{n}"} for n in range(40)], Store(tmp_path), check
    )
    assert 6 <= len(museum.log) <= 8
    assert capsys.readouterr().out.count("not asked: 127.0.0.1 failed") >= 32


def test_a_picture_that_is_merely_small_is_stored_and_judged_later(museum, client):
    def small(data):
        raise PictureError("too small", "8 × 8")

    museum.paths["/a"] = picture()
    assert client.get(museum.url + "/a", small) == picture() and museum.asked("/a") == 1
