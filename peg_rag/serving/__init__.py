"""The HTTP server: OpenAI-compatible embeddings, search, cited answers and documents over one store.

`create_app` makes the FastAPI application, `peg_rag.serving.run.serve` runs it behind uvicorn with time limits on
every socket. Needs the `serve` extra.
"""
