"""Training of learned L1, and calibration of retrieval heads. Nothing here is needed to answer a question."""
