"""Small modules on bare PyTorch. Leading frame axis: nodes ``(F, N, C)``, edges ``(F, E, C)``."""
