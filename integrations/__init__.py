"""Adapters of ACRE for other frameworks; installed as `acre_rag.integrations`."""

if __name__ == "integrations":
    raise ImportError("Import it as acre_rag.integrations: the bare name would load a second copy.")
