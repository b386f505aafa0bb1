"""Force decoders: a vector for each atom from its final embedding, one class per published type."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ocp_faenet.nn.activations import Activation

#: Channels -> normalisation layer over ``(rows, channels)``.
NormFactory = Callable[[int], nn.Module]

#: ``norm`` of a decoder's configuration -> layer.
DECODER_NORMS: dict[str | None, NormFactory] = {
    "batch1d": nn.BatchNorm1d,
    "layer": nn.LayerNorm,
    None: nn.Identity,
}


class _Act(nn.Module):
    def __init__(self, act: Activation) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


def _layer(inputs: int, outputs: int, norm: NormFactory, act: Activation) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), norm(outputs), _Act(act))


class ForceDecoder(nn.Module):
    """Base: flattens frames and atoms to rows, so that batch norm sees ``(rows, channels)``."""

    def forward(self, h: Tensor) -> Tensor:
        """``(F, N, C)`` to vectors in each frame ``(F, N, 3)``, eV/Å times the target's scale."""
        rows = self.decode(h.reshape(-1, h.shape[-1]))
        return rows.view(*h.shape[:-1], 3)

    def decode(self, rows: Tensor) -> Tensor:
        """``(rows, C)`` to ``(rows, 3)``."""
        out: Tensor = self.out(rows)
        return out


class SimpleDecoder(ForceDecoder):
    """``simple``: two layers, no norm."""

    def __init__(self, inputs: int, hidden: int, norm: NormFactory, act: Activation) -> None:
        super().__init__()
        self.out = nn.Sequential(nn.Linear(inputs, hidden), _Act(act), nn.Linear(hidden, 3))


class MLPDecoder(ForceDecoder):
    """``mlp``: two layers with a norm between (after ForceNet, arXiv 2103.01436)."""

    def __init__(self, inputs: int, hidden: int, norm: NormFactory, act: Activation) -> None:
        super().__init__()
        self.out = nn.Sequential(_layer(inputs, hidden, norm, act), nn.Linear(hidden, 3))


class ResidualDecoder(ForceDecoder):
    """``res``: a two-layer residual block at full width, then ``mlp``."""

    def __init__(self, inputs: int, hidden: int, norm: NormFactory, act: Activation) -> None:
        super().__init__()
        self.block = nn.Sequential(
            _layer(inputs, inputs, norm, act), _layer(inputs, inputs, norm, act)
        )
        self.out = nn.Sequential(_layer(inputs, hidden, norm, act), nn.Linear(hidden, 3))

    def decode(self, rows: Tensor) -> Tensor:
        """``(rows, C)`` to ``(rows, 3)``."""
        out: Tensor = self.out(self.block(rows) + rows)
        return out


class ResidualUpDownDecoder(ResidualDecoder):
    """``res_updown``: as ``res``, the block going down to ``hidden`` and up again."""

    def __init__(self, inputs: int, hidden: int, norm: NormFactory, act: Activation) -> None:
        super().__init__(inputs, hidden, norm, act)
        self.block = nn.Sequential(
            _layer(inputs, hidden, norm, act),
            _layer(hidden, hidden, norm, act),
            _layer(hidden, inputs, norm, act),
        )
