"""Every kind of adapter that PEFT 0.21 and LyCORIS 4.1 save, and what becomes of it: docs/formats.md is made of this.

A row says what a file holds, and whether the update ΔW follows from it alone, from it and the base's weights, or not at
all: why. A kind that is refused has patterns of its keys here, so that the refusal gives its reason.
"""

import re
from dataclasses import dataclass

EXACTLY = "exactly"
WITH_BASE = "with its base"
NOT = "no"


@dataclass(frozen=True)
class Adapter:
    """One row. `name`: as its library calls it. `library`: which saves it. `reading`: EXACTLY, WITH_BASE or NOT.
    `words`: ΔW, or why there is none. `keys`: pattern of whole keys, where they are of no kind that is read."""

    name: str
    library: str
    reading: str
    words: str
    keys: str | None = None


_P, _L, _BOTH = "PEFT", "LyCORIS", "PEFT, LyCORIS"

ADAPTERS: tuple[Adapter, ...] = (
    Adapter("LoRA", "all", EXACTLY, "s·BA, s = α/r"),
    Adapter("LoRA, rsLoRA", _BOTH, EXACTLY, "s = α/√r"),
    Adapter("LoRA, rank and alpha patterns", _P, EXACTLY, "s of each module by the first pattern that ends its name"),
    Adapter("LoRA, lora_bias", _P, EXACTLY, "the bias of B is one of the layer, times s"),
    Adapter("LoRA, target_parameters", _P, EXACTLY, "for each expert s·B[:, :, e] A[e]; not with rank patterns"),
    Adapter("BD-LoRA", _P, EXACTLY, "A or B has its blocks on a diagonal"),
    Adapter("LoRA of a convolution", _BOTH, EXACTLY, "A laid flat; LyCORIS calls it LoCon"),
    Adapter("LoRA of a convolution in groups", _P, EXACTLY, "B alone has the groups"),
    Adapter("LoRA of an embedding", _P, EXACTLY, "s·(BA)ᵀ"),
    Adapter("LoCon with a Tucker core", _L, EXACTLY, "s·B (core ×₂ A)"),
    Adapter("AdaLoRA", _P, EXACTLY, "B diag(E) A · α/(init_r + 10⁻⁵)"),
    Adapter("LoHa", _BOTH, EXACTLY, "s·(w1a w1b) ∘ (w2a w2b), with Tucker cores or without"),
    Adapter("LoKr", _BOTH, EXACTLY, "s·(w1 ⊗ w2), each whole or a product, with a Tucker core or without"),
    Adapter("LoKr, both factors whole", _L, EXACTLY, "w1 ⊗ w2, whatever α is"),
    Adapter(
        "LoKr, both factors whole, rs_lora", _L, EXACTLY,
        "∛α · (w1 ⊗ w2) where the header says rs_lora, or α is dim·√dim and no whole number; without either as if it "
        "were not",
    ),
    Adapter("DyLoRA, LoRA-FA", _L, EXACTLY, "as LoRA, of the whole rank"),
    Adapter("full", _L, EXACTLY, "the difference itself; norms and biases, too"),
    Adapter("VB-LoRA", _P, EXACTLY, "A and B put together of the bank's vectors; whole logits, or the topk alone"),
    Adapter("Uni-LoRA, save_indices", _P, EXACTLY, "entries of A and B taken from one vector, times their scales"),
    Adapter("TinyLoRA of one vector, save_projection", _P, EXACTLY, "B (Σ v_u P_u) A"),
    Adapter("C3A", _P, EXACTLY, "circulant blocks over the width"),
    Adapter("GraLoRA", _P, EXACTLY, "k × k blocks of rank r/k, α/(r + hybrid_r)"),
    Adapter("DeLoRA", _P, EXACTLY, "(λ/r) Σ bᵢaᵢᵀ/(‖aᵢ‖‖bᵢ‖) · the saved column norms of W"),
    Adapter("PiSSA, OLoRA and their kin, converted", _P, EXACTLY, "a LoRA of twice the rank"),
    Adapter("aLoRA", _P, EXACTLY, "as LoRA, with a remark: it acts after its invocation tokens alone"),
    Adapter("PiSSA, not converted", _P, WITH_BASE, "s·BA less the r first singular directions of W"),
    Adapter("OLoRA, not converted", _P, WITH_BASE, "s (BA − Q_r R_r) of W = QR"),
    Adapter("DoRA", _BOTH, WITH_BASE, "m ∘ (W + ΔW)/‖W + ΔW‖ − W, of a LoRA, LoHa or LoKr, over rows or columns"),
    Adapter(
        "VeRA, PVeRA, save_projection", _P, WITH_BASE,
        "(λ_b·B)(λ_d·A), cut to each layer, whose width is the base's; without it where all layers are alike",
    ),
    Adapter("RandLoRA, save_projection", _P, WITH_BASE, "α/r · B (λ A γ), cut to each layer's shape"),
    Adapter("SHiRA", _P, WITH_BASE, "entries at given places of the layer's shape"),
    Adapter("Super-tuning", _P, WITH_BASE, "the same, and a LoRA beside them where there is one"),
    Adapter("FourierFT", _P, WITH_BASE, "coefficients at places drawn for the layer's shape"),
    Adapter("WaveFT", _P, WITH_BASE, "the same of a wavelet transform"),
    Adapter("MiSS", _P, WITH_BASE, "one block repeated over the layer's width"),
    Adapter("MiSS, mini", _P, WITH_BASE, "one block repeated over the layer's width and height"),
    Adapter("MiSS, bat", _P, WITH_BASE, "W b + b, in tiles of W"),
    Adapter("IA³", _BOTH, WITH_BASE, "rows or columns of W scaled"),
    Adapter("HiRA", _P, WITH_BASE, "W ∘ BA"),
    Adapter("OFT", _P, WITH_BASE, "W Rᵀ − W, R of Cayley transforms, exact or as a series"),
    Adapter("BOFT of one butterfly factor", _P, WITH_BASE, "s ∘ W Rᵀ − W"),
    Adapter("HRA", _P, WITH_BASE, "W H₁ … H_r − W, H of reflections"),
    Adapter("Diag-OFT", _L, WITH_BASE, "R W − W, with a factor for each output or without"),
    # --- what is no update by itself
    Adapter(
        "PiSSA by a random start, CorDA, LoftQ, LoRA-GA, not converted", _P, NOT,
        "what was taken out of the base follows from random numbers or from data that the file does not have",
    ),
    Adapter(
        "VeRA, PVeRA, RandLoRA, without save_projection", _P, NOT, "the shared matrices are drawn anew by PEFT alone"
    ),
    Adapter("Uni-LoRA without save_indices", _P, NOT, "which entries share a number is drawn anew by PEFT alone"),
    Adapter("TinyLoRA of several vectors, or without save_projection", _P, NOT,
            "which vector is a module's own is nowhere in the file"),
    Adapter("BOFT of several butterfly factors", _BOTH, NOT, "its permutations are not read here"),
    Adapter("OFT of kohya", "sd-scripts", NOT, "OFT turns the base's outputs, biases too", r"oft_(unet|te\d?)_.+"),
    Adapter("OFT, scaled", "OneTrainer", NOT, "OFT turns the base's weights, and how is not in the file",
            r".+\.oft_R\.scaled_oft"),
    Adapter("GLoRA", _BOTH, NOT, "GLoRA scales the base's weights and adds to them: the update needs the base",
            r".+\.(([ab][12]|bm[12]|c[12])(\.weight)?|glora_[A-E]\.\w+)"),
    Adapter("T-LoRA", _L, NOT, "T-LoRA's update is relative to a start that is not in the file",
            r".+\.(q_layer\.weight|p_layer\.weight|lambda_layer|[qp]\.weight)"),
    Adapter("FRoD", _P, NOT, "FRoD's U is made of all the base's weights together", r"(base_model\.)?(.+\.)?frod_.+"),
    Adapter("PSOFT", _P, NOT, "PSOFT turns the base's singular directions", r".+\.psoft_.+"),
    Adapter("OSF", _P, NOT, "OSF's are the base's own lower singular directions", r".+\.osf_svd_params\..+"),
    Adapter("AdaMSS", _P, NOT, "which rows AdaMSS' parts are of follows from clusters of the base's directions",
            r".+\.adamss_.+"),
    Adapter("DEFT", _P, NOT, "DEFT takes a projection of the base's weights away", r".+\.deft_.+"),
    Adapter("PEANuT", _P, NOT, "PEANuT is a network of the base's weights", r".+\.peanut_.+"),
    Adapter("RoAd", _P, NOT, "RoAd turns the base's outputs", r".+\.road_.+"),
    Adapter("Lily", _P, NOT, "Lily's router depends on the input: there is no one ΔW", r".+\.lily_.+"),
    Adapter("X-LoRA, Poly", _P, NOT, "its LoRAs are mixed by what the input is: there is no one ΔW",
            r".+(xlora_|\.poly_|internal_xlora).*"),
    Adapter("ShadowPEFT", _P, NOT, "a network beside the base, of which no weight changes", r"(.+\.)?shadow_.+"),
    Adapter("BEFT", _P, NOT, "BEFT has biases alone, of which none is an update of a weight", r".+\.beft_.+"),
    Adapter("LN tuning", _P, NOT, "LN tuning saves whole layers, not differences", r".+\.ln_tuning_layers\..+"),
    Adapter("prompts, prefixes, cartridges", _P, NOT, "it learns inputs and changes no weight",
            r"(base_model\.)?(.+\.)?(prompt_embeddings|cartridge|adaption_prompt|adaption_gate|trainable_tokens).*"),
)  # fmt: skip

# Pattern of keys → why they are no update by themselves.
FOREIGN: tuple[tuple[re.Pattern[str], str], ...] = (
    *((re.compile(each.keys), each.words) for each in ADAPTERS if each.keys is not None),
    (re.compile(r"(base_model\.)?unilora_theta_d.*|.+\.unilora_.+"), "Uni-LoRA that was saved without its indices"),
    (
        re.compile(r"(base_model\.)?(.+\.)?tinylora_.+"),
        "TinyLoRA of several vectors: which is a module's own is not in the file",
    ),
    (re.compile(r".+\.o?oft_\w+(\.weight)?"), "OFT turns the base's weights, and how is not in the file"),
)
