"""The parts of the extractive answerer: what a question asks for, what passages state, and which statement answers.

`peg_rag.answer` is the public door.
"""
