"""DMPT: decoupled modality-aware prompt tuning for multi-modal object re-identification.

Paper: M. Lin et al., "DMPT: Decoupled Modality-aware Prompt Tuning for Multi-modal Object Re-identification",
WACV 2025 (arXiv 2504.10985). docs/method.md puts its equations beside the code.
"""

__version__ = "0.1.0"
