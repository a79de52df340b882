"use strict";
// The map and the panel of a page. Text from outside is only ever set as text; there is no innerHTML here.
(() => {
const D = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const narrow = matchMedia("(max-width: 820px)");

function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined));
  return made;
}

// --- colours and shapes: Tol's qualitative schemes "muted" and "light", which are told apart without red or green
const TINTS = {
  light: ["#332288", "#cc6677", "#117733", "#3f9bd0", "#882255", "#a88a1c", "#3a9e8d", "#aa4499", "#8f8f2c"],
  dark: ["#77aadd", "#ee8866", "#bbcc33", "#99ddff", "#ffaabb", "#eedd88", "#44bb99", "#d69ae0", "#aaaa00"],
};
const polygon = (n, turn, radii) => "M" + Array.from({length: n}, (_, i) => {
  const angle = turn + 2 * Math.PI * i / n, r = radii[i % radii.length];
  return `${(r * Math.sin(angle)).toFixed(3)} ${(-r * Math.cos(angle)).toFixed(3)}`;
}).join("L") + "Z";
const SHAPES = [
  "M1 0A1 1 0 1 1 -1 0A1 1 0 1 1 1 0Z", polygon(4, Math.PI / 4, [1.25]), polygon(3, 0, [1.35]), polygon(4, 0, [1.3]),
  polygon(3, Math.PI, [1.35]), "M-.42 -1.15H.42V-.42H1.15V.42H.42V1.15H-.42V.42H-1.15V-.42H-.42Z", polygon(10, 0, [1.45, .66]),
  polygon(6, 0, [1.15]),
];
const PATHS = SHAPES.map(d => new Path2D(d));

let dark = matchMedia("(prefers-color-scheme: dark)").matches;
try { dark = localStorage.getItem("lora-atlas-theme") ? localStorage.getItem("lora-atlas-theme") === "dark" : dark; } catch { /* no storage */ }
const theme = {};
let family = "sans-serif";
function paint() {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  const style = getComputedStyle(document.documentElement);
  for (const name of ["ink", "grey", "faint", "line", "paper", "wall", "red", "green", "accent"]) theme[name] = style.getPropertyValue("--" + name).trim();
  family = getComputedStyle(document.body).fontFamily;
  theme.tints = dark ? TINTS.dark : TINTS.light;
}
const look = i => {
  const lora = D.loras[i], artist = lora.artist === null || lora.artist === undefined ? null : D.artists[lora.artist];
  const colour = artist ? artist.colour : lora.colour;
  return {
    tint: colour === null || colour === undefined ? theme.grey : theme.tints[colour % theme.tints.length],
    shape: artist ? artist.shape % SHAPES.length : Math.floor((colour ?? 0) / theme.tints.length) % SHAPES.length,
    hollow: lora.split === "query" || Boolean(lora.alone),
  };
};
function sign(tint, shape, hollow) {
  const made = document.createElementNS(SVG, "svg");
  made.setAttribute("viewBox", "-1.8 -1.8 3.6 3.6");
  made.setAttribute("class", "sign");
  made.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", SHAPES[shape % SHAPES.length]);
  path.setAttribute("fill", hollow ? "none" : tint);
  path.setAttribute("stroke", tint);
  path.setAttribute("stroke-width", hollow ? ".55" : ".1");
  made.append(path);
  return made;
}

// --- what is known of a LoRA
const artistOf = i => D.loras[i].artist === null || D.loras[i].artist === undefined ? null : D.artists[D.loras[i].artist];
const hay = D.loras.map((lora, i) => [lora.name, artistOf(i)?.name, artistOf(i)?.genre, lora.genre, lora.words, lora.file, ...(lora.copies || []).map(c => c[0])]
  .filter(Boolean).join("\n").toLowerCase());
const first = pictures => pictures?.length ? pictures[0][0] : null;
// What stands for a LoRA on the map.
const FACES = {
  dots: () => null, preview: i => first(D.loras[i].preview),
  training: i => { const own = D.loras[i].training; return own?.length ? own[i % own.length][0] : null; },
  generated: i => first(D.loras[i].generated),
};
// In lists: as on the map, and where dots stand there, whatever there is.
const face = i => (FACES[$("faces").value] || FACES.dots)(i) ?? FACES.training(i) ?? FACES.generated(i) ?? FACES.preview(i);
const uri = number => D.pictures[number];
const short = name => { const last = D.kind === "trained" ? name : name.split("/").pop(); return last.length <= 30 ? last : last.slice(0, 13) + "…" + last.slice(-15); };
const subtitle = i => {
  const artist = artistOf(i), words = [];
  if (artist) words.push(artist.name === D.loras[i].name.split("/")[0] && artist.genre ? artist.genre : artist.name);
  if (artist?.genre && words[0] !== artist.genre) words.push(artist.genre);
  if (D.loras[i].split) words.push(D.loras[i].split);
  if (D.loras[i].count > 1) words.push(`${D.loras[i].count} copies`);
  return words.join(" · ");
};

// --- state
let at = 0, chosen = null, pointed = null, matched = null, only = null, previous = null;
let view = {k: 1, x: 0, y: 0};
let places = new Map(), travel = null;
const canvas = $("canvas"), pen = canvas.getContext("2d");
let width = 0, height = 0, ratio = 1, waiting = false;
const map = () => D.maps[at];
const members = m => m.members || (m.all ||= D.loras.map((_, i) => i));
const index = m => m.index ||= new Map(members(m).map((lora, i) => [lora, i]));

function settle(m) {
  const to = new Map();
  const left = 46, right = 64, top = $("says").offsetTop + $("says").offsetHeight + 34, bottom = $("key").offsetHeight + 68;
  members(m).forEach((lora, i) => to.set(lora, [
    left + m.x[i] / 10000 * Math.max(width - left - right, 10),
    top + (1 - m.y[i] / 10000) * Math.max(height - top - bottom, 10),
  ]));
  return to;
}
function go(next) {
  previous = next === at ? previous : at;
  at = next;
  $("chooser").value = String(at);
  describe();
  const from = places, to = settle(map());
  if (calm.matches || !from.size) { places = to; travel = null; }
  else travel = {from, to, start: performance.now()};
  if (chosen !== null && !index(map()).has(chosen)) choose(null);
  else panel();
  ask();
}
function step(now) {
  if (!travel) return;
  const t = Math.min(1, (now - travel.start) / 750), e = t < .5 ? 4 * t ** 3 : 1 - (2 - 2 * t) ** 3 / 2;
  places = new Map();
  for (const [lora, to] of travel.to) {
    const from = travel.from.get(lora) || to;
    places.set(lora, [from[0] + (to[0] - from[0]) * e, from[1] + (to[1] - from[1]) * e]);
  }
  if (t >= 1) { places = travel.to; travel = null; } else ask();
}
const onScreen = lora => { const p = places.get(lora); return p && [p[0] * view.k + view.x, p[1] * view.k + view.y]; };
const radius = lora => {
  const n = members(map()).length;
  return Math.min(9, Math.max(3.6, 9.5 - n / 45)) * Math.min(1.5, Math.max(1, Math.sqrt(view.k) * .9)) * (1 + .28 * Math.log2(D.loras[lora].count || 1));
};
const near = (lora, m = map()) => { const i = index(m).get(lora); return i === undefined ? [] : m.near[i]; };
const verdict = (lora, other, k, m = map()) => {
  const evidence = m.evidence?.[index(m).get(lora)]?.[k];
  if (evidence) return evidence;
  const a = D.loras[lora].artist, b = D.loras[other].artist;
  if (a === null || a === undefined || b === null || b === undefined) return ["", ""];
  if (a === b) return ["right", "same artist"];
  if (before(lora, k, m) >= peers(lora, m)) return ["rest", peers(lora, m) ? "another artist: all of its own stand before" : "another artist: the gallery has no other of its own"];
  const genre = artistOf(lora).genre;
  return ["wrong", genre && genre === artistOf(other).genre ? "another artist of the genre" : "another artist"];
};
// How many of the gallery's LoRAs are of a LoRA's artist, itself left out; and how many of them stand before the k-th.
const peers = (lora, m) => (m.peers ||= new Map()).get(lora) ?? m.peers.set(lora,
  members(m).filter(other => other !== lora && D.loras[other].split === "gallery" && D.loras[other].artist === D.loras[lora].artist).length).get(lora);
const before = (lora, k, m) => near(lora, m).slice(0, k).filter(other => D.loras[other].artist === D.loras[lora].artist).length;
const MARKS = {rest: ["", "kin"], right: ["✓", "right"], copy: ["=", "right"], near: ["✓", "right"], maybe: ["≈", "kin"], wrong: ["✗", "wrong"], unrelated: ["–", "kin"], "": ["", "kin"]};

// --- drawing
function ask() { if (!waiting) { waiting = true; requestAnimationFrame(now => { waiting = false; step(now); draw(); }); } }
const images = new Map();
function image(number) {
  if (!images.has(number)) {
    const made = new Image();
    made.onload = ask;
    made.src = uri(number);
    images.set(number, made);
  }
  const found = images.get(number);
  return found.complete && found.naturalWidth ? found : null;
}
function resize() {
  const box = canvas.getBoundingClientRect();
  if (!box.width) return;
  ratio = Math.min(devicePixelRatio || 1, 2.5);
  width = box.width; height = box.height;
  canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
  if (!travel) places = settle(map());
  ask();
}
function lit(lora) {
  if (matched && !matched.has(lora)) return false;
  if (only !== null && D.loras[lora].artist !== only) return false;
  return true;
}
function draw() {
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  const shown = members(map());
  const faces = $("faces").value, faced = FACES[faces] || FACES.dots, pictured = faces !== "dots";
  const friends = new Set(chosen === null ? [] : [chosen, ...near(chosen).slice(0, 5)]);
  const inside = p => p[0] > -60 && p[1] > -60 && p[0] < width + 60 && p[1] < height + 60;
  const strength = lora => !lit(lora) ? .13 : chosen !== null && !friends.has(lora) && D.loras[lora].artist !== D.loras[chosen].artist ? .42 : 1;
  // Soft ground below artists, so that groups are seen before points are.
  if (shown.length <= 400 && !matched) {
    for (const lora of shown) {
      const p = onScreen(lora), {tint} = look(lora);
      if (!p || !inside(p) || artistOf(lora) === null) continue;
      const r = 34 * Math.sqrt(view.k), glow = pen.createRadialGradient(p[0], p[1], 0, p[0], p[1], r);
      glow.addColorStop(0, tint + (dark ? "26" : "20")); glow.addColorStop(1, tint + "00");
      pen.globalAlpha = strength(lora); pen.fillStyle = glow;
      pen.fillRect(p[0] - r, p[1] - r, 2 * r, 2 * r);
    }
  }
  if (chosen !== null && onScreen(chosen)) {
    const from = onScreen(chosen);
    near(chosen).slice(0, 5).forEach((other, k) => {
      const to = onScreen(other), kind = verdict(chosen, other, k)[0];
      if (!to) return;
      pen.globalAlpha = .9; pen.lineWidth = 2.4 - k * .25;
      pen.strokeStyle = {right: theme.green, near: theme.green, copy: theme.green, wrong: theme.red}[kind] || theme.faint;
      pen.setLineDash(kind === "wrong" || kind === "unrelated" ? [5, 4] : []);
      pen.beginPath(); pen.moveTo(...from); pen.lineTo(...to); pen.stroke();
    });
    pen.setLineDash([]);
  }
  const order = [...shown].sort((a, b) => (friends.has(a) - friends.has(b)) || ((a === pointed) - (b === pointed)));
  const side = Math.min(60, Math.max(12, .42 * Math.sqrt(width * height / shown.length))) * Math.min(2.2, Math.max(1, Math.sqrt(view.k)));
  for (const lora of order) {
    const p = onScreen(lora);
    if (!p || !inside(p)) continue;
    const {tint, shape, hollow} = look(lora), r = radius(lora), picture = faced(lora);
    pen.globalAlpha = strength(lora);
    if (picture !== null) {
      const half = side / 2, seen = image(picture);
      pen.fillStyle = tint; pen.strokeStyle = tint; pen.lineWidth = 2;
      pen.beginPath(); pen.roundRect(p[0] - half - 2, p[1] - half - 2, side + 4, side + 4, 5);
      if (hollow) { pen.fillStyle = theme.paper; pen.fill(); pen.setLineDash([4, 3]); pen.stroke(); pen.setLineDash([]); } else pen.fill();
      if (seen) pen.drawImage(seen, p[0] - half, p[1] - half, side, side);
      if (side > 30) dot(p[0] + half - 3, p[1] + half - 3, 5, shape, tint, false);
    } else dot(p[0], p[1], r, shape, tint, hollow);
    if (lora === chosen || lora === pointed) {
      pen.globalAlpha = 1; pen.strokeStyle = theme.ink; pen.lineWidth = lora === chosen ? 2.2 : 1.6;
      pen.beginPath(); pen.arc(p[0], p[1], (picture !== null ? side * .76 : r + 6), 0, 7); pen.stroke();
    }
  }
  pen.globalAlpha = 1;
  write(shown, pictured ? side / 2 + 3 : null, inside);
}
function dot(x, y, r, shape, tint, hollow) {
  pen.save(); pen.translate(x, y); pen.scale(r, r);
  pen.fillStyle = hollow ? theme.paper : tint; pen.fill(PATHS[shape]);
  pen.lineWidth = hollow ? 2.6 / r : 1 / r; pen.strokeStyle = hollow ? tint : theme.paper; pen.stroke(PATHS[shape]);
  pen.restore();
}
// Names: of what is chosen, then of artists or families, then of LoRAs; each where no other name and, if it can be, no point is.
function write(shown, half, inside) {
  // Points by cells, so that a box is held against those near it alone.
  const taken = [], cells = new Map(), CELL = 40;
  let widest = 0;
  for (const lora of shown) {
    const p = onScreen(lora);
    if (!p || !inside(p)) continue;
    const r = half ?? radius(lora), cell = Math.floor(p[0] / CELL) + ":" + Math.floor(p[1] / CELL);
    widest = Math.max(widest, r);
    if (cells.has(cell)) cells.get(cell).push([p[0], p[1], r]); else cells.set(cell, [[p[0], p[1], r]]);
  }
  const clash = (box, all) => all.some(o => box[0] < o[2] && box[2] > o[0] && box[1] < o[3] && box[3] > o[1]);
  const onPoint = box => {
    for (let i = Math.floor((box[0] - widest) / CELL); i <= Math.floor((box[2] + widest) / CELL); i++) {
      for (let j = Math.floor((box[1] - widest) / CELL); j <= Math.floor((box[3] + widest) / CELL); j++) {
        if (cells.get(i + ":" + j)?.some(([x, y, r]) => x + r > box[0] && x - r < box[2] && y + r > box[1] && y - r < box[3])) return true;
      }
    }
    return false;
  };
  const put = (text, p, away, font, colour, must, around) => {
    pen.font = font;
    const w = pen.measureText(text).width, h = 15, far = around ? [[around[0] - p[0] - w / 2, around[3] - p[1] + away], [around[0] - p[0] - w / 2, around[1] - p[1] - away - h],
      [around[2] - p[0] + away, (around[1] + around[3]) / 2 - p[1] - h / 2]] : [];
    const sides = [...far, [away, -h / 2], [-away - w, -h / 2], [-w / 2, -away - h], [-w / 2, away],
      [away * .7, -away * .7 - h], [away * .7, away * .7], [-away * .7 - w, -away * .7 - h], [-away * .7 - w, away * .7]];
    for (const strict of must ? [true, false] : [true]) for (const [dx, dy] of sides) {
      const box = [p[0] + dx - 2, p[1] + dy - 1, p[0] + dx + w + 2, p[1] + dy + h + 1];
      if (box[0] < 4 || box[1] < 78 || box[2] > width - 4 || box[3] > height - 30) continue;
      if (clash(box, taken) || (strict && onPoint(box))) continue;
      taken.push(box);
      pen.lineJoin = "round"; pen.lineWidth = 4; pen.strokeStyle = theme.paper; pen.globalAlpha = .85;
      pen.strokeText(text, p[0] + dx, p[1] + dy + 12);
      pen.globalAlpha = 1; pen.fillStyle = colour; pen.fillText(text, p[0] + dx, p[1] + dy + 12);
      return;
    }
  };
  for (const lora of new Set([chosen, pointed])) {
    if (lora !== null && onScreen(lora)) put(short(D.loras[lora].name), onScreen(lora), (half ?? radius(lora)) + 9, `600 13px ${family}`, theme.ink, true);
  }
  const groups = new Map();
  for (const lora of shown) {
    const key = D.kind === "trained" ? D.loras[lora].artist : D.loras[lora].cluster;
    if (key === null || key === undefined || !lit(lora)) continue;
    if (groups.has(key)) groups.get(key).push(lora); else groups.set(key, [lora]);
  }
  for (const [key, own] of groups) {
    const name = D.kind === "trained" ? D.artists[key].name : D.clusters[key];
    if (!name) continue;
    const spots = own.map(onScreen).filter(Boolean);
    let best = null, least = Infinity;
    for (const a of spots.slice(0, 60)) { const sum = spots.reduce((s, b) => s + Math.hypot(a[0] - b[0], a[1] - b[1]), 0); if (sum < least) { least = sum; best = a; } }
    if (!best || !inside(best)) continue;
    // Beside the whole group where it is one.
    const close = spots.filter(spot => Math.hypot(spot[0] - best[0], spot[1] - best[1]) < 150), xs = close.map(spot => spot[0]), ys = close.map(spot => spot[1]);
    const around = [(Math.min(...xs) + Math.max(...xs)) / 2, Math.min(...ys), Math.max(...xs), Math.max(...ys)];
    put(name, best, (half ?? radius(own[0])) + 5, `600 13.5px ${family}`, theme.ink, true, around);
  }
  if (D.kind === "folder" || view.k > 1.7 || shown.length <= 30) {
    const named = [...shown].sort((a, b) => (D.loras[b].count || 1) - (D.loras[a].count || 1));
    for (const lora of named) {
      const p = onScreen(lora), count = D.loras[lora].count || 1;
      if (p && inside(p) && lora !== chosen && lora !== pointed && lit(lora)) put(short(D.loras[lora].name) + (count > 1 ? ` ×${count}` : ""), p, (half ?? radius(lora)) + 4, `11.5px ${family}`, theme.grey, false);
    }
  }
}

// --- pointing
function hit(x, y) {
  let best = null, least = 18;
  for (const lora of members(map())) {
    const p = onScreen(lora), d = p ? Math.hypot(p[0] - x, p[1] - y) - radius(lora) * .4 : Infinity;
    if (d < least) { least = d; best = lora; }
  }
  return best;
}
function tip(lora, x, y) {
  const box = $("tip");
  if (lora === null) { box.hidden = true; return; }
  const picture = face(lora);
  box.replaceChildren(...[
    picture !== null ? el("img", {src: uri(picture), alt: ""}) : null,
    el("b", {}, D.loras[lora].name), el("span", {}, subtitle(lora)),
    map().scores?.[index(map()).get(lora)] ? el("span", {}, `finds its artist: ${map().scores[index(map()).get(lora)][0].toFixed(2)}`) : null,
  ].filter(Boolean));
  box.hidden = false;
  const w = box.offsetWidth, h = box.offsetHeight;
  box.style.left = Math.max(6, Math.min(x + 16, innerWidth - w - 8)) + "px";
  box.style.top = Math.max(6, y + 18 + h > innerHeight ? y - h - 14 : y + 18) + "px";
}
function point(lora, speak) {
  if (pointed === lora) return;
  pointed = lora;
  canvas.style.cursor = lora === null ? "" : "pointer";
  if (speak && lora !== null) $("said").textContent = `${D.loras[lora].name}, ${subtitle(lora)}`;
  ask();
}
const fingers = new Map();
let drag = null, pinch = null;
canvas.addEventListener("pointerdown", event => {
  canvas.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
  drag = {x: event.offsetX, y: event.offsetY, view: {...view}, moved: false};
  if (fingers.size === 2) {
    const [a, b] = [...fingers.values()];
    pinch = {d: Math.hypot(a[0] - b[0], a[1] - b[1]), x: (a[0] + b[0]) / 2, y: (a[1] + b[1]) / 2, view: {...view}};
    drag.moved = true;
  }
});
canvas.addEventListener("pointermove", event => {
  if (fingers.has(event.pointerId)) fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
  if (pinch && fingers.size === 2) {
    const [a, b] = [...fingers.values()], f = Math.hypot(a[0] - b[0], a[1] - b[1]) / Math.max(pinch.d, 1);
    const k = limit(pinch.view.k * f), g = k / pinch.view.k, x = (a[0] + b[0]) / 2, y = (a[1] + b[1]) / 2;
    view = {k, x: x - (pinch.x - pinch.view.x) * g, y: y - (pinch.y - pinch.view.y) * g};
    ask();
  } else if (drag && event.buttons) {
    if (Math.hypot(event.offsetX - drag.x, event.offsetY - drag.y) > 5) drag.moved = true;
    if (drag.moved) { view = {...drag.view, x: drag.view.x + event.offsetX - drag.x, y: drag.view.y + event.offsetY - drag.y}; tip(null); ask(); }
  } else if (event.pointerType !== "touch") {
    const lora = hit(event.offsetX, event.offsetY);
    point(lora, false); tip(lora, event.clientX, event.clientY);
  }
});
function lift(event) {
  fingers.delete(event.pointerId);
  if (fingers.size < 2) pinch = null;
  if (!fingers.size) {
    if (drag && !drag.moved && event.type === "pointerup") {
      const lora = hit(event.offsetX, event.offsetY);
      if (lora !== null || chosen !== null) choose(lora);
      if (event.pointerType === "touch") { tip(null); if (lora !== null && narrow.matches) $("panel").scrollIntoView({block: "start", behavior: calm.matches ? "auto" : "smooth"}); }
    }
    drag = null;
  }
}
canvas.addEventListener("pointerup", lift);
canvas.addEventListener("pointercancel", lift);
canvas.addEventListener("pointerleave", () => { point(null, false); tip(null); });
const limit = k => Math.min(30, Math.max(.6, k));
function zoom(factor, x = width / 2, y = height / 2) {
  const k = limit(view.k * factor), g = k / view.k;
  view = {k, x: x - (x - view.x) * g, y: y - (y - view.y) * g};
  ask();
}
canvas.addEventListener("wheel", event => { event.preventDefault(); zoom(Math.exp(-event.deltaY * (event.deltaMode ? .05 : .0016)), event.offsetX, event.offsetY); }, {passive: false});
canvas.addEventListener("dblclick", event => zoom(2, event.offsetX, event.offsetY));
$("in").addEventListener("click", () => zoom(1.5));
$("out").addEventListener("click", () => zoom(1 / 1.5));
$("reset").addEventListener("click", () => { view = {k: 1, x: 0, y: 0}; ask(); });

// --- keys
const WAYS = {ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1]};
canvas.addEventListener("keydown", event => {
  const way = WAYS[event.key];
  if (way) {
    event.preventDefault();
    const from = pointed ?? chosen;
    let best = null, least = Infinity;
    if (from === null) best = members(map()).find(lit) ?? null;
    else {
      const p = onScreen(from);
      for (const lora of members(map())) {
        const q = onScreen(lora), along = (q[0] - p[0]) * way[0] + (q[1] - p[1]) * way[1];
        const across = Math.abs((q[0] - p[0]) * way[1]) + Math.abs((q[1] - p[1]) * way[0]);
        if (lora !== from && along > .5 && lit(lora) && along + 2 * across < least) { least = along + 2 * across; best = lora; }
      }
    }
    if (best !== null) {
      point(best, true);
      const p = onScreen(best), box = canvas.getBoundingClientRect();
      tip(best, box.left + p[0], box.top + p[1]);
    }
  } else if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    if (pointed !== null) { choose(pointed); tip(null); $("panel").focus(); }
  } else if (event.key === "+" || event.key === "=") zoom(1.4);
  else if (event.key === "-") zoom(1 / 1.4);
  else if (event.key === "0") $("reset").click();
});
canvas.addEventListener("blur", () => { tip(null); point(null, false); });
document.addEventListener("keydown", event => {
  if (event.key === "Escape" && !$("hits").hidden) { hits([]); return; }
  if (event.key === "Escape" && (chosen !== null || only !== null)) { only = null; choose(null); if (!$("map").hidden) canvas.focus({preventScroll: true}); }
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (!typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    if (event.key === "/") { event.preventDefault(); $("search").focus(); }
    if (event.key === "[") $("before").click();
    if (event.key === "]") $("after").click();
  }
});

// --- the panel
function choose(lora) {
  chosen = lora;
  if (lora !== null && !index(map()).has(lora)) {
    const there = D.maps.findIndex(m => index(m).has(lora));
    if (there >= 0) { go(there); return; }
  }
  try { history.replaceState(null, "", lora === null ? "#" : "#" + encodeURIComponent(D.loras[lora].name)); } catch { /* a page within a page */ }
  panel(); ask();
}
function pick(lora) { show("map"); choose(lora); $("panel").scrollTop = 0; $("panel").focus({preventScroll: !narrow.matches}); }
const wall = (pictures, large) => el("div", {class: large ? "wall large" : "wall"}, pictures.map(([number, title]) => el("img", {src: uri(number), alt: title || "", title: title || null, loading: "lazy"})));
function rowOf(lora, what, extra, mark) {
  const picture = face(lora);
  return el("button", {class: "row", onclick: () => pick(lora), onpointerenter: () => point(lora, false), onpointerleave: () => point(null, false)},
    mark ? el("span", {class: "mark " + mark[1], "aria-hidden": "true"}, mark[0]) : null,
    picture !== null ? el("img", {src: uri(picture), alt: "", loading: "lazy"}) : sign(look(lora).tint, look(lora).shape, look(lora).hollow),
    el("span", {class: "what"}, el("b", {}, D.loras[lora].name), el("span", {}, what)),
    el("span", {class: "n"}, extra));
}
function panel() {
  const box = $("panel");
  box.replaceChildren(...(chosen === null ? overview() : about(chosen)).filter(Boolean));
}
function facts(pairs) { return el("dl", {class: "facts"}, pairs.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])); }
function about(lora) {
  const l = D.loras[lora], {tint, shape, hollow} = look(lora), m = map(), i = index(m).get(lora);
  const found = [el("div", {class: "head"}, sign(tint, shape, hollow), el("div", {}, el("h2", {}, l.name), el("p", {class: "sub"}, subtitle(lora))),
    el("button", {class: "back", "aria-label": "Close", onclick: () => { choose(null); canvas.focus({preventScroll: true}); }}, "×"))];
  if (l.preview?.length) found.push(el("h3", {}, "Preview beside the file"), wall(l.preview, true));
  if (l.generated?.length) found.push(el("h3", {}, "What it paints"), D.setting ? el("p", {class: "grey"}, D.setting) : null, wall(l.generated, true));
  if (l.training?.length) found.push(el("h3", {}, "What it was trained on"), wall(l.training, false), l.more > 0 ? el("p", {class: "grey"}, `and ${l.more} more`) : null);
  const told = [...(l.facts || []), ...D.facts];
  if (m.scores?.[i]) told.unshift(["finds its artist", `average precision ${m.scores[i][0].toFixed(2)}; chance ${m.scores[i][1].toFixed(2)}`]);
  found.push(el("h3", {}, "About it"), facts(told));
  if (l.remarks?.length) found.push(el("ul", {class: "plain grey"}, l.remarks.map(remark => el("li", {}, remark))));
  if (l.copies?.length) found.push(el("h3", {}, "Copies of one update"), el("ul", {class: "plain grey"}, l.copies.map(([name, relation]) => el("li", {}, `${name}: ${relation}`))));
  found.push(el("h3", {}, D.kind === "trained" ? "Nearest in the gallery" : "Nearest"), el("p", {class: "grey"}, m.label));
  const nearest = near(lora, m);
  if (!nearest.length) found.push(el("p", {}, "There is nothing to compare it with."));
  if (nearest.length && nearest.every((other, k) => verdict(lora, other, k)[0] === "unrelated")) found.push(el("p", {}, "Unrelated: none of them is nearer than chance."));
  found.push(el("ol", {}, nearest.map((other, k) => {
    const [kind, words] = verdict(lora, other, k);
    return el("li", {}, rowOf(other, words, m.distance[i][k].toFixed(3), MARKS[kind]));
  })));
  if (nearest.length) found.push(el("p", {class: "grey"}, `numbers: ${D.measure}`));
  if (nearest.length && D.kind === "folder") found.push(el("p", {class: "grey"}, "= a copy; ✓ nearer than chance: p, how often an unrelated LoRA has one as near, is 0.05 or less; ≈ nearer than noise goes, among too few LoRAs for such a p; – unrelated"));
  if (D.kind === "trained" && D.maps.length > 1) found.push(el("h3", {}, "The same by other descriptors"), others(lora));
  return found;
}
function others(lora) {
  const body = el("tbody", {});
  for (const [kind, own] of D.groups) {
    if (kind === "across sources") continue;
    body.append(el("tr", {}, el("th", {class: "kind", colspan: "2", scope: "colgroup"}, kind)));
    for (const i of own) {
      const m = D.maps[i], first = near(lora, m).slice(0, 5), kinds = first.map((other, k) => verdict(lora, other, k, m)[0]), right = kinds.filter(kind => kind === "right").length;
      const marks = kinds.map(kind => el("span", {class: MARKS[kind][1], "aria-hidden": "true"}, {right: "●", wrong: "○"}[kind] || "·"));
      body.append(el("tr", {"aria-current": i === at ? "true" : null},
        el("td", {}, el("button", {onclick: () => go(i), title: first.length ? "nearest: " + D.loras[first[0]].name : null}, m.label)),
        el("td", {class: "marks"}, marks, el("span", {class: "unseen"}, `${right} of the ${Math.min(first.length, peers(lora, m))} nearest that could be are the artist's`))));
    }
  }
  return el("div", {}, el("p", {class: "grey"}, "● one of the 5 nearest is the artist's, ○ it is another's, · the gallery has none of the artist's left"), el("table", {class: "others"}, body));
}
function overview() {
  const found = [];
  if (D.refused?.length && !D.loras.length) found.push(el("h2", {}, "What could not be used"), el("ul", {class: "plain"}, D.refused.map(([name, reason]) => el("li", {}, el("b", {}, name), el("p", {class: "grey"}, reason)))));
  if (D.kind === "folder" && D.maps.length > 1) {
    found.push(el("h2", {}, "Bases"), el("ul", {class: "plain"}, D.maps.map((m, i) => el("li", {}, el("button", {class: "row", "aria-pressed": String(i === at), onclick: () => go(i)},
      el("span", {class: "what"}, el("b", {}, m.label), el("span", {}, m.says)))))));
  }
  if (D.artists.length) {
    const here = new Map();
    for (const lora of members(map())) { const a = D.loras[lora].artist; if (a !== null && a !== undefined) here.set(a, [...(here.get(a) || []), lora]); }
    found.push(el("h2", {}, D.kind === "trained" ? "Artists" : "Folders"), el("p", {class: "grey"}, `Choose a point for what ${D.kind === "trained" ? "it learnt, what it paints" : "its file says"} and what is near it, or one of these to see where its LoRAs are.`));
    found.push(el("ul", {class: "plain"}, [...here].sort((a, b) => a[0] - b[0]).map(([a, own]) => {
      const artist = D.artists[a], first = own.find(lora => D.loras[lora].training?.length) ?? own[0], l = D.loras[first], picture = l.training?.[0]?.[0] ?? face(first);
      return el("li", {}, el("button", {class: "row", "aria-pressed": String(only === a), onclick: () => { only = only === a ? null : a; panel(); ask(); }},
        sign(theme.tints[artist.colour % theme.tints.length], artist.shape, false),
        picture !== null ? el("img", {src: uri(picture), alt: "", loading: "lazy"}) : null,
        el("span", {class: "what"}, el("b", {}, artist.name), artist.genre ? el("span", {}, artist.genre) : null),
        el("span", {class: "n"}, only === a ? "shown" : String(own.length))));
    })));
  } else if (D.kind === "folder" && D.loras.length) found.push(el("p", {class: "grey"}, "Choose a point for what its file says and what is near it."));
  if (D.facts.length) found.push(el("h3", {}, "About the study"), facts(D.facts));
  return found;
}

// --- the map's own words
function kept() {
  if (previous === null || D.kind !== "trained" || previous === at) return "";
  const old = D.maps[previous];
  let same = 0, all = 0;
  for (const lora of members(map())) {
    const a = new Set(near(lora, old).slice(0, 5));
    for (const other of near(lora).slice(0, 5)) { all += 1; same += a.has(other); }
  }
  return all ? `It keeps ${Math.round(100 * same / all)} % of the 5 nearest by “${old.label}”` : "";
}
function describe() {
  const m = map();
  const words = [m.alike ? "It cannot tell these LoRAs apart: the order here means nothing" : "", m.says, kept(), D.kind === "trained" ? "Near is alike; far is only not near" : ""];
  $("says").textContent = words.filter(Boolean).join(". ") + ".";
  canvas.dataset.map = m.name;
}
function key() {
  const found = [];
  const framed = $("faces").value !== "dots";
  if (D.kind === "trained") found.push(el("span", {}, sign(theme.grey, 0, false), framed ? "gallery: whole frame" : "gallery"), el("span", {}, sign(theme.grey, 0, true), framed ? "query: broken frame" : "query"));
  D.genres.forEach((genre, i) => found.push(el("span", {}, sign(theme.grey, i, false), genre || "no genre")));
  if (members(map() || {members: []}).some(lora => D.loras[lora].alone)) found.push(el("span", {}, sign(theme.grey, 0, true), "related to none here"));
  if (D.loras.some(l => l.count > 1)) found.push(el("span", {}, "×2: copies of one update, one point"));
  $("key").replaceChildren(...found);
}
for (const [kind, own] of D.groups) $("chooser").append(el("optgroup", {label: kind}, own.map(i => el("option", {value: String(i)}, D.maps[i].label))));
$("chooser").addEventListener("change", event => go(Number(event.target.value)));
$("before").addEventListener("click", () => go((at + D.maps.length - 1) % D.maps.length));
$("after").addEventListener("click", () => go((at + 1) % D.maps.length));
if (D.maps.length < 2) for (const id of ["before", "after"]) $(id).hidden = true;
for (const [value, words] of Object.entries({training: "what they learnt from", generated: "what they paint", preview: "previews", dots: "dots"})) {
  if (value === "dots" || D.loras.some((_, i) => FACES[value](i) !== null)) $("faces").append(el("option", {value}, words));
}
if (D.loras.length > 200) $("faces").value = "dots";
$("faces").closest("label").hidden = $("faces").options.length < 2;
$("faces").addEventListener("change", () => { panel(); key(); if (listed) fill(); ask(); });

// --- search
let active = -1;
function hits(found, asked) {
  const box = $("hits");
  active = -1;
  $("search").removeAttribute("aria-activedescendant");
  box.replaceChildren(...found.slice(0, 40).map((lora, n) => {
    const {tint, shape, hollow} = look(lora);
    return el("li", {role: "option", id: "hit-" + n, "aria-selected": "false", "data-lora": String(lora), onpointerdown: event => { event.preventDefault(); take(lora); }},
      sign(tint, shape, hollow), el("span", {}, D.loras[lora].name), el("span", {class: "grey"}, subtitle(lora)));
  }));
  if (asked && !found.length) box.append(el("li", {class: "none", role: "option", "aria-selected": "false"}, "nothing of that name"));
  box.hidden = !box.childElementCount;
  $("search").setAttribute("aria-expanded", String(!box.hidden));
}
function take(lora) { hits([]); pick(lora); }
$("search").addEventListener("input", event => {
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = words.length ? hay.map((text, i) => words.every(word => text.includes(word)) ? i : -1).filter(i => i >= 0) : [];
  matched = words.length ? new Set(found) : null;
  hits(found, words.length > 0);
  if (words.length) $("said").textContent = `${found.length} LoRAs found`;
  if (listed) fill();
  ask();
});
$("search").addEventListener("keydown", event => {
  const rows = [...$("hits").querySelectorAll("[data-lora]")];
  if ((event.key === "ArrowDown" || event.key === "ArrowUp") && rows.length) {
    event.preventDefault();
    active = (active + (event.key === "ArrowDown" ? 1 : -1) + rows.length) % rows.length;
    rows.forEach((row, i) => row.setAttribute("aria-selected", String(i === active)));
    rows[active].scrollIntoView({block: "nearest"});
    event.target.setAttribute("aria-activedescendant", rows[active].id);
  } else if (event.key === "Enter" && rows.length) take(Number(rows[Math.max(active, 0)].dataset.lora));
});
$("search").addEventListener("blur", () => hits([]));

// --- parts of the page
const PARTS = ["map", "findings", "list"];
function show(part) {
  for (const each of PARTS) {
    $(each).hidden = each !== part;
    $("tab-" + each).setAttribute("aria-selected", String(each === part));
    $("tab-" + each).tabIndex = each === part ? 0 : -1;
  }
  tip(null);
  if (part === "map") resize();
  if (part === "list") fill();
}
for (const part of PARTS) $("tab-" + part).addEventListener("click", () => show(part));
document.querySelector("nav").addEventListener("keydown", event => {
  const way = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  if (!way) return;
  const next = PARTS[(PARTS.findIndex(part => !$(part).hidden) + way + PARTS.length) % PARTS.length];
  show(next); $("tab-" + next).focus();
});
let listed = false;
function fill() {
  listed = true;
  const loras = D.loras.map((_, i) => i).filter(i => !matched || matched.has(i));
  const trained = D.kind === "trained";
  const nearestOf = lora => {
    const m = index(map()).has(lora) ? map() : D.maps.find(each => index(each).has(lora)) || map(), first = near(lora, m)[0];
    return first === undefined ? null : [D.loras[first].name, verdict(lora, first, 0, m)];
  };
  // What stands in a column, as text; a column in which nothing stands is left out.
  const columns = [
    [trained ? "artist" : "folder", lora => artistOf(lora)?.name], ["genre", lora => artistOf(lora)?.genre || D.loras[lora].genre],
    [trained ? "split" : "base", lora => D.loras[lora].split || D.loras[lora].base], ["nearest", lora => nearestOf(lora)?.[0]],
    ["evidence", lora => nearestOf(lora)?.[1][1], lora => MARKS[nearestOf(lora)?.[1][0] ?? ""][1]],
  ].filter(([, text]) => loras.some(text));
  const rows = loras.map(lora => {
    const picture = face(lora);
    return el("tr", {}, el("td", {}, picture !== null ? el("img", {src: uri(picture), alt: "", loading: "lazy"}) : sign(look(lora).tint, look(lora).shape, look(lora).hollow)),
      el("td", {"data-of": "LoRA"}, el("button", {onclick: () => pick(lora)}, D.loras[lora].name)),
      columns.map(([name, text, mark]) => el("td", {"data-of": name, class: mark ? mark(lora) : null}, text(lora) || "")));
  });
  $("list").replaceChildren(el("div", {class: "column scroll"}, el("p", {class: "grey"}, `${loras.length} ${trained ? "LoRAs; nearest: " + map().label : "different updates; nearest: of the same base"}`),
    el("table", {}, el("thead", {}, el("tr", {}, el("th", {scope: "col"}, el("span", {class: "unseen"}, "picture or sign")), ["LoRA", ...columns.map(([name]) => name)].map(name => el("th", {scope: "col"}, name)))), el("tbody", {}, rows))));
}

// --- findings
for (const button of document.querySelectorAll("[data-save]")) button.addEventListener("click", () => {
  const link = el("a", {href: URL.createObjectURL(new Blob([D.saved[button.dataset.save]], {type: "text/csv"})), download: `${D.study}_${button.dataset.save}.csv`});
  document.body.append(link); link.click(); link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
});
for (const drawn of document.querySelectorAll(".chart svg")) {
  const [, , w, h] = drawn.getAttribute("viewBox").split(" ").map(Number);
  const scale = w < 1000 ? 1.2 : 1;
  drawn.setAttribute("width", String(w * scale)); drawn.setAttribute("height", String(h * scale));
  if (w > 1250) drawn.classList.add("wide");
}
for (const chart of document.querySelectorAll(".chart")) {
  const box = $("chart-tip");
  chart.addEventListener("pointermove", event => {
    const mark = event.target.closest("[data-label]"), text = mark ? mark.dataset.label : "";
    if (!text || text.includes("axis") || text.includes("legend") || text.startsWith("Title")) { box.hidden = true; return; }
    box.replaceChildren(...text.split("; ").map(line => el("span", {}, line)));
    box.hidden = false;
    box.style.left = Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8) + "px";
    box.style.top = Math.min(event.clientY + 16, innerHeight - box.offsetHeight - 8) + "px";
  });
  chart.addEventListener("pointerleave", () => { box.hidden = true; });
}

// --- begin
$("theme").addEventListener("click", () => {
  dark = !dark;
  try { localStorage.setItem("lora-atlas-theme", dark ? "dark" : "light"); } catch { /* no storage */ }
  paint(); key(); panel(); if (listed) fill(); ask();
});
paint(); key();
if (D.maps.length) {
  new ResizeObserver(resize).observe(canvas);
  resize(); go(0);
  const asked = (() => { try { return decodeURIComponent(location.hash.slice(1)); } catch { return ""; } })();
  const named = asked ? D.loras.findIndex(l => l.name === asked || l.copies?.some(copy => copy[0] === asked)) : -1;
  if (named >= 0) choose(named);
} else {
  for (const hidden of [...document.querySelectorAll(".bar, .zoom"), canvas]) hidden.hidden = true;
  $("says").textContent = "There is no base with LoRAs that could be compared.";
  $("panel").replaceChildren(...overview());
}
document.documentElement.dataset.ready = "true";
})();
