"""What the shapes of a module's parts say: which kind of update they make, whether they are all there and fit."""

import math
from collections.abc import Mapping

# A factor may grow by its kernel when it is laid flat; a file of a few bytes must not name gigabytes.
MAX_GROWTH = 16
FREE_GROWTH = 64 * 2**20  # bytes
# The rank of an update is the size of this axis of the first of these parts that is there.
_RANK_AXIS = (("A", 0), ("w1_b", 0), ("kw1_b", 0), ("kw2_b", 0), ("kw1_a", 1), ("kw2_a", 1))
_LOHA = {"w1_a", "w1_b", "w2_a", "w2_b"}

Shape = tuple[int, ...]


def kind_of(parts: Mapping[str, str]) -> str:
    names = set(parts)
    if names & {"w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"}:
        kind = "LoHa"
    elif any(name.startswith("k") for name in names):
        kind = "LoKr"
    elif "diff" in names:
        kind = "full"
    else:
        kind = "Tucker" if "mid" in names else "LoRA"
    return "DoRA" if "magnitude" in names else kind


def incomplete(kind: str, parts: Mapping[str, str]) -> str | None:
    names = set(parts) - {"alpha", "magnitude"}
    if kind in ("LoRA", "Tucker") or (kind == "DoRA" and names <= {"A", "B", "mid"}):
        missing, foreign = {"A", "B"} - names, names - {"A", "B", "mid"}
    elif kind == "LoHa":
        missing, foreign = _LOHA - names, names - _LOHA - {"t1", "t2"}
        missing |= {"t1", "t2"} - names if names & {"t1", "t2"} else set()
    elif kind == "LoKr":
        missing = set()
        for side in ("kw1", "kw2"):
            if side in names:
                continue
            missing |= {f"{side}_a", f"{side}_b"} - names
        clash = {n for n in names for side in ("kw1", "kw2") if side in names and n.startswith(f"{side}_")}
        foreign = clash | {n for n in names if not n.startswith("k")} | ({"kt2"} & names if "kw2" in names else set())
    elif kind == "full":
        missing, foreign = set(), names - {"diff"}
    else:
        return "a magnitude (DoRA) of an update that is no LoRA"
    if missing:
        whole = "half a pair" if kind in ("LoRA", "Tucker", "DoRA") else f"not a whole {kind}"
        return f"{whole}, {' and '.join(sorted(m.removeprefix('k') for m in missing))} missing"
    if foreign:
        return f"parts of several kinds of update: {sorted(parts.values())}"
    return None


def mismatch(kind: str, s: Mapping[str, Shape]) -> str | None:
    """What is wrong with the shapes of a whole update, or nothing."""
    if any(0 in shape for shape in s.values()):
        return f"of size zero: {_listed(s)}"
    ok = True
    if "A" in s:
        a, b, mid = s["A"], s["B"], s.get("mid")
        ok = len(a) >= 2 and len(b) >= 2 and math.prod(b[2:]) == 1
        if mid is None:
            ok = ok and a[0] == b[1]
        else:  # ΔW[o, i, …] = Σ up[o, p] mid[p, q, …] down[q, i]
            ok = ok and len(mid) >= 2 and mid[0] == b[1] and mid[1] == a[0] and math.prod(a[2:]) == 1
        if not ok:
            between = f" through {list(mid)}" if mid is not None else ""
            return f"A {list(a)} and B {list(b)} do not multiply{between}"
        if "magnitude" in s:
            ok = math.prod(s["magnitude"]) == max(s["magnitude"], default=0) and len(s["magnitude"]) > 0
    elif kind == "LoHa":
        for n in "12":
            a, b, t = s[f"w{n}_a"], s[f"w{n}_b"], s.get(f"t{n}")
            ok = ok and len(a) == len(b) == 2
            # Tucker: W[p, r, …] = Σ t[i, j, …] w_a[i, p] w_b[j, r]
            ok = ok and (a[1] == b[0] if t is None else len(t) >= 2 and t[0] == a[0] and t[1] == b[0])
        if ok:
            sides = [_sides(s[f"w{n}_a"], s[f"w{n}_b"], s.get(f"t{n}")) for n in "12"]
            ok = sides[0] == sides[1]
    elif kind == "LoKr":
        for n in "12":
            if f"kw{n}" in s:
                ok = ok and len(s[f"kw{n}"]) >= 2 and (n == "2" or math.prod(s["kw1"][2:]) == 1)
            else:
                a, b, t = s[f"kw{n}_a"], s[f"kw{n}_b"], s.get("kt2") if n == "2" else None
                ok = ok and len(a) == 2 and len(b) == 2
                ok = ok and (a[1] == b[0] if t is None else len(t) >= 2 and t[0] == a[0] and t[1] == b[0])
    elif kind == "full":
        ok = len(s["diff"]) >= 1
    return None if ok else f"its factors do not multiply: {_listed(s)}"


def _listed(shapes: Mapping[str, Shape]) -> str:
    return ", ".join(f"{part.removeprefix('k')} {list(shape)}" for part, shape in sorted(shapes.items()))


def _sides(a: Shape, b: Shape, t: Shape | None) -> tuple[int, int]:
    """(out, in) of the product of two factors, or of a Tucker core between them."""
    return (a[0], math.prod(b[1:])) if t is None else (a[1], b[1] * math.prod(t[2:]))


def shape_of(kind: str, s: Mapping[str, Shape]) -> tuple[int, int]:
    if "A" in s:
        return s["B"][0], math.prod(s["A"][1:]) * math.prod(s["mid"][2:] if "mid" in s else ())
    if kind == "LoHa":
        return _sides(s["w1_a"], s["w1_b"], s.get("t1"))
    if kind == "full":
        return s["diff"][0], math.prod(s["diff"][1:])
    sides = []
    for n in "12":
        if f"kw{n}" in s:
            sides.append((s[f"kw{n}"][0], math.prod(s[f"kw{n}"][1:])))
        else:
            sides.append(_sides(s[f"kw{n}_a"], s[f"kw{n}_b"], s.get("kt2") if n == "2" else None))
    return sides[0][0] * sides[1][0], sides[0][1] * sides[1][1]


def rank_of(s: Mapping[str, Shape]) -> int:
    """The r of the file: of the scale, and what its maker called its rank."""
    if "diff" in s:
        return min(s["diff"][0], math.prod(s["diff"][1:]))
    if "kt2" in s or "t1" in s:
        return (s.get("kt2") or s["t1"])[0]
    found = next((s[part][axis] for part, axis in _RANK_AXIS if part in s), None)
    return min(s["kw2"][:2]) if found is None else found  # both whole


def grown(kind: str, s: Mapping[str, Shape]) -> bool:
    """Whether the factors take far more memory than the tensors that they are made of."""
    stored = 4 * sum(math.prod(shape) for shape in s.values())
    needed = 0
    if "mid" in s:
        needed = 4 * s["mid"][0] * math.prod(s["A"][1:]) * math.prod(s["mid"][2:])
    elif kind == "LoHa" and "t1" in s:
        needed = 4 * sum(s[f"t{n}"][0] * s[f"w{n}_b"][1] * math.prod(s[f"t{n}"][2:]) for n in "12")
    elif "kt2" in s:
        needed = 4 * s["kt2"][0] * s["kw2_b"][1] * math.prod(s["kt2"][2:])
    return needed > max(MAX_GROWTH * stored, FREE_GROWTH)
