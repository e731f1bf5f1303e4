"""Models of the Llama family as Hugging Face configs, their made-up weights, and what transformers computes with them.

    python tests/models/llama_cases.py      # with the extra `parity`: writes tests/models/llama_golden.npz anew

The golden file holds, for each case, the names and shapes of its tensors, the logits of `TOKENS`, and of the gradient
of the mean loss of the next token one number per tensor: its product with that tensor's `noise`. The weights are not in
it: they follow from the names.
"""

import json
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

GOLDEN = Path(__file__).with_name("llama_golden.npz")
VOCAB = 61
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, 24))

SIZES = dict(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
SIZES |= dict(num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False)
LLAMA3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, rope_theta=500.0)
CASES = {
    "llama": dict(model_type="llama", rope_parameters=dict(rope_type="default", rope_theta=10000.0)),
    "tied": dict(model_type="llama", num_key_value_heads=4, tie_word_embeddings=True, attention_bias=True),
    "linear": dict(model_type="llama", rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=1000.0)),
    "llama3": dict(
        model_type="llama",
        rope_parameters=LLAMA3 | dict(original_max_position_embeddings=16, rope_theta=100.0),
        head_dim=16,
    ),
    "yarn": dict(model_type="llama", rope_parameters=YARN, head_dim=16),
    "qwen2": dict(model_type="qwen2", tie_word_embeddings=True, rms_norm_eps=1e-6),
    "qwen3": dict(model_type="qwen3", head_dim=12, num_key_value_heads=1),
    "mistral": dict(model_type="mistral", sliding_window=None, head_dim=10),
    "olmo2": dict(
        model_type="olmo2",
        rms_norm_eps=1e-6,
        rope_parameters=YARN | dict(mscale=1.0, mscale_all_dim=0.7),
        pad_token_id=None,  # by default id 1, whose embedding then gets no gradient
        eos_token_id=None,
    ),
}


def config(name: str) -> dict:
    """The content of a case's `config.json`."""
    return SIZES | CASES[name]


def noise(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Numbers of a tensor, by its name."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape).astype(np.float32)


def weights(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """The tensors of a model: every one is noise, so that one that is swapped or forgotten shows."""
    return {n: 0.2 * noise(n, tuple(s)) + np.float32("norm" in n) for n, s in shapes.items()}


def write_folder(folder: Path, name: str, shapes: dict[str, list[int]]) -> Path:
    """A Hugging Face directory of a case."""
    folder.mkdir(parents=True)
    save_file(weights(shapes), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(name)))
    return folder


def golden() -> dict[str, dict]:
    """The golden file: per case its `shapes`, `logits` and `gradients`."""
    with np.load(GOLDEN) as file:
        cases = json.loads(str(file["cases"]))
        return {name: case | {"logits": file[name]} for name, case in cases.items()}


def reference(name: str):
    """The case in transformers, float32, with its weights."""
    import torch
    import transformers

    given = {k: v for k, v in config(name).items() if k != "model_type"}
    made = transformers.AutoConfig.for_model(CASES[name]["model_type"], **given, attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(made).eval()
    shapes = {n: list(p.shape) for n, p in model.named_parameters()}
    with torch.no_grad():
        for n, value in weights(shapes).items():
            model.get_parameter(n).copy_(torch.from_numpy(value))
    return model, shapes


def computed(model) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits of `TOKENS`, and the gradient of their mean loss."""
    import torch

    tokens = torch.from_numpy(TOKENS)
    logits = model(tokens).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, VOCAB), tokens[:, 1:].reshape(-1)).backward()
    return logits.detach().numpy(), {n: p.grad.numpy() for n, p in model.named_parameters()}


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
