#!/usr/bin/env bash
# @iconify/json: some of its families are other families' drawings, so family is not author, and not style
#
# Versions: @iconify/json 2.2.535 (npm), Python 3.11 to 3.13, standard library alone.
#
# What it holds. The package of all families is 243 files of drawings, one a family. Compared to the byte (SVG body and box), whole
# families stand in others under other names and authors: nearly all of famicons in ion, all of guidance in
# streamline-guidance, all but two of mi in mono-icons, 97 % of simple-icons in thesvg. Others share a tenth or more. Within a
# family, up to a third of the drawings repeat another one under a second name, which is no alias but a drawing of its own in the
# file; info.total counts them all.
#
# What most would expect. That a family is a hand: the package lists an author and a licence for each. Who splits drawings into
# training and test by family, or by name within a family, has the same picture on both sides; a classifier of families cannot
# tell famicons from ion, and two licences stand beside one drawing.
#
# Seen 2026-11-29:
#   version 2.2.535: 243 families, 380,909 drawings
#   families of which at least a tenth stands, to the byte, in another too:
#      3360 of  3463 of simple-icons   in thesvg               (two authors)
#      1270 of  1342 of famicons       in ion                  (two authors)
#       387 of   457 of fa-brands      in fa6-brands           (one author)
#       360 of   360 of guidance       in streamline-guidance  (two authors)
#       310 of   557 of temaki         in pinhead              (two authors)
#       178 of   180 of mi             in mono-icons           (one author)
#       131 of  1057 of devicon        in thesvg-color         (two authors)
#        85 of   771 of devicon-plain  in thesvg               (two authors)
#        82 of   653 of codicon        in fluent               (one author)
#        56 of   286 of feather        in lucide               (two authors)
#        35 of   234 of icons8         in la                   (one author)
#        23 of   215 of maki           in pinhead              (two authors)
#   drawings that repeat another of their own family under another name, the five with most:
#      3157 of 10955 of ic
#      1644 of  9736 of keyline-icons
#       579 of  2000 of fa7-solid
#       411 of  3768 of boxicons
#       234 of 19876 of fluent
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
(cd "$folder" && npm pack --silent @iconify/json@2.2.535 > /dev/null && tar xzf *.tgz)
cat > "$folder/one.py" <<'PY'
import collections
import json
import pathlib
import sys

root = pathlib.Path(sys.argv[1])
told = json.loads((root / "collections.json").read_text(encoding="utf-8"))
version = json.loads((root / "package.json").read_text(encoding="utf-8"))["version"]
families, where = {}, collections.defaultdict(list)
for path in sorted((root / "json").glob("*.json")):
    data = json.loads(path.read_text(encoding="utf-8"))
    shown = {name: icon for name, icon in data["icons"].items() if not icon.get("hidden")}
    size = data.get("width", 16), data.get("height", 16)
    families[path.stem] = len(shown)
    for name, icon in shown.items():
        box = icon.get("left", 0), icon.get("top", 0), icon.get("width", size[0]), icon.get("height", size[1])
        where[icon["body"], box].append((path.stem, name))

shared, twice = collections.Counter(), collections.Counter()
for places in where.values():
    owners = collections.Counter(family for family, _ in places)
    twice.update({family: number - 1 for family, number in owners.items() if number > 1})
    shared.update((one, other) for one in owners for other in owners if one < other)
print(f"version {version}: {len(families)} families, {sum(families.values()):,} drawings")
print("families of which at least a tenth stands, to the byte, in another too:")
whole = {}
for pair, number in shared.most_common():
    small, large = sorted(pair, key=lambda family: (families[family], family))
    if number >= families[small] / 10:
        whole[small, large] = number
        authors = [told[family]["author"]["name"] if family in told else "?" for family in (small, large)]
        kind = "one author" if authors[0] == authors[1] else "two authors"
        print(f"  {number:5} of {families[small]:5} of {small:14} in {large:20} ({kind})")
print("drawings that repeat another of their own family under another name, the five with most:")
for family, number in twice.most_common(5):
    print(f"  {number:5} of {families[family]:5} of {family}")
assert whole["famicons", "ion"] > 0.9 * families["famicons"] and whole["guidance", "streamline-guidance"] == 360
assert whole["mi", "mono-icons"] == 178 and twice["ic"] == 3157 and len(families) == 243
PY
python3 "$folder/one.py" "$folder/package"
echo "as seen"
