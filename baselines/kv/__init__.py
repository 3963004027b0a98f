"""Systems that shrink, shift or offload one document's KV cache."""
