"""Hugging Face's GPTNeoX on PyTorch: SDPA attention, fused AdamW; on a GPU compiled, bfloat16, cuDNN's attention.

Runs under a Python with torch and transformers; imports nothing of ours.
"""

from __future__ import annotations

import contextlib

import numpy as np
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel


class hf_torch:
    """Updates and evaluations on the rows of the setting."""

    def __init__(self, setting: dict):
        torch.set_num_threads(setting["threads"])
        self.device = "cuda" if torch.cuda.is_available() and setting["device"] != "cpu" else "cpu"
        self.dtype = getattr(torch, setting["dtype"])
        load = transformers.AutoModelForCausalLM.from_pretrained
        model = load(setting["model"], attn_implementation="sdpa", dtype=torch.float32).to(self.device).train()
        decayed = [p for p in model.parameters() if p.ndim >= 2]
        others = [p for p in model.parameters() if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": setting["weight_decay"]}, {"params": others, "weight_decay": 0.0}],
            lr=setting["lr"], betas=(setting["b1"], setting["b2"]), eps=setting["eps"], fused=True,
        )  # fmt: skip
        self.parameters, self.clip = list(model.parameters()), setting["clip"]
        self.model = torch.compile(model) if self.device == "cuda" else model
        self.rows, self.at = torch.from_numpy(np.load(setting["rows"]).astype(np.int64)).to(self.device), 0
        self.windows = torch.from_numpy(np.load(setting["evaluation"]).astype(np.int64)).to(self.device)
        self.facts = {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": torch.cuda.get_device_name() if self.device == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "compiled": self.device == "cuda",
        }

    def step(self, times: int) -> float:
        for _ in range(times):
            loss = self.loss(self.rows[self.at % len(self.rows)])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.at += 1
        self.wait()
        return loss.item()

    def evaluate(self, times: int) -> float:
        self.model.eval()
        with torch.inference_mode():
            for _ in range(times):
                loss = self.loss(self.windows)
        self.model.train()
        self.wait()
        return loss.item()

    def loss(self, rows: torch.Tensor) -> torch.Tensor:
        with contextlib.ExitStack() as stack:
            if self.device == "cuda":
                # Faster on Hopper than the one that torch takes by itself, in which case it would not be a fair peer.
                stack.enter_context(sdpa_kernel(SDPBackend.CUDNN_ATTENTION))
            if self.dtype != torch.float32:
                stack.enter_context(torch.autocast(self.device, dtype=self.dtype))
            logits = self.model(input_ids=rows[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def memory(self) -> int:
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


make = hf_torch
