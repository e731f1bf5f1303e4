"""GPT-NeoX as Hugging Face configs, made-up weights, and what transformers computes with them; see `llama_cases`.

python tests/models/neox_cases.py      # with the extra `parity`: writes tests/models/neox_golden.npz anew
"""

import json
from pathlib import Path

import llama_cases
import numpy as np
from llama_cases import VOCAB, noise, weights
from safetensors.numpy import save_file

GOLDEN = Path(__file__).with_name("neox_golden.npz")
SIZES = dict(model_type="gpt_neox", vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
SIZES |= dict(intermediate_size=48, max_position_embeddings=64, layer_norm_eps=1e-5, tie_word_embeddings=False)
CASES = {
    f"{gelu}-{'parallel' if parallel else 'sequential'}": dict(
        hidden_act={"tanh": "gelu_pytorch_tanh", "exact": "gelu"}[gelu],
        use_parallel_residual=parallel,
        rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.25 if parallel else 0.5),
    )
    for gelu in ("tanh", "exact")
    for parallel in (True, False)
}


def write_folder(folder: Path, name: str, shapes: dict[str, list[int]]) -> Path:
    """A Hugging Face directory of a case."""
    folder.mkdir(parents=True)
    save_file(weights(shapes), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(SIZES | CASES[name]))
    return folder


def golden() -> dict[str, dict]:
    """The golden file: per case its `shapes`, `logits` and `gradients`."""
    with np.load(GOLDEN) as file:
        return {name: case | {"logits": file[name]} for name, case in json.loads(str(file["cases"])).items()}


def reference(name: str):
    """The case in transformers, float32, with its weights; and the shapes of its tensors."""
    import torch
    import transformers

    given = {k: v for k, v in (SIZES | CASES[name]).items() if k != "model_type"}
    model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**given, attn_implementation="eager")).eval()
    named = {stored(n): p for n, p in model.named_parameters()}
    shapes = {n: list(p.shape) for n, p in named.items()}
    with torch.no_grad():
        for n, value in weights(shapes).items():
            named[n].copy_(torch.from_numpy(value))
    return model, shapes


def stored(name: str) -> str:
    """The name that a parameter has in files: transformers 5 calls the head by another one in memory."""
    return name.replace("lm_head.", "embed_out.")


def computed(model) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits of `TOKENS`, and the gradient of their mean loss by the names in files."""
    logits, gradients = llama_cases.computed(model)
    return logits, {stored(n): g for n, g in gradients.items()}


def write_golden() -> None:
    """Compute the golden file with transformers."""
    cases, logits = {}, {}
    for name in CASES:
        model, shapes = reference(name)
        logits[name], gradients = computed(model)
        along = {n: float((g.astype(np.float64) * noise(n, g.shape, 1)).sum()) for n, g in gradients.items()}
        cases[name] = {"shapes": shapes, "gradients": along}
    np.savez_compressed(GOLDEN, cases=np.array(json.dumps(cases)), **logits)
    print(f"{GOLDEN.name}: {len(cases)} cases, {GOLDEN.stat().st_size:,} bytes")


if __name__ == "__main__":
    write_golden()
