"""Sizes of the MoE layers that a profile measures."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CPU_SHAPES", "GPU_SHAPES", "MoeSizes"]


@dataclass(frozen=True, slots=True)
class MoeSizes:
    """Sizes of one MoE layer: D, F, E, K, and shared experts of the same width."""

    name: str
    hidden_size: int
    inter_size: int
    n_experts: int
    top_k: int
    n_shared_experts: int = 0

    @property
    def active_width(self) -> int:
        """Width of the dense layer with as many parameters as one token uses, (K + shared) F."""
        return (self.top_k + self.n_shared_experts) * self.inter_size

    @property
    def total_width(self) -> int:
        """Width of the dense layer with as many parameters as all experts, (E + shared) F."""
        return (self.n_experts + self.n_shared_experts) * self.inter_size

    @property
    def n_weights(self) -> int:
        """Parameters: router E D and 3 D F per expert.

        >>> MoeSizes("tiny", 2, 3, 4, 1).n_weights
        80
        """
        return self.hidden_size * (self.n_experts + 3 * self.total_width)

    @property
    def numbers(self) -> dict[str, int]:
        """Sizes by the names of the measurement schema."""
        return {
            "hidden_size": self.hidden_size,
            "inter_size": self.inter_size,
            "n_local_experts": self.n_experts,
            "top_k": self.top_k,
            "n_shared_experts": self.n_shared_experts,
        }


# Published layers with D and F divided by about four (assumption: the ratios E, K and F / D matter, the absolute width is limited
# by what a small CPU finishes in minutes).
CPU_SHAPES = (
    MoeSizes("mixtral-s", 1024, 1792, 8, 2),
    MoeSizes("qwen3-moe-s", 512, 192, 128, 8),
    MoeSizes("gpt-oss-s", 720, 720, 32, 4),
    MoeSizes("deepseek-s", 896, 256, 64, 6),
    MoeSizes("olmoe-s", 512, 256, 64, 8),
    MoeSizes("llama4-s", 1280, 1024, 16, 1),
    MoeSizes("qwen2-moe-s", 512, 352, 60, 4),
    MoeSizes("dbrx-s", 768, 1344, 16, 4),
    MoeSizes("granite-s", 384, 128, 40, 8),
    MoeSizes("minimax-s", 768, 1152, 32, 2),
    MoeSizes("glm-s", 1024, 352, 48, 8),
    MoeSizes("phi-s", 1024, 1600, 16, 2),
    MoeSizes("jamba-s", 640, 2304, 12, 2),
)

# Published layers at full width; source: the config.json of each model.
GPU_SHAPES = (
    MoeSizes("mixtral-8x7b", 4096, 14336, 8, 2),
    MoeSizes("qwen3-30b-a3b", 2048, 768, 128, 8),
    MoeSizes("gpt-oss-20b", 2880, 2880, 32, 4),
    MoeSizes("deepseek-v2-lite", 2048, 1408, 64, 6),
    MoeSizes("olmoe-1b-7b", 2048, 1024, 64, 8),
    MoeSizes("llama-4-scout", 5120, 8192, 16, 1),
    MoeSizes("qwen2-57b-a14b", 3584, 2560, 64, 8),
    MoeSizes("dbrx", 6144, 10752, 16, 4),
    MoeSizes("granite-3-3b-a800m", 1536, 512, 40, 8),
    MoeSizes("phi-3.5-moe", 4096, 6400, 16, 2),
    MoeSizes("glm-4.5-air", 4096, 1408, 128, 8),
    MoeSizes("deepseek-v3", 7168, 2048, 256, 8),
)
