"""FAENet for fairchem-core 1.10."""
