#!/usr/bin/env bash
# sd-mecha: TIES elects signs by counting heads unless told to, and applies Model Stock unless told to
#
# Versions: sd-mecha 1.1.8, torch 2.14.1, Python 3.11.
#
# What it does. ties_sum keeps of each weight the updates that agree with an elected sign. That is the sign of the sum of signs,
# so two small updates outvote a large one, and of two that disagree neither is left; with vote_sgn=True, whose name says sign, it
# is the sign of the sum of updates. ties_sum_extended multiplies the result by Model Stock's ratio where apply_stock is False,
# which it is unless given, and leaves it alone where apply_stock is True. ties_sum_with_dropout goes the same way. Nothing is
# said.
#
# What most would expect. The election by mass of the paper that the code names (arXiv 2306.01708: the sign of the sum), which
# sd-mecha's own listing of methods has as a formula too; and two switches that switch something on: a comment beside the methods
# says that they do. With updates that agree in sign the first does not show.
#
# Seen 2026-11-30 (updates of three models: 3 -1 -1 of the first weight, 3 3 3, 1 1 1, and 1 -1 1 of the last; all are kept, k=1):
#   the paper, by mass                              :   3.00   3.00   1.00   1.00
#   ties_sum                                        :  -1.00   3.00   1.00   1.00
#   ties_sum, vote_sgn                              :   3.00   3.00   1.00   1.00
#   ties_sum of the first two models                :   0.00   3.00   1.00   0.00
#   ties_sum of the first two models, vote_sgn      :   3.00   3.00   1.00   0.00
#   ties_sum_extended                               :  -0.98   2.93   0.98   0.98
#   ties_sum_extended, apply_stock                  :  -1.00   3.00   1.00   1.00
#   ties_sum_extended, apply_stock, vote_sgn        :   3.00   3.00   1.00   1.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check sd-mecha==1.1.8 torch==2.14.1 numpy==2.4.6 scipy==1.17.1
cat > "$folder/one.py" <<'PY'
import functools
import logging

import sd_mecha
import torch
import tqdm

logging.disable(logging.WARNING)  # that a recipe of models in memory is not written into its output
KEY = "model.diffusion_model.out.2.bias"  # any of Stable Diffusion's with four weights
UPDATES = torch.tensor([[3.0, 3, 1, 1], [-1, 3, 1, -1], [-1, 3, 1, 1]])


def merged(method, count=3, **options):
    models = [sd_mecha.model({KEY: each}, config="sd1-ldm", merge_space="delta") for each in UPDATES[:count]]
    return sd_mecha.merge(
        method(*models, k=1.0, **options),
        strict_merge_space="delta",
        output_dtype=torch.float32,
        tqdm=functools.partial(tqdm.tqdm, disable=True),
    )[KEY]


def agreeing(elected):
    return UPDATES * (UPDATES.sign() == elected.sign())


def mean_of_agreeing(elected):
    return agreeing(elected).sum(0) / (agreeing(elected) != 0).sum(0)


mass, heads = UPDATES.sum(0), UPDATES.sign().sum(0)
kept = agreeing(heads)
cosine = torch.cosine_similarity(kept[:-1], kept[1:], dim=1).mean()
stock = 3 * cosine / (1 + 2 * cosine)  # Model Stock's ratio of three models
assert 0.9 < stock < 0.99
CASES = {
    "ties_sum": (sd_mecha.ties_sum, {}, mean_of_agreeing(heads)),
    "ties_sum, vote_sgn": (sd_mecha.ties_sum, {"vote_sgn": True}, mean_of_agreeing(mass)),
    "ties_sum of the first two models": (sd_mecha.ties_sum, {"count": 2}, torch.tensor([0.0, 3, 1, 0])),
    "ties_sum of the first two models, vote_sgn": (sd_mecha.ties_sum, {"count": 2, "vote_sgn": True}, torch.tensor([3.0, 3, 1, 0])),
    "ties_sum_extended": (sd_mecha.ties_sum_extended, {}, mean_of_agreeing(heads) * stock),
    "ties_sum_extended, apply_stock": (sd_mecha.ties_sum_extended, {"apply_stock": True}, mean_of_agreeing(heads)),
    "ties_sum_extended, apply_stock, vote_sgn": (
        sd_mecha.ties_sum_extended, {"apply_stock": True, "vote_sgn": True}, mean_of_agreeing(mass)
    ),
}
print(f"{'the paper, by mass':48}: {' '.join(f'{value:6.2f}' for value in mean_of_agreeing(mass).tolist())}")
for title, (method, options, expected) in CASES.items():
    got = merged(method, **options)
    print(f"{title:48}: {' '.join(f'{value:6.2f}' for value in got.tolist())}")
    assert torch.allclose(got, expected, atol=1e-4), expected
PY
"$folder/env/bin/python" "$folder/one.py"
echo "as seen"
