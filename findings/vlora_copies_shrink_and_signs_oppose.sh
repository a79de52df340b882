#!/usr/bin/env bash
# vlora: TIES of two copies of one adapter is a quarter of it, and an adapter in other factors is its own opposite
#
# Versions: vlora-dev 1.0.0, torch 2.14.1, safetensors 0.8.0, Python 3.11.
#
# What it does. ties_merge weighs each of n adapters by 1/n and then divides by the number of those that agree as well, in A and in B. So
# both factors of n copies are 1/n of what they were, and the update 1/n². task_arithmetic and dare_merge divide once, and give the
# adapter back. compute_similarity_matrix and adapter_diff, which find_clusters and find_outliers stand on, hold A and B themselves
# against each other, not what they do: with both factors negated the product B A is the same to the bit, and the cosine is -1.
# task_arithmetic of these two equal updates is nothing at all, and its weights count in A and in B, so 0.25 and 0.75 of them add to 1/4.
#
# What most would expect. Of merging n copies the adapter, as in the paper that it names for TIES (the mean of what agrees), and of the
# similarity of an adapter with an equal one 1. The factors are what training happened to find: any invertible matrix between B and
# A gives another pair for the same update.
#
# Seen 2026-11-30 (a layer 64 to 48, rank 8; the update as a multiple of the adapter's):
#   copies   ties_merge (density 1)   task_arithmetic   dare_merge (rate 0)
#        1                    1.000             1.000                 1.000
#        2                    0.250             1.000                 1.000
#        4                    0.062             1.000                 1.000
#   the same update, both factors negated: updates equal True, cosine -1.00, per layer -1.00, clusters 2
#   task_arithmetic of the two: halves 0.00, weights 0.25 and 0.75 0.25
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  vlora-dev==1.0.0 torch==2.14.1 safetensors==0.8.0 numpy==2.4.6
cat > "$folder/one.py" <<'PY'
import torch
import vlora
from vlora.analysis import adapter_diff, compute_similarity_matrix, find_clusters

torch.manual_seed(0)
A, B = torch.randn(8, 64) / 8, torch.randn(48, 8) / 50


def adapter(sign):
    return vlora.LoRAWeights(layer_names=["layer"], lora_a={"layer": sign * A}, lora_b={"layer": sign * B}, rank=8)


def update(weights):
    return weights.lora_b["layer"] @ weights.lora_a["layer"]


def multiple(weights):
    """Of the adapter's update; what comes out is that update times a number each time."""
    found = float((update(weights) * (B @ A)).sum() / (B @ A).square().sum())
    assert torch.allclose(update(weights), found * (B @ A), atol=1e-6)
    return found


print("copies   ties_merge (density 1)   task_arithmetic   dare_merge (rate 0)")
for copies in (1, 2, 4):
    merged = [
        multiple(method([adapter(1)] * copies, **options))
        for method, options in ((vlora.ties_merge, {"density": 1.0}), (vlora.task_arithmetic, {}), (vlora.dare_merge, {"drop_rate": 0.0}))
    ]
    print("{:6}   {:22.3f}   {:15.3f}   {:19.3f}".format(copies, *merged))
    assert [round(each * copies**2, 4) for each in merged] == [1, copies**2, copies**2]

pair = [adapter(1), adapter(-1)]
equal = torch.equal(update(pair[0]), update(pair[1]))
similarity = compute_similarity_matrix(pair)
layer = adapter_diff(*pair)["layer"]["cosine_sim"]
clusters = len(find_clusters(similarity, threshold=0.0))
found = f"updates equal {equal}, cosine {similarity[0, 1]:.2f}, per layer {layer:.2f}, clusters {clusters}"
print(f"the same update, both factors negated: {found}")
assert equal and similarity[0, 1] < -0.999 and layer < -0.999 and clusters == 2
halves, quarters = multiple(vlora.task_arithmetic(pair)), multiple(vlora.task_arithmetic(pair, weights=[0.25, 0.75]))
print(f"task_arithmetic of the two: halves {halves:.2f}, weights 0.25 and 0.75 {quarters:.2f}")
assert (halves, round(quarters, 4)) == (0, 0.25)
PY
"$folder/env/bin/python" "$folder/one.py"
echo "as seen"
