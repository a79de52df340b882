#!/usr/bin/env bash
# torch_cka: the rows of its matrix are layers in the order they ran, under names in the order they were defined
#
# Versions: torch_cka 0.21, torch 2.14.1, matplotlib 3.11.2, numpy 2.4.6, Python 3.11.
#
# What it does. Names of layers are collected from named_modules(): a module before its parts, parts as the constructor wrote them. Features
# are collected as layers return: parts before their module, in the order of the forward pass. Rows and columns of the CKA are
# filled in the second order and handed out, by export() and on the axes of plot_results(), with the names in the first. Without a
# list of layers every matrix is shifted, since the whole model is named first and returns last; with a list, any model whose
# constructor and forward pass differ in order, or a list of modules within modules, has names exchanged. The diagonal is 1 all the
# same when a model is compared with itself, so the usual check shows nothing.
#
# What most would expect. That the number under two names is the CKA of these two layers, and that the order in which a constructor
# creates its layers changes nothing. U-Nets and transformers of diffusion models are written with embeddings, heads and norms wherever
# their author put them.
#
# Seen 2026-11-30 (a body of two layers and a head; CKA by definition in brackets):
#   all layers, head defined first: head ~ body 1.00 (0.48), head ~ body.0 0.48 (0.47), body ~ body.1 0.48 (1.00), whole ~ head 0.99 (1.00)
#   named layers, head defined first: head ~ body.0 0.99 (0.47), body.0 ~ body.1 0.48 (0.99)
#   named layers, head defined last: head ~ body.0 0.47 (0.47), body.0 ~ body.1 0.99 (0.99)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch_cka==0.21 torch==2.14.1 matplotlib==3.11.2 numpy==2.4.6 tqdm
cat > "$folder/one.py" <<'PY'
import warnings

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch_cka import CKA

warnings.simplefilter("ignore")  # that no second loader was given; it does not shuffle


class Net(nn.Module):
    def __init__(self, head_first):
        super().__init__()
        torch.manual_seed(0)
        parts = {"body": nn.Sequential(nn.Linear(16, 32), nn.Tanh()), "head": nn.Linear(32, 4)}
        for name in ("head", "body") if head_first else ("body", "head"):
            self.add_module(name, parts[name])

    def forward(self, inputs):
        return self.head(self.body(inputs))


def hsic(one, another):
    one, another, count = one.clone().fill_diagonal_(0), another.clone().fill_diagonal_(0), len(one)
    middle = one.sum() * another.sum() / ((count - 1) * (count - 2))
    return (one * another).sum() + middle - 2 * (one.sum(0) @ another.sum(0)) / (count - 2)


def by_definition(one, another):
    one, another = one @ one.T, another @ another.T
    return (hsic(one, another) / (hsic(one, one) * hsic(another, another)).sqrt()).item()


torch.manual_seed(1)
inputs = torch.randn(256, 16)
loader = DataLoader(TensorDataset(inputs), batch_size=256)
CASES = {
    "all layers, head defined first": (True, None, [("head", "body"), ("head", "body.0"), ("body", "body.1"), ("", "head")], True),
    "named layers, head defined first": (True, ["head", "body.0", "body.1"], [("head", "body.0"), ("body.0", "body.1")], True),
    "named layers, head defined last": (False, ["head", "body.0", "body.1"], [("head", "body.0"), ("body.0", "body.1")], False),
}
for title, (head_first, layers, pairs, differ) in CASES.items():
    model = Net(head_first)
    compared = CKA(model, model, "one", "same", layers, layers, device="cpu")
    with torch.no_grad():
        compared.compare(loader, loader)
        first = model.body[0](inputs)
        outputs = {"": model(inputs), "head": model(inputs), "body": model.body(inputs), "body.0": first, "body.1": model.body(inputs)}
    exported = compared.export()
    names, matrix = exported["model1_layers"], exported["CKA"]
    assert exported["model2_layers"] == names and torch.allclose(matrix.diagonal(), torch.ones(len(names)), atol=1e-3)
    told = []
    for one, another in pairs:
        got, meant = matrix[names.index(one), names.index(another)].item(), by_definition(outputs[one], outputs[another])
        told.append((f"{one or 'whole'} ~ {another} {got:.2f} ({meant:.2f})", abs(got - meant)))
    print(f"{title}: " + ", ".join(text for text, _ in told))
    assert (max(error for _, error in told) > 0.3) == differ and (differ or max(error for _, error in told) < 0.01)
PY
"$folder/env/bin/python" "$folder/one.py" 2> "$folder/progress" || { cat "$folder/progress" >&2; exit 1; }
echo "as seen"
