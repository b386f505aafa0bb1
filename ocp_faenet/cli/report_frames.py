"""The report's figure 1: a system and its frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ocp_faenet.cli.report_plan import Setting
from ocp_faenet.cli.report_text import untrained
from ocp_faenet.data.places import find_lmdb
from ocp_faenet.data.reader import lmdb_files, open_lmdb
from ocp_faenet.models.config import FAENetConfig, FAMethod, FrameAveraging, FrameSource
from ocp_faenet.models.graph import AtomGraph
from ocp_faenet.models.principal_frames import AllFrames

#: Structures among which figure 1 looks for clear axes.
LOOKED_AT = 100


def make_figure1(setting: Setting) -> dict[str, Any]:
    """One structure in its pose and in each of its frames."""
    from ocp_faenet.cli.report_drawings import frames_picture

    source = lmdb_files(find_lmdb(setting.data, "is2re", "val_id"))[0]
    with open_lmdb(source) as records:
        fields = [records[index] for index in range(min(LOOKED_AT, len(records)))]
    found = [framed(each) for each in fields]
    clear = [each for each in found if len(each["frames"]) == 4 and each["offset"] < 1]
    molecules = [each for each in clear if (each["tags"] == 2).sum() > 1]
    chosen = max(molecules or clear or found, key=lambda each: each["gap"])
    frames_picture(chosen, setting.out / "figure1.png")
    return {
        "pictures": ["figure1.png"],
        "sid": chosen["sid"],
        "atoms": len(chosen["positions"]),
        "frames": len(chosen["frames"]),
        "spread": chosen["spread"],
        "agreement": chosen["agreement"],
        **setting.stamp(),
    }


def framed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Positions, species and tags of a record, and its 2D frames as FAENet makes them.

    ``frames`` ``(F, 3, 3)``, columns the axes; ``posed`` ``(F, N, 3)`` the structure in each;
    ``gap`` how far apart the second moments in the plane are; ``spread`` Å along both axes;
    ``offset`` of the adsorbate from the middle, the largest along an axis, in spreads;
    ``agreement`` Å, the largest change of a frame's coordinates when the structure is turned.
    """
    positions = torch.as_tensor(np.asarray(fields["pos"])).double()
    numbers = torch.as_tensor(np.asarray(fields["atomic_numbers"])).long()
    frames, gap = planar_frames(positions, numbers)
    centred = positions - positions.mean(0)
    posed = torch.einsum("ni,fij->fnj", centred, frames)
    turn = _turn(0.7)
    turned = torch.einsum(
        "ni,fij->fnj", centred @ turn, planar_frames(positions @ turn, numbers)[0]
    )
    apart = (posed[:, None] - turned[None]).abs().amax((-1, -2))  # (F, F), in any order
    tags, spread = np.asarray(fields["tags"]), posed[0].std(0, correction=0)[:2]
    middle = posed[0][torch.as_tensor(tags == 2)].mean(0)[:2]
    return {
        "sid": str(np.asarray(fields.get("sid", 0)).item()),
        "positions": positions.numpy(),
        "numbers": numbers.numpy(),
        "tags": tags,
        "cell": np.asarray(fields["cell"]).reshape(3, 3),
        "frames": frames.numpy(),
        "posed": posed.numpy(),
        "gap": gap,
        "spread": spread.tolist(),
        "offset": float((middle.abs() / spread).max()),
        "agreement": float(apart.amin(1).max()),
    }


def planar_frames(positions: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The 2D frames ``(F, 3, 3)`` of a structure from its positions, and the gap of its axes."""
    config = FAENetConfig(
        frame_averaging=FrameAveraging.PLANE,
        fa_method=FAMethod.ALL,
        frame_source=FrameSource.POSITIONS,
    )
    provider = AllFrames(config, proper=False, exact=True)
    batch, edges = torch.zeros_like(numbers), torch.zeros(2, 0, dtype=torch.int64)
    graph = AtomGraph.build(positions, numbers, batch, 1, edges)
    _, principal = provider.look(graph)
    return provider.frames(graph).rectangular()[0], float(principal.gap[0])


def _turn(angle: float) -> torch.Tensor:
    c, s = float(np.cos(angle)), float(np.sin(angle))
    return torch.tensor([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def render_figure1(content: Mapping[str, Any]) -> str:
    """What is seen."""
    first, second = content["spread"]
    return (
        f"Structure {content['sid']} of val_id ({content['atoms']} atoms) from above, and in each "
        f"of its {content['frames']} frames: the principal axes of its positions in the plane, "
        "each of them with either sign (report, equation 2; `frame_averaging: 2D`, "
        f"`frame_source: positions`). The atoms spread {first:.2f} Å along u₁ and {second:.2f} Å "
        "along u₂. Turned by 0.7 rad about z, the structure is the same in its frames to "
        f"{content['agreement']:.0e} Å. The network sees it in one of them, drawn anew each time "
        "(stochastic), or in all of them, and the predictions are averaged. "
        f"{untrained(content)}"
    )
