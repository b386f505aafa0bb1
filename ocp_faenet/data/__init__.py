"""OC20-schema records, LMDB files, and the embedded EMT data set."""
