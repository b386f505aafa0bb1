"""Pure geometry on tensors: rotations, frames, neighbours, segments. Imports torch alone."""
