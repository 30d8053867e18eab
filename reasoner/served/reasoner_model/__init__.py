"""Models that SGLang takes where ``SGLANG_EXTERNAL_MODEL_PACKAGE`` names this package."""
