"""The page in a real browser: it asks for nothing, complains of nothing, and does what hands, keys and readers want.

Chromium without a window, driven over its DevTools protocol (tests/support/chromium.py).
"""

import random
import shutil
import subprocess
import tarfile
import time

import chromium
import pytest
from pages import held, painted, study

from lora_atlas.atlas.page import render
from lora_atlas.atlas.thumbnails import Thumbnails

pytestmark = pytest.mark.skipif(chromium.found() is None, reason="no Chromium on this machine (Debian: chromium)")

EVIL = "</script><img src=x onerror=document.title='harmed'>"
ARTISTS = {"ada": "north", "bob": "north", EVIL: "south", "dee": "south"}
AXE = "4.14.1"  # its rules grow with every version
SIZE = 1360, 860
# The point of a LoRA in the window, by its name: where the map says that it is.
AT = """(() => {{ const d = JSON.parse(document.getElementById("data").textContent);
  const m = d.maps.find(m => m.name === canvas.dataset.map), i = d.loras.findIndex(l => l.name === {name});
  const c = canvas.getBoundingClientRect(), top = says.offsetTop + says.offsetHeight + 34,
  bottom = document.getElementById("key").offsetHeight + 68; return [c.left + 46 + m.x[i] / 1e4 * (c.width - 110),
  c.top + top + (1 - m.y[i] / 1e4) * (c.height - top - bottom)] }})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = chromium.Browser(tmp_path_factory.mktemp("profile"), SIZE)
    yield found
    found.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return study(tmp_path_factory.mktemp("study"), ARTISTS, title=EVIL)


@pytest.fixture
def opened(browser, page):
    browser.size(*SIZE)
    browser.dark(False)
    browser.open(page)
    # Points that travel are nowhere for a while.
    browser("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    return browser


def shown(browser, of: str = "#panel h2") -> str | None:
    return browser.js(f"document.querySelector({of!r})?.textContent ?? null")


def at(browser, lora: str) -> tuple[float, float]:
    import json

    x, y = browser.js(AT.format(name=json.dumps(lora)))
    return x, y


def test_it_asks_for_nothing_but_the_file_and_complains_of_nothing(opened, page):
    for part in ("findings", "list", "map"):
        opened.js(f"document.getElementById('tab-{part}').click()")
        assert opened.js(f"!document.getElementById('{part}').hidden")
    opened.js("new Promise(done => setTimeout(done, 300))")
    assert opened.requests == [page.as_uri()]
    assert opened.complaints == []


def test_hostile_names_are_text(opened):
    opened.js("document.getElementById('tab-list').click()")
    assert EVIL in opened.js("document.getElementById('list').textContent")
    assert opened.js("document.title") == "mine · LoRA Atlas"
    assert opened.js("[...document.images].every(image => image.src.startsWith('data:image/webp'))")
    opened.js("document.getElementById('tab-map').click()")
    opened.click(*at(opened, f"{EVIL}/01"))
    assert shown(opened) == f"{EVIL}/01" and opened.js("document.title") == "mine · LoRA Atlas"
    # Nor does the policy let anything through that would be asked for.
    refused = opened.js("fetch('https://example.org/').then(() => 'asked', () => 'refused')")
    assert refused == "refused" and not any("example.org" in url for url in opened.requests)


def test_a_point_says_what_it_is_and_opens(opened, page):
    data = held(page)
    opened.move(*at(opened, "ada/00"))
    opened.wait("!document.getElementById('tip').hidden")
    assert "ada/00" in shown(opened, "#tip") and "gallery" in shown(opened, "#tip")
    opened.click(*at(opened, "ada/03"))
    assert shown(opened) == "ada/03"
    i = next(n for n, lora in enumerate(data["loras"]) if lora["name"] == "ada/03")
    names = opened.js("[...document.querySelectorAll('#panel ol .what b')].map(b => b.textContent)")
    assert names == [data["loras"][n]["name"] for n in data["maps"][0]["near"][i]]
    marks = opened.js("[...document.querySelectorAll('#panel ol .mark')].map(mark => mark.textContent)")
    # A wrong one is wrong while the artist has LoRAs left in the gallery that could have stood there.
    artist, left = data["loras"][i]["artist"], []
    others = [lora for n, lora in enumerate(data["loras"]) if n != i and lora["split"] == "gallery"]
    could = those = sum(lora["artist"] == artist for lora in others)
    for n in data["maps"][0]["near"][i]:
        right = data["loras"][n]["artist"] == artist
        left.append("✓" if right else "✗" if could else "")
        could -= right
    assert marks == left and "✓" in marks and "" in marks
    numbers = opened.js("[...document.querySelectorAll('#panel ol .n')].map(n => n.textContent)")
    assert numbers == [f"{d:.3f}" for d in data["maps"][0]["distance"][i]]
    assert opened.js("document.querySelectorAll('#panel .wall img').length") == 5
    # By every other descriptor, too: so many of the five nearest are the artist's.
    said = opened.js("[...document.querySelectorAll('#panel .others .unseen')].map(each => each.textContent)")
    right = [
        sum(data["loras"][n]["artist"] == data["loras"][i]["artist"] for n in each["near"][i][:5])
        for each in data["maps"]
    ]
    order = [n for _, members in data["groups"] for n in members]
    assert said == [f"{right[n]} of the {min(5, those)} nearest that could be are the artist's" for n in order]
    # A neighbour opens in its turn.
    opened.js("document.querySelector('#panel ol .row').click()")
    assert shown(opened) == names[0]


def test_the_descriptor_is_chosen_and_the_neighbours_are_its(opened, page):
    data = held(page)
    opened.click(*at(opened, "bob/03"))
    opened.js("chooser.value = '4'; chooser.dispatchEvent(new Event('change'))")
    assert opened.js("canvas.dataset.map") == data["maps"][4]["name"]
    assert shown(opened) == "bob/03" and "of the 5 nearest by" in shown(opened, "#says")
    i = next(n for n, lora in enumerate(data["loras"]) if lora["name"] == "bob/03")
    names = opened.js("[...document.querySelectorAll('#panel ol .what b')].map(b => b.textContent)")
    assert names == [data["loras"][n]["name"] for n in data["maps"][4]["near"][i]]
    opened.js("document.getElementById('after').click()")
    assert opened.js("canvas.dataset.map") == data["maps"][0]["name"]


def test_search_finds_by_artist_genre_and_title(opened):
    opened.js("search.focus()")
    for words, count in (("bob", 4), ("NORTH", 8), ("onerror", 16), ("dee 03", 1), ("nobody", 0)):
        opened.js("search.value = ''")
        opened.type(words)
        assert opened.js("document.querySelectorAll('#hits [data-lora]').length") == count, words
    opened.js("search.value = ''")
    opened.type("bob")
    opened.press("ArrowDown", "ArrowDown", "Enter")
    assert shown(opened) == "bob/01" and opened.js("document.getElementById('hits').hidden")


def test_keys_go_from_point_to_point_open_and_close(opened):
    opened.js("canvas.focus()")
    opened.press("ArrowRight")
    first = shown(opened, "#said")
    assert first.startswith("ada/00")
    moved = set()
    for key in ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"):
        opened.press(key)
        moved.add(shown(opened, "#said"))
    assert moved != {first}
    last = shown(opened, "#said").split(",")[0]
    opened.press("Enter")
    assert shown(opened) == last and opened.js("document.activeElement.id") == "panel"
    opened.press("Escape")
    assert shown(opened) == "Artists" and opened.js("document.activeElement.id") == "canvas"


def test_everything_is_reached_with_the_tab_key(opened):
    """In the order of the page; each has a name that a reader can say."""
    opened.js("document.activeElement.blur()")
    found = []
    for _ in range(12):
        opened.press("Tab")
        found.append(opened.js("document.activeElement.id || document.activeElement.className"))
    assert found[:8] == ["tab-map", "search", "theme", "before", "chooser", "after", "faces", "canvas"]
    nameless = opened.js(
        "[...document.querySelectorAll('button, input, select, canvas')].filter(each => !(each.textContent.trim() || "
        "each.getAttribute('aria-label') || each.labels?.length)).map(each => each.outerHTML)"
    )
    assert nameless == []


def test_light_and_dark_by_the_system_and_by_hand(browser, page):
    browser.size(*SIZE)
    for dark in (True, False):
        browser.js("localStorage.clear()") if page.as_uri() in browser.requests else None
        browser.dark(dark)
        browser.open(page)
        assert browser.js("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    browser.js("document.getElementById('theme').click()")
    assert browser.js("document.documentElement.dataset.theme") == "dark"
    browser.js("document.getElementById('theme').click(); localStorage.clear()")


def test_words_can_be_read_on_their_ground(browser, page):
    """Contrast of 4.5 to 1 and more (WCAG 2.2, 1.4.3) of every colour of text, in light and in dark."""

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    for dark in (False, True):
        browser.dark(dark)
        browser.open(page)
        style = "getComputedStyle(document.documentElement).getPropertyValue"
        colours = {
            name: browser.js(f"{style}('--{name}').trim()")
            for name in ("ink", "grey", "red", "green", "accent", "paper", "wall")
        }
        for ground in ("paper", "wall"):
            for name in ("ink", "grey", "red", "green", "accent"):
                a, b = sorted((light(colours[name]), light(colours[ground])))
                assert (b + 0.05) / (a + 0.05) >= 4.5, (dark, name, ground)


def test_on_a_phone_nothing_is_wider_than_the_phone(browser, page):
    browser.dark(False)
    browser.size(390, 844, phone=True)
    browser.open(page)
    assert browser.js("document.documentElement.scrollWidth") <= 390
    for part in ("findings", "list"):
        browser.js(f"document.getElementById('tab-{part}').click()")
        assert browser.js("document.documentElement.scrollWidth") <= 390, part
    browser.size(*SIZE)


def test_a_table_is_saved(opened, tmp_path):
    opened("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    opened.js("document.querySelector('[data-save=comparison]').click()")
    end = time.monotonic() + 60
    while not list(tmp_path.glob("*.csv")) and time.monotonic() < end:
        time.sleep(0.05)
    (saved,) = tmp_path.glob("*.csv")
    assert saved.name == "mine_comparison.csv" and saved.read_text().startswith("descriptor,value,low,high")
    assert opened.complaints == []


def test_axe_finds_nothing_serious(opened, tmp_path):
    """axe-core (Deque) of npm, where that can be fetched: nothing that it calls serious or critical."""
    if shutil.which("npm") is None:
        pytest.skip("no npm on this machine, which axe-core comes from")
    pack = ["npm", "pack", f"axe-core@{AXE}", "--silent"]
    try:
        said = subprocess.run(pack, cwd=tmp_path, capture_output=True, text=True, timeout=120).stderr[:200]
    except subprocess.TimeoutExpired:
        said = "no answer within two minutes"
    packs = list(tmp_path.glob("*.tgz"))
    if not packs:
        pytest.skip(f"axe-core cannot be fetched: {said}")
    with tarfile.open(packs[0]) as archive:
        opened.js(archive.extractfile("package/axe.min.js").read().decode() + ";0")
    for part in ("map", "findings", "list"):
        opened.js(f"document.getElementById('tab-{part}').click()")
        found = opened.js(
            "axe.run().then(r => r.violations.filter(v => ['serious', 'critical'].includes(v.impact))"
            ".map(v => [v.id, v.nodes.map(n => n.html.slice(0, 150)).slice(0, 4)]))"
        )
        assert found == [], part


@pytest.mark.slow
def test_a_thousand_loras(browser, tmp_path, capsys):
    """Size, and times that are printed and not asserted: on a busy machine they say little."""
    rng = random.Random(0)
    shown_ = Thumbnails(10**9)
    numbers = [shown_.add(str(n), painted(n, 112)) for n in range(60)]
    uris = shown_.uris()
    n, each = 1000, 10
    near = [[rng.randrange(n) for _ in range(8)] for _ in range(n)]
    data = {
        "kind": "trained", "study": "large", "lead": "1000 LoRAs", "facts": [], "links": [], "setting": "8 steps",
        "measure": "distance",
        "genres": [f"genre {g}" for g in range(8)], "clusters": [],
        "artists": [
            {"name": f"artist {a}", "genre": f"genre {a % 8}", "colour": a, "shape": a % 8} for a in range(125)
        ],
        "loras": [
            {"name": f"artist {i % 125}/{i}", "artist": i % 125, "split": "gallery", "facts": [], "more": 0,
             "words": "a title " * 4, "training": [[i * each + k, "a title"] for k in range(each)], "generated": []}
            for i in range(n)
        ],
        "maps": [
            {"name": str(m), "label": f"map {m}", "says": "", "alike": False,
             "x": [rng.randrange(10_000) for _ in range(n)], "y": [rng.randrange(10_000) for _ in range(n)],
             "near": near, "distance": [[0.1234] * 8] * n, "scores": [None] * n}
            for m in range(30)
        ],
        "groups": [["weights", list(range(30))]],
        "pictures": [uris[numbers[k % 60]] for k in range(n * each)],
    }  # fmt: skip
    file = tmp_path / "atlas.html"
    file.write_text(render(data), encoding="utf-8")
    start = time.perf_counter()
    browser.open(file)
    seconds = time.perf_counter() - start

    def took(action: str) -> float:
        return browser.js(
            f"(async () => {{ const start = performance.now(); {action}; await new Promise(requestAnimationFrame); "
            "await new Promise(requestAnimationFrame); return performance.now() - start })()"
        )

    browser("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    times = {
        "search": took("search.value = 'artist 7'; search.dispatchEvent(new Event('input'))"),
        "clear": took("search.value = ''; search.dispatchEvent(new Event('input'))"),
        "choose": took("document.querySelector('#panel .row').click()"),
        "descriptor": took("document.getElementById('after').click()"),
        "zoom": took("document.getElementById('in').click()"),
    }
    with capsys.disabled():
        said = ", ".join(f"{name} {value:.0f} ms" for name, value in times.items())
        print(
            f"\n1,000 LoRAs: {file.stat().st_size / 1e6:.1f} MB, opens in {seconds:.2f} s; with two frames each: {said}"
        )
    assert file.stat().st_size <= 40e6
    assert browser.complaints == []
