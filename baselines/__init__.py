"""Other systems behind ACRE's interface; installed as `acre_rag.baselines`."""

if __name__ == "baselines":
    raise ImportError("Import it as acre_rag.baselines: the bare name would load a second copy.")
